"""The session in which an agent of a run works; it is stopped and closed when the agent ends.

The watchers of the run see what the agent's runs wait for, and what the agents of those wait for.
If its client can show pages, it can do so for them, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio

from ..journal.call_scope import CallScope
from ..journal.events import InputEntry
from .pending_questions import PendingQuestion
from .run import Run
from .run_report import RunReport
from .run_spec import RunSpec
from .runtime import Runtime
from .session import Session

STOP_TIMEOUT_S = 12.0  # a little longer than the link takes to interrupt code or kill its worker
WAITING_MESSAGE = (
    "run {} of a sub-agent waits for an answer: run_code(run='{}', ...), or `{}` by a person"
)

StatusCallback = Callable[[str], None]


class ChildSession:
    """A session for the runs of one agent."""

    def __init__(self, session: Session, timeout_s: float, parent: Run | None) -> None:
        self.id = session.id
        self._session = session
        self._timeout_s = timeout_s
        self._parent = parent
        self._shows_pages = parent is not None and parent.spec.shows_pages

    async def execute(
        self, code: str, report_status: StatusCallback, inputs: Sequence[InputEntry] = ()
    ) -> RunReport:
        """Execute code to its end, reporting what it waits for.

        Without `inputs`, the run has those of the run before it.

        Raises `McpRuntimeError` if the runtime failed.
        """
        spec = RunSpec(
            code,
            self._timeout_s,
            shows_pages=self._shows_pages,
            context=tuple(inputs) or None,
        )
        run = self._session.enqueue_run(spec)
        with self._pass_on_questions(run) as pass_on:
            while not run.finished.is_set():
                report_status(describe_pending(run))
                pass_on()
                await run.wait_for_update()
            report_status("")
        if run.ending.failure is not None:
            raise run.ending.failure
        note = await run.wait_until_recorded()
        if note:
            run.report.notes.append(note)
        return run.report

    @contextmanager
    def _pass_on_questions(self, run: Run) -> Iterator[Callable[[], None]]:
        """Yield what records in the parent's log the questions that a run waits for now."""
        passed_on: list[PendingQuestion] = []
        parent = self._parent

        def pass_on(current: Sequence[PendingQuestion]) -> None:
            if parent is None or parent.finished.is_set():
                return
            for question in [each for each in passed_on if each not in current]:
                passed_on.remove(question)
                parent.questions.remove_agent_question(question)
            for question in [each for each in current if each not in passed_on]:
                passed_on.append(question)
                parent.questions.add_agent_question(question)

        try:
            yield lambda: pass_on(run.questions.all_open_questions)
        finally:
            pass_on(())


def describe_pending(run: Run) -> str:
    """Return what a run waits for that somebody can answer; "" for nothing."""
    if run.questions.open_questions:
        return WAITING_MESSAGE.format(run.id, run.id, run.questions.answer_command)
    return run.questions.agent_question


@asynccontextmanager
async def open_child_session(
    runtime: Runtime, parent: CallScope, timeout_s: float
) -> AsyncIterator[ChildSession]:
    """Yield a session for an agent of the run `parent`; raises `Unavailable` if none is free."""
    row = await runtime.journal.load_session(parent.session_id)
    active = runtime.find_active_run(parent.run_id, row.principal)
    session = await runtime.open_agent_session(parent.run_id, row.principal)
    with session.keep_open():
        try:
            yield ChildSession(session, timeout_s, None if active is None else active[1])
        finally:
            with anyio.move_on_after(STOP_TIMEOUT_S, shield=True):
                await session.cancel_all_runs()
            runtime.retire_session(session)
