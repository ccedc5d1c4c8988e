"""What the journal is told of one run: that it is queued, begins, goes on, reads clocks, is left, and ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from ..errors import JournalFailed
from ..journal.events import (
    ClocksRead,
    FilesChanged,
    InputEntry,
    OutputWritten,
    RunFinished,
    RunQueued,
    RunResumed,
    RunStarted,
    RunSuspended,
)
from ..journal.recording import Recording
from ..journal.store import Journal
from .run_report import validate_readings
from .run_spec import RunSpec


class RunJournal:
    """A run in the journal; `resumed` is what another server has written of it."""

    def __init__(
        self,
        journal: Journal,
        session_id: str,
        run_id: str,
        spec: RunSpec,
        resumed: Recording | None,
    ) -> None:
        self.has_started = False
        self._journal = journal
        self._session_id = session_id
        self._run_id = run_id
        self._spec = spec
        self._is_announced = spec.run_id is not None
        self._recorded_readings = (
            {name: len(read) for name, read in resumed.clock_readings.items()} if resumed else {}
        )
        self._wait_for_end: Callable[[], Awaitable[Any]] | None = (
            None  # waits until its end is on the disk
        )

    def append_event(
        self,
        event: RunQueued
        | RunStarted
        | RunResumed
        | RunSuspended
        | ClocksRead
        | OutputWritten
        | RunFinished
        | FilesChanged,
    ) -> None:
        """Write down what becomes of it."""
        self._journal.append(self._session_id, event, self._run_id)

    def journal_queued(self) -> None:
        """Have it survive the death of the server, though it has not begun."""
        if not self._is_announced:
            self._is_announced = True
            request = self._spec
            context = None if request.context is None else list(request.context)
            self.append_event(
                RunQueued(
                    self._run_id,
                    request.code,
                    request.timeout_s,
                    request.idempotency_key,
                    request.is_dry_run,
                    context,
                )
            )

    def journal_start(
        self,
        parent: str | None,
        step: int,
        name: str,
        *,
        seed: str,
        stale_packages: list[str],
        detached: bool,
        context: Sequence[InputEntry],
    ) -> None:
        """It starts, as a `RunStarted` says, or goes on."""
        self.has_started = True
        request, recording = self._spec, self._spec.recording
        if request.is_resumed and recording is not None:
            self.append_event(
                RunResumed(sum(call.finished_sequence is not None for call in recording.calls))
            )
            return
        start = RunStarted(
            run_id=self._run_id,
            parent_id=parent,
            step=step,
            code=request.code,
            name=name,
            timeout_s=request.timeout_s,
            idempotency_key=request.idempotency_key,
            seed=seed,
            replayed_run=recording.start.run_id if recording else None,
            stale_packages=stale_packages,
            dry_run=request.is_dry_run,
            approved_calls=list(request.approvals),
            detached=detached,
            context=list(context),
        )
        self.append_event(start)

    def journal_suspended(self) -> None:
        """It stops here, and another server is to go on with it."""
        with suppress(JournalFailed):  # then it counts as one that a crash has stopped
            self.append_event(RunSuspended())

    def journal_clock_readings(self, clocks: Any) -> None:
        """Write down what clocks have told the code, without what the journal has already."""
        if not clocks:
            return
        readings = {}
        for name, values in validate_readings(clocks).items():
            known = min(self._recorded_readings.get(name, 0), len(values))
            if known:
                self._recorded_readings[name] -= known
            if values[known:]:
                readings[name] = values[known:]
        if readings:
            self.append_event(ClocksRead(readings))

    def journal_end(self, event: RunFinished) -> None:
        """It is over."""
        self.append_event(event)
        self._wait_for_end = self._journal.start_flush()

    async def flush(self) -> None:
        """Wait until all that was told so far survives a crash; raises `JournalFailed`."""
        await self._journal.flush()

    async def wait_until_durable(self) -> None:
        """Wait until its end survives a crash; raises `JournalFailed`."""
        if self._wait_for_end is not None:
            await self._wait_for_end()
