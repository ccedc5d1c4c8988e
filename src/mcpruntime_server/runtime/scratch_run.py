"""Runs code in a clean sandbox with the answers of a recording; nothing outside is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..errors import ReplayDiverged
from ..journal.recording import Recording, load_recording
from .run_spec import RunSpec
from .runtime import Runtime
from .session import Session

ScratchResult = tuple[Recording, ReplayDiverged | None]  # what happened, and where it diverged


class ScratchRunner:
    """Runs code in a session of its own, each time as its first step."""

    def __init__(self, runtime: Runtime, session: Session) -> None:
        self._runtime = runtime
        self._session = session

    @property
    def session_id(self) -> str:
        """The session whose calls come from that code."""
        return self._session.id

    async def execute(self, code: str, recording: Recording) -> ScratchResult:
        """Run code with a recording and return what happened; raises `McpRuntimeError`."""
        spec = RunSpec(
            code, recording.start.timeout_s, None, recording, starts_fresh=True, allow_lookups=True
        )
        if self._session.tip is not None:
            await self._session.move_tip(None)
        run = self._session.enqueue_run(spec)
        await run.wait_until_finished()
        if run.ending.failure is not None:
            raise run.ending.failure
        await run.file_storage.wait()
        assert run.replayer is not None, "it was given a recording"
        journal = self._runtime.journal
        row = await journal.load_run(run.id)
        return await load_recording(journal, row), run.replayer.divergence


@asynccontextmanager
async def open_scratch_runner(runtime: Runtime, principal: str) -> AsyncIterator[ScratchRunner]:
    """Yield what runs code in a new scratch session.

    Raises `Unavailable` if there is no room for one more session.
    """
    session = await runtime.open_scratch_session(None, principal)
    try:
        yield ScratchRunner(runtime, session)
    finally:
        runtime.retire_session(session)
