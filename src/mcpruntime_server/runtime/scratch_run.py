"""Code put to the test: in a clean sandbox, where calls are answered from what was recorded and nothing is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from ..errors import ReplayDiverged
from ..journal.recording import Recording, load_recording
from .run_spec import RunSpec
from .runtime import Runtime
from .session import Session

ScratchResult = tuple[
    Recording, ReplayDiverged | None
]  # what happened, and where that left the recording
ScratchRunner = Callable[[str, Recording], Awaitable[ScratchResult]]


@asynccontextmanager
async def open_scratch_runner(runtime: Runtime, principal: str) -> AsyncIterator[ScratchRunner]:
    """Yield what runs code with the answers, the chance and the clocks of a recording, each time without variables.

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
    """Run code with a recording, and return what happened; raises `McpRuntimeError` if nothing could."""
    run = session.enqueue_run(
        RunSpec(
            code, recording.start.timeout_s, None, recording, starts_fresh=True, allow_lookups=True
        )
    )
    await run.wait_until_finished()
    if run.failure is not None:
        raise run.failure
    await run.files_stored.wait()
    assert run.replayer is not None, "it was given a recording"
    return await load_recording(
        runtime.journal, await runtime.journal.load_run(run.id)
    ), run.replayer.divergence
