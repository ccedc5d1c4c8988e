"""The tool `run_code`: starts runs, waits for them, and gives them the answers that they wait for.

A run belongs to its session, and a request only watches it. So a request may return long before its
run is finished, and another request continues where it left off. A client sees no run that the
journal does not have: another server can resume it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, InputRequiredResult

from ..capabilities.inputs.store import InputStore
from ..capabilities.skills.saving import SkillSaver
from ..config import Config
from ..errors import Forbidden, InvalidRequest
from ..fair_turns import FairTurns
from ..runtime.pending_questions import (
    APPROVAL_KIND,
    BY_MODEL,
    MODEL_APPROVER,
    PendingQuestion,
    encode_large_answers,
)
from ..runtime.run import Run
from ..runtime.run_history import load_report
from ..runtime.run_report import RunReport
from ..runtime.runtime import Runtime
from ..runtime.session import Session
from .client_questions import (
    MAX_QUESTION_ROUNDS,
    ClientQuestions,
    RequestState,
    supports_input_required,
)
from .delivery import DeliveryCursor, FindCursor
from .permissions import may_approve
from .plan_commit import check_has_plan, commit_plan
from .remote_runs import answer_remote_run, cancel_remote_run
from .result_format import RunResult, build_run_result, run_call_result
from .run_lookup import UNDER_WAY, RunLookup
from .run_progress import register_watcher, wait_for_run, wants_progress
from .run_starter import RunStarter
from .session_resolver import SessionResolver
from .skill_tools import keep_as_skill

IDEMPOTENCY_KEY_META = "mcpruntime/idempotency-key"  # in `_meta`: names the request
MAX_IDEMPOTENCY_KEY_CHARS = 200
STOPPING_NOTE = "This server is stopping; the next one continues the run."
CANCEL_TIMEOUT_S = 30.0  # for a cancelled run to end: it is interrupted, then killed
RESUME_TIMEOUT_S = 20.0  # for a resumed run to ask again what a form answers
SMALL_RESULT_CHARS = 4_000  # it takes less than a millisecond to write
ANSWER_EXTRA_S = 1.0  # to wait after a person has answered, who may take longer than the request

ToolResponse = CallToolResult | InputRequiredResult


class RunToolHandler:
    """Carries out calls of `run_code`; long results are written in `turns`."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        principal: str,
        sessions: SessionResolver,
        find_cursor: FindCursor,
        inputs: InputStore,
        saver: SkillSaver,
        turns: FairTurns,
    ) -> None:
        self.find_cursor = find_cursor
        self.lookup = RunLookup(runtime, principal)
        self.questions = ClientQuestions(config, self.lookup, find_cursor)
        self._config = config
        self._runtime = runtime
        self._sessions = sessions
        self._starter = RunStarter(config.sandbox, runtime, inputs)
        self._saver = saver
        self._turns = turns

    async def start_run(
        self,
        ctx: Context[Any],
        code: str,
        session: str | None,
        timeout_s: float | None,
        wait_s: float | None,
        *,
        background: bool,
        dry_run: bool,
        context: Sequence[Any] | None = None,
    ) -> ToolResponse:
        """Start a run, or find the one that the same request has started, and wait for it."""
        key = idempotency_key(ctx)
        found = await self._sessions.resolve_session(session, ctx)
        handle = session or found.id
        if key is not None:
            previous = await self._find_previous_result(ctx, handle, key)
            if previous is not None:
                return previous
        found = await self._sessions.resolve_session(handle, ctx)
        run = await self._starter.start_run(
            found,
            code,
            timeout_s,
            key,
            detached=background,
            dry_run=dry_run,
            shows_pages=self.questions.can_show_pages(ctx),
            context=context,
        )
        if self._runtime.is_stopping:
            run.release_requests()
        if first_note := self._sessions.take_first_note(found):
            run.report.notes.append(first_note)
        return await self._watch_run(ctx, found, run, 0.0 if background else wait_s)

    async def attach_to_run(
        self,
        ctx: Context[Any],
        run: str,
        answers: Mapping[str, Any] | None,
        wait_s: float | None,
        *,
        cancel: bool,
    ) -> ToolResponse:
        """Wait for a run's end or its next question, after answering or cancelling it."""
        self.find_cursor(ctx).start_request(run)
        found = await self.lookup.find_run(run)
        if isinstance(found, RunReport) and answers is None and not cancel:
            limit_s = self._config.server.wait_s if wait_s is None else wait_s
            until = anyio.current_time() + limit_s
            found = await self.lookup.wait_for_remote_run(found, limit_s)
            wait_s = max(until - anyio.current_time(), 0.0)  # for a run that continues here
        if isinstance(found, RunReport):
            return await self._handle_journaled_run(ctx, found, answers, wait_s, cancel=cancel)
        session, active = found
        if cancel:
            session.cancel_run(active)
            with anyio.move_on_after(CANCEL_TIMEOUT_S):
                await active.wait_until_finished()
        if answers is not None:
            by_model = self._config.policy.approver == MODEL_APPROVER
            active.questions.answer_questions(
                await encode_large_answers(answers),
                BY_MODEL,
                may_approve=by_model and may_approve(ctx),
                shown_ids=self.find_cursor(ctx).delivered_questions(run),
            )
            await self.questions.wait_until_received(active)
        return await self._watch_run(ctx, session, active, wait_s, is_owner=False)

    async def receive_input_responses(
        self, ctx: Context[Any], state_text: str, wait_s: float | None
    ) -> ToolResponse:
        """Take what the client has answered, and continue to wait for the run that asked."""
        state = RequestState.decode(state_text)
        found = await self.lookup.find_run(state.run_id)
        if isinstance(found, RunReport):
            handle = await self.lookup.load_session_handle(found)
            return self.build_report_result(found, handle)
        session, run = found
        if run.spec.is_resumed:  # by this server, perhaps just now: its code asks again soon
            with anyio.move_on_after(RESUME_TIMEOUT_S):
                await wait_for_run(run, ctx, self.find_cursor(ctx))
        asking = self.lookup.find_active_run(state.asking_run_id)
        if asking is not None:  # else the agent that asked is finished
            continues = await self.questions.receive_responses(ctx, state, asking[1])
            if not continues:
                return await self.build_progress_result(self.find_cursor(ctx), session, run)
        return await self._watch_run(ctx, session, run, wait_s, is_owner=False, rounds=state.rounds)

    async def _find_previous_result(
        self, ctx: Context[Any], session: str, key: str
    ) -> CallToolResult | None:
        """Return the result of the finished run that the same request has started.

        Nothing is awaited between the last look at the session and the return of None, so that the
        caller can start the run.
        """
        journal = self._runtime.journal
        found = await self._sessions.resolve_session(session, ctx)
        run_id = found.queue.find_by_key(key)
        if run_id is None:
            row = await journal.find_run_by_key(found.id, key)
            found = await self._sessions.resolve_session(session, ctx)
            run_id = found.queue.find_by_key(key)
            if run_id is None and row is not None and row.is_finished:
                run_id = row.id
        if run_id is None or found.queue.find_active(run_id) is not None:
            return None
        return self.build_report_result(await load_report(journal, run_id), found.handle)

    # runs that are not active here ----------------------------------------------------------------

    async def _handle_journaled_run(
        self,
        ctx: Context[Any],
        report: RunReport,
        answers: Mapping[str, Any] | None,
        wait_s: float | None,
        *,
        cancel: bool,
    ) -> ToolResponse:
        """Report a run that is finished or belongs to another server; a plan can be committed."""
        row, _ = await self.lookup.load_run_rows(report.run_id)
        if not row.is_finished and (cancel or answers is not None):
            return await self._control_remote_run(ctx, report.run_id, answers, wait_s)
        if cancel:
            raise InvalidRequest(f"Run {report.run_id} is not active: {report.status}.")
        if answers is None:
            handle = await self.lookup.load_session_handle(report)
            if report.status not in UNDER_WAY:
                cursor = self.find_cursor(ctx)
                report = cursor.select_undelivered(report)
                cursor.finish(report.run_id)
            return self.build_report_result(report, handle)
        check_has_plan(report)
        by_model = self._config.policy.approver == MODEL_APPROVER
        session, run = await commit_plan(
            self._runtime,
            self.lookup,
            self._config.policy,
            report.run_id,
            answers,
            may_approve=by_model and may_approve(ctx),
        )
        return await self._watch_run(ctx, session, run, wait_s)

    async def cancel_elsewhere(self, run_id: str) -> None:
        """Let the server that executes a run cancel it, without waiting for it."""
        await self._runtime.journal.request_cancellation(run_id, BY_MODEL)

    async def _control_remote_run(
        self,
        ctx: Context[Any],
        run_id: str,
        answers: Mapping[str, Any] | None,
        wait_s: float | None,
    ) -> ToolResponse:
        """Answer a run that another server executes, or cancel it, and report it."""
        journal = self._runtime.journal
        if answers is None:
            await cancel_remote_run(journal, run_id, BY_MODEL, CANCEL_TIMEOUT_S)
            wait_s = 0.0
        else:
            by_model = self._config.policy.approver == MODEL_APPROVER
            check = partial(check_answerable, may_approve=by_model and may_approve(ctx))
            await answer_remote_run(journal, run_id, answers, BY_MODEL, check)
        return await self.attach_to_run(ctx, run_id, None, wait_s, cancel=False)

    # waiting --------------------------------------------------------------------------------------

    async def _watch_run(
        self,
        ctx: Context[Any],
        session: Session,
        run: Run,
        wait_s: float | None,
        *,
        is_owner: bool = True,
        rounds: int = 0,
    ) -> ToolResponse:
        """Wait for a run and return its report so far; the request that started it `is_owner`."""
        cursor = self.find_cursor(ctx)
        with register_watcher(run, ctx, cursor, is_owner=is_owner):
            return await self._wait_and_ask(ctx, cursor, session, run, wait_s, rounds=rounds)

    async def _wait_and_ask(
        self,
        ctx: Context[Any],
        cursor: DeliveryCursor,
        session: Session,
        run: Run,
        wait_s: float | None,
        *,
        rounds: int,
    ) -> ToolResponse:
        """Wait for a run, put its questions to the client, and return its report so far."""
        settings = self._config.server
        usual_s = settings.wait_progress_s if wants_progress(ctx) else settings.wait_s
        until = anyio.current_time() + (usual_s if wait_s is None else wait_s)
        while True:
            left_s = max(until - anyio.current_time(), 0.0)
            if left_s or run.finished.is_set():
                limit_s = left_s
                if self.questions.find_shown(ctx, run):
                    limit_s = min(left_s, cursor.form_left_s())
                await wait_for_run(run, ctx, cursor, limit_s, self._known_ids(ctx, cursor, run))
            asked = self.questions.find_askable(ctx, run)
            if run.finished.is_set() or run.audience.is_released or not left_s:
                break
            if not asked.questions:
                has_time = anyio.current_time() < until
                if has_time and not run.pending_ids - self._known_ids(ctx, cursor, run):
                    continue  # another request has just shown it to a person
                break
            if supports_input_required(ctx):
                if rounds >= MAX_QUESTION_ROUNDS:
                    break
                return self.questions.build_input_required(ctx, session, run, asked, rounds + 1)
            if not await self.questions.ask_client(ctx, session, run, asked):
                break
            until = max(until, anyio.current_time() + ANSWER_EXTRA_S)
        if not run.finished.is_set():
            return await self.build_progress_result(cursor, session, run)
        report = cursor.select_undelivered(run.report)
        return await self.build_finished_result(cursor, session, run, report)

    def _known_ids(self, ctx: Context[Any], cursor: DeliveryCursor, run: Run) -> set[str]:
        """Return the questions that need not be reported again, unless they can be asked now."""
        asked = self.questions.find_askable(ctx, run)
        askable = {question.id for question in asked.questions}
        if asked.run is not run:
            askable = {run.questions.agent_question}
        delivered = set(cursor.delivered_questions(run.id))
        next_ids = list(run.questions.open_questions)[:1]
        if delivered.issuperset(next_ids):  # the page that begins with it was delivered
            delivered.update(run.questions.open_questions)
        return (delivered - askable) | self.questions.find_shown(ctx, run)

    # results --------------------------------------------------------------------------------------

    async def build_finished_result(
        self, cursor: DeliveryCursor, session: Session, run: Run, report: RunReport
    ) -> CallToolResult:
        """Return the result of a finished run; raises its failure, if there is no report."""
        if run.ending.failure is not None:
            raise run.ending.failure
        cursor.finish(run.id)
        result = self._build_run_result(report, session.handle)  # while the journal is written
        notes = (
            result.note,
            await run.wait_until_recorded(),
            await keep_as_skill(self._saver, self._runtime.journal, run),
        )
        result.note = " ".join(filter(None, notes))
        if len(result.stdout) + len(result.stderr) > SMALL_RESULT_CHARS:
            await self._turns.wait()  # one commit of the journal lets many results go on
        return run_call_result(result)

    async def build_progress_result(
        self, cursor: DeliveryCursor, session: Session, run: Run
    ) -> CallToolResult:
        """Return the report so far of a run that continues without this request."""
        run.audience.detach()
        await run.announce()
        await self._turns.wait()
        if run.finished.is_set():
            finished = cursor.select_undelivered(run.report)
            return await self.build_finished_result(cursor, session, run, finished)
        snapshot = run.snapshot_report()
        report = cursor.select_undelivered(snapshot)
        queue_note = describe_queue(session, run)
        if queue_note:
            report.notes.append(queue_note)
        if run.audience.is_released:
            report.notes.append(STOPPING_NOTE)
        result = self._build_run_result(report, session.handle)
        shown = {question.id for question in result.waiting_for}
        cursor.advance(snapshot, shown | (run.pending_ids - set(run.questions.open_questions)))
        return run_call_result(result)

    def build_report_result(self, report: RunReport, handle: str) -> CallToolResult:
        """Return the result for a report."""
        return run_call_result(self._build_run_result(report, handle))

    def _build_run_result(self, report: RunReport, handle: str) -> RunResult:
        return build_run_result(report, handle, self._config)


def check_answerable(questions: Mapping[str, PendingQuestion], *, may_approve: bool) -> None:
    """Raise `Forbidden` if the client's model may not answer one of these questions."""
    asked = [name for name, each in questions.items() if each.asked.kind == APPROVAL_KIND]
    if asked and not may_approve:
        raise Forbidden(
            f"Question {asked[0]} is for a person.",
            remedy="A person answers it with `mcpruntime-server approvals`.",
        )


def describe_queue(session: Session, run: Run) -> str:
    """Return which runs come before a run; "" if it executes."""
    before = session.queue.count_before(run)
    waiting = session.queue.waiting_runs
    if before and waiting:
        return f"Run {waiting[0].id} of this session comes first, which waits for an answer."
    if before:
        return come_first(before, "run of this session", "runs of this session")
    if run.status != "queued":
        return ""
    ahead = run.slots_ahead
    return come_first(ahead, "other run", "other runs") if ahead else "It is about to start."


def come_first(count: int, one: str, many: str) -> str:
    """Return the note that so many runs come before another."""
    return f"1 {one} comes first." if count == 1 else f"{count} {many} come first."


def idempotency_key(ctx: Context[Any]) -> str | None:
    """Return the idempotency key of a request, if its client has sent one."""
    key = dict(ctx.request_context.meta or {}).get(IDEMPOTENCY_KEY_META)
    return None if key is None else str(key)[:MAX_IDEMPOTENCY_KEY_CHARS]
