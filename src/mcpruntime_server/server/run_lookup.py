"""Finds runs by their ids: active here, active in another server, or finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import anyio

from ..errors import Unavailable
from ..journal.rows import RunRow, SessionRow
from ..runtime.run import Run
from ..runtime.run_history import find_own_run, load_report
from ..runtime.run_report import RunReport
from ..runtime.runtime import Runtime
from ..runtime.session import Session

REMOTE_POLL_INTERVAL_S = 0.5  # for a run that another server executes

RUN_ID_REMEDY = "A run's id is in the result of the call that started it."
UNDER_WAY = ("queued", "running")  # statuses of a run that another server may execute

FoundRun = tuple[Session, Run] | RunReport  # a run of this server, or what the journal has of one


class RunLookup:
    """Finds the runs of one principal."""

    def __init__(self, runtime: Runtime, principal: str) -> None:
        self.principal = principal
        self._runtime = runtime
        self._journal = runtime.journal
        self._loading = anyio.Lock(fast_acquire=True)

    async def find_run(self, run_id: str) -> FoundRun:
        """Return an active run with its session, or else the report of the run; raises `NotFound`.

        An unfinished run that no server holds is resumed here.
        """
        active = self.find_active_run(run_id)
        if active is not None:
            return active
        row, session = await self.load_run_rows(run_id)
        if not row.is_finished:
            with suppress(Unavailable):  # another server executes it
                await self._runtime.open_session(session.id, self.principal)
            active = self.find_active_run(run_id)
        if active is not None:
            return active
        async with self._loading:  # one report at a time: each may have megabytes
            return await load_report(self._journal, run_id)

    def find_active_run(self, run_id: str) -> tuple[Session, Run] | None:
        """Return a run that this server executes or has queued, with its session."""
        return self._runtime.find_active_run(run_id, self.principal)

    def agent_runs_of(self, run: Run) -> Iterator[Run]:
        """Yield the active runs of the agents that a run has started."""
        return self._runtime.agent_runs(run.id)

    async def wait_for_remote_run(self, report: RunReport, wait_s: float) -> FoundRun:
        """Wait for a run of another server until it ends, asks something, or continues here.

        The journal is polled, and there is no progress to report.
        """
        found: FoundRun = report
        with anyio.move_on_after(wait_s):
            while isinstance(found, RunReport) and found.status in UNDER_WAY:
                await anyio.sleep(REMOTE_POLL_INTERVAL_S)
                found = await self.find_run(report.run_id)
        await self._journal.sync()  # the other server may be doing so still
        return found

    async def load_run_rows(self, run_id: str) -> tuple[RunRow, SessionRow]:
        """Return the journal's rows of a run and its session; raises `NotFound`."""
        return await find_own_run(self._journal, run_id, self.principal, RUN_ID_REMEDY)

    async def load_request_time(self, row: RunRow) -> float:
        """Return when a run was asked for, in epoch seconds; it may have started later."""
        first = await self._journal.load_events(row.session_id, row.id, limit=1, damage=[])
        return first[0].recorded_at if first else row.started_at

    async def load_session_handle(self, report: RunReport) -> str:
        """Return what a client calls the session of a run."""
        row = await self._journal.load_session(report.session_id)
        return row.name or row.id
