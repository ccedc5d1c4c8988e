"""Where an agent works that a run has begun: a session of its own, which is stopped and closed when the agent ends.

Whoever looks at the run is told what the agent's run waits for, be it for an agent of its own that waits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from ..journal.call_scope import CallScope
from ..journal.events import InputEntry
from .run import Run
from .run_report import RunReport
from .run_spec import RunSpec
from .runtime import Runtime
from .session import Session

STOP_TIMEOUT_S = 12.0  # for code to be interrupted, or its interpreter killed: a little longer than the link takes for that
WAITING_MESSAGE = "run {} of a sub-agent waits for an answer: run_code(run='{}', ...), or `mcpruntime-server approvals {}`"

StatusCallback = Callable[[str], None]


class ChildSession:
    """The session of an agent."""

    def __init__(self, session: Session, timeout_s: float) -> None:
        self.id = session.id
        self._session = session
        self._timeout_s = timeout_s

    async def execute(
        self, code: str, report_status: StatusCallback, inputs: Sequence[InputEntry] = ()
    ) -> RunReport:
        """Run code to its end, telling what it waits for; raises `McpRuntimeError` if the runtime failed.

        It has the inputs of the run before it, unless some are given.
        """
        run = self._session.enqueue_run(
            RunSpec(code, self._timeout_s, context=tuple(inputs) or None)
        )
        while not run.finished.is_set():
            report_status(describe_pending(run))
            await run.wait_for_update()
        report_status("")
        if run.failure is not None:
            raise run.failure
        return run.report


def describe_pending(run: Run) -> str:
    """Return what a run waits for, "" if for nothing that anybody could do something about."""
    return (
        WAITING_MESSAGE.format(run.id, run.id, run.id)
        if run.questions.open_questions
        else run.questions.agent_question
    )


@asynccontextmanager
async def open_child_session(
    runtime: Runtime, parent: CallScope, timeout_s: float
) -> AsyncIterator[ChildSession]:
    """Yield a session for an agent of the run `parent`; raises `Unavailable` if there is no room for one more."""
    row = await runtime.journal.load_session(parent.session_id)
    session = await runtime.open_agent_session(parent.run_id, row.principal)
    with session.keep_open():
        try:
            yield ChildSession(session, timeout_s)
        finally:
            with anyio.move_on_after(STOP_TIMEOUT_S, shield=True):
                await session.cancel_all_runs()
            runtime.retire_session(session)
