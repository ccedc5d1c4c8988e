"""What the journal is told of one run: that it is queued, begins, goes on, reads clocks, is left, and ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from ..errors import JournalFailed
from ..journal.events import (
    ClocksRead,
    FilesChanged,
    Input,
    Output,
    RunFinished,
    RunQueued,
    RunResumed,
    RunStarted,
    RunSuspended,
)
from ..journal.replay import Recording
from ..journal.store import Journal
from .report import checked_readings
from .request import Request


class Record:
    """A run in the journal; `resumed` is what another server has written of it."""

    def __init__(self, journal: Journal, session: str, run: str, request: Request, resumed: Recording | None) -> None:
        self.has_begun = False
        self._journal = journal
        self._session = session
        self._run = run
        self._request = request
        self._is_announced = request.id is not None
        self._known = {name: len(read) for name, read in resumed.readings.items()} if resumed else {}
        self._written: Callable[[], Awaitable[Any]] | None = None  # waits until its end is on the disk

    def append(
        self,
        event: RunQueued | RunStarted | RunResumed | RunSuspended | ClocksRead | Output | RunFinished | FilesChanged,
    ) -> None:
        """Write down what becomes of it."""
        self._journal.append(self._session, event, self._run)

    def announce(self) -> None:
        """Have it survive the death of the server, though it has not begun."""
        if not self._is_announced:
            self._is_announced = True
            request = self._request
            context = None if request.context is None else list(request.context)
            self.append(RunQueued(self._run, request.code, request.timeout_s, request.key, request.dry_run, context))

    def begin(
        self,
        parent: str | None,
        step: int,
        name: str,
        *,
        seed: str,
        stale: list[str],
        detached: bool,
        context: Sequence[Input],
    ) -> None:
        """It starts, as a `RunStarted` says, or goes on."""
        self.has_begun = True
        request, recording = self._request, self._request.recording
        if request.resumes and recording is not None:
            self.append(RunResumed(sum(call.finished is not None for call in recording.calls)))
            return
        start = RunStarted(
            run=self._run,
            parent=parent,
            step=step,
            code=request.code,
            name=name,
            timeout_s=request.timeout_s,
            idempotency_key=request.key,
            seed=seed,
            replays=recording.start.run if recording else None,
            stale=stale,
            dry_run=request.dry_run,
            approved=list(request.approved),
            detached=detached,
            context=list(context),
        )
        self.append(start)

    def suspend(self) -> None:
        """It stops here, and another server is to go on with it."""
        with suppress(JournalFailed):  # then it counts as one that a crash has stopped
            self.append(RunSuspended())

    def note_clocks(self, clocks: Any) -> None:
        """Write down what clocks have told the code, without what the journal has already."""
        if not clocks:
            return
        readings = {}
        for name, values in checked_readings(clocks).items():
            known = min(self._known.get(name, 0), len(values))
            if known:
                self._known[name] -= known
            if values[known:]:
                readings[name] = values[known:]
        if readings:
            self.append(ClocksRead(readings))

    def end(self, event: RunFinished) -> None:
        """It is over."""
        self.append(event)
        self._written = self._journal.begin_flush()

    async def flush(self) -> None:
        """Wait until all that was told so far survives a crash; raises `JournalFailed`."""
        await self._journal.flush()

    async def written(self) -> None:
        """Wait until its end survives a crash; raises `JournalFailed`."""
        if self._written is not None:
            await self._written()
