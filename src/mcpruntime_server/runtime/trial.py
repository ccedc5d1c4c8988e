"""Code put to the test: in a clean sandbox, where calls are answered from what was recorded and nothing is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from ..errors import ReplayDiverged
from ..journal.replay import Recording, load_recording
from .request import Request
from .session import Session
from .sessions import Runtime

Tried = tuple[Recording, ReplayDiverged | None]  # what happened, and where that left the recording
Try = Callable[[str, Recording], Awaitable[Tried]]


@asynccontextmanager
async def open_trial(runtime: Runtime, principal: str) -> AsyncIterator[Try]:
    """Yield what runs code with the answers, the chance and the clocks of a recording, each time without variables.

    Raises `Unavailable` if there is no room for one more session.
    """
    session = await runtime.scratch(None, principal)
    try:
        yield partial(attempt, runtime, session)
    finally:
        runtime.retire(session)


async def attempt(runtime: Runtime, session: Session, code: str, recording: Recording) -> Tried:
    """Run code with a recording, and return what happened; raises `McpRuntimeError` if nothing could."""
    run = session.submit(Request(code, recording.start.timeout_s, None, recording, fresh=True, looks_up=True))
    await run.over()
    if run.failure is not None:
        raise run.failure
    await run.files_stored.wait()
    assert run.replayer is not None, "it was given a recording"
    return await load_recording(runtime.journal, await runtime.journal.run(run.id)), run.replayer.divergence
