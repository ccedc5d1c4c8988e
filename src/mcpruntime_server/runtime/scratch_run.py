"""Runs code in a clean sandbox with the answers of a recording; nothing outside is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from ..errors import ReplayDiverged
from ..journal.recording import Recording, load_recording
from .run_spec import RunSpec
from .runtime import Runtime
from .session import Session

ScratchResult = tuple[Recording, ReplayDiverged | None]  # what happened, and where it diverged
ScratchRunner = Callable[[str, Recording], Awaitable[ScratchResult]]


@asynccontextmanager
async def open_scratch_runner(runtime: Runtime, principal: str) -> AsyncIterator[ScratchRunner]:
    """Yield a function that runs code with a recording, each time without variables.

    Raises `Unavailable` if there is no room for one more session.
    """
    session = await runtime.open_scratch_session(None, principal)
    try:
        yield partial(execute_in_scratch, runtime, session)
    finally:
        runtime.retire_session(session)


async def execute_in_scratch(
    runtime: Runtime, session: Session, code: str, recording: Recording
) -> ScratchResult:
    """Run code with a recording and return what happened; raises `McpRuntimeError`."""
    spec = RunSpec(
        code, recording.start.timeout_s, None, recording, starts_fresh=True, allow_lookups=True
    )
    run = session.enqueue_run(spec)
    await run.wait_until_finished()
    if run.failure is not None:
        raise run.failure
    await run.files_stored.wait()
    assert run.replayer is not None, "it was given a recording"
    row = await runtime.journal.load_run(run.id)
    return await load_recording(runtime.journal, row), run.replayer.divergence
