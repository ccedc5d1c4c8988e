"""Where an agent works that a run has begun: a session of its own, which is stopped and closed when the agent ends.

Whoever looks at the run is told what the agent's run waits for, be it for an agent of its own that waits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from ..journal.events import Input
from ..journal.scope import Scope
from .report import Report
from .request import Request
from .run import Run
from .session import Session
from .sessions import Runtime

STOP_S = 12.0  # for code to be interrupted, or its interpreter killed: a little longer than the link takes for that
WAITS = "run {} of a sub-agent waits for an answer: run_code(run='{}', ...), or `mcpruntime-server approvals {}`"

Tell = Callable[[str], None]


class Child:
    """The session of an agent."""

    def __init__(self, session: Session, timeout_s: float) -> None:
        self.id = session.id
        self._session = session
        self._timeout_s = timeout_s

    async def execute(self, code: str, tell: Tell, inputs: Sequence[Input] = ()) -> Report:
        """Run code to its end, telling what it waits for; raises `McpRuntimeError` if the runtime failed.

        It has the inputs of the run before it, unless some are given.
        """
        run = self._session.submit(Request(code, self._timeout_s, context=tuple(inputs) or None))
        while not run.finished.is_set():
            tell(waits_of(run))
            await run.news()
        tell("")
        if run.failure is not None:
            raise run.failure
        return run.report


def waits_of(run: Run) -> str:
    """Return what a run waits for, "" if for nothing that anybody could do something about."""
    return WAITS.format(run.id, run.id, run.id) if run.questions.open else run.questions.elsewhere


@asynccontextmanager
async def open_child(runtime: Runtime, parent: Scope, timeout_s: float) -> AsyncIterator[Child]:
    """Yield a session for an agent of the run `parent`; raises `Unavailable` if there is no room for one more."""
    row = await runtime.journal.session(parent.session)
    session = await runtime.begun_by(parent.run, row.principal)
    with session.held():
        try:
            yield Child(session, timeout_s)
        finally:
            with anyio.move_on_after(STOP_S, shield=True):
                await session.stop()
            runtime.retire(session)
