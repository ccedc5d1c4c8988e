"""Writes the events of one run, all but its calls: those are `call_journal`'s."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from ..errors import JournalFailed, JournalLimitReached
from ..journal.events import (
    AgentQuestionAnswered,
    AgentQuestionAsked,
    ClocksRead,
    FilesChanged,
    InputEntry,
    OutputWritten,
    QuestionAnswered,
    QuestionAsked,
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

RunEventRecord = (
    RunQueued
    | RunStarted
    | RunResumed
    | RunSuspended
    | ClocksRead
    | OutputWritten
    | QuestionAsked
    | QuestionAnswered
    | AgentQuestionAsked
    | AgentQuestionAnswered
    | RunFinished
    | FilesChanged
)

MAX_READINGS = 100_000  # numbers of one run; an honest worker sends fewer


class RunJournal:
    """Writes the events of one run; `resumed` is what another server has written of it."""

    def __init__(
        self,
        journal: Journal,
        session_id: str,
        run_id: str,
        spec: RunSpec,
        resumed: Recording | None,
        on_limit: Callable[[JournalLimitReached], None] = lambda _: None,
    ) -> None:
        self.has_started = False
        self.seed = spec.recording.start.seed if spec.recording else secrets.token_hex(16)
        self._journal = journal
        self._on_limit = on_limit
        self._session_id = session_id
        self._run_id = run_id
        self._spec = spec
        self._is_announced = spec.run_id is not None
        self._recorded_readings: dict[
            str, int
        ] = {}  # how many of each clock are not read again yet
        if resumed:
            counts = {name: len(values) for name, values in resumed.clock_readings.items()}
            self._recorded_readings = counts
        self._readings_left = MAX_READINGS
        self._wait_for_end: Callable[[], Awaitable[Any]] | None = None

    def append_event(self, event: RunEventRecord) -> None:
        """Append an event of this run."""
        try:
            self._journal.append(self._session_id, event, self._run_id)
        except JournalLimitReached as exc:
            self._on_limit(exc)
            raise

    def journal_queued(self, code: Any) -> None:
        """Record that the run exists, so that it survives the server though it has not started.

        `code` may be encoded.
        """
        if self._is_announced:
            return
        self._is_announced = True
        spec = self._spec
        context = None if spec.context is None else list(spec.context)
        self.append_event(
            RunQueued(
                self._run_id,
                code,
                spec.timeout_s,
                spec.idempotency_key,
                spec.is_dry_run,
                context,
            )
        )

    def journal_start(
        self,
        parent: str | None,
        step: int,
        filename: str,
        code: Any,
        *,
        stale_packages: list[str],
        detached: bool,
        context: Sequence[InputEntry],
    ) -> None:
        """Record that the run starts, or is resumed; `code` may be encoded."""
        self.has_started = True
        spec, recording = self._spec, self._spec.recording
        if spec.is_resumed and recording is not None:
            finished = [call for call in recording.calls if call.finished_sequence is not None]
            self.append_event(RunResumed(len(finished)))
            return
        start = RunStarted(
            run_id=self._run_id,
            parent_id=parent,
            step=step,
            code=code,
            name=filename,
            timeout_s=spec.timeout_s,
            idempotency_key=spec.idempotency_key,
            seed=self.seed,
            replayed_run=recording.start.run_id if recording else None,
            stale_packages=stale_packages,
            dry_run=spec.is_dry_run,
            approved_calls=list(spec.approvals),
            detached=detached,
            context=list(context),
        )
        self.append_event(start)

    def journal_suspended(self) -> None:
        """Record that this server leaves the run to the next one."""
        with suppress(JournalFailed):  # the run then counts as one that a crash has stopped
            self.append_event(RunSuspended())

    def journal_clock_readings(self, clocks: Any) -> None:
        """Record what the code has read from clocks, except for what is recorded already.

        Readings beyond the limit are not recorded, so that the run may differ when it is replayed.
        """
        if not clocks:
            return
        readings = {}
        for name, values in validate_readings(clocks).items():
            known = min(self._recorded_readings.get(name, 0), len(values))
            if known:
                self._recorded_readings[name] -= known
            new = values[known : known + self._readings_left]
            if new:
                self._readings_left -= len(new)
                readings[name] = new
        if readings:
            self.append_event(ClocksRead(readings))

    def journal_end(self, event: RunFinished) -> None:
        """Record the end of the run."""
        self.append_event(event)
        self._wait_for_end = self._journal.start_flush()

    async def catch_up(self) -> None:
        """Wait for the disk if much waits for it; raises `JournalFailed`."""
        if self._journal.is_behind:
            await self._journal.flush()

    async def flush(self) -> None:
        """Wait until a crash cannot lose anything recorded so far; raises `JournalFailed`."""
        await self._journal.flush()

    def flush_soon(self) -> None:
        """Commit what is recorded so far without waiting for it."""
        self._journal.flush_soon()

    async def wait_until_durable(self) -> None:
        """Wait until the end of the run is durable; raises `JournalFailed`."""
        if self._wait_for_end is not None:
            await self._wait_for_end()
            if self._journal.survives_machine:
                await self._journal.sync()
