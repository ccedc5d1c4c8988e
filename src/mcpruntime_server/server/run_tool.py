"""The tool `run_code`: it starts runs, waits for them, and hands them what they wait for.

A run belongs to its session; a request only looks at it. So a request may be over long before its run is, and another
one goes on looking where it left off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.mcpserver import Context
from mcp.types import (
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
)

from ..capabilities.inputs.sources import resolve_context
from ..capabilities.inputs.store import InputStore
from ..capabilities.skills.auto_save import AutoSaver
from ..config import Config
from ..errors import InvalidRequest, NotFound, Unavailable
from ..journal.recording import load_recording
from ..journal.rows import RunRow, SessionRow
from ..runtime.pending_questions import MODEL_APPROVER, PendingQuestion
from ..runtime.plan import decide_approvals
from ..runtime.run import Run
from ..runtime.run_history import load_report
from ..runtime.run_report import RunReport
from ..runtime.runtime import Runtime
from ..runtime.session import Session, commit_key
from . import elicitation, sampling
from .delivery import DeliveryCursor, FindCursor
from .result_format import RunResult, build_run_result, run_call_result
from .run_progress import register_watcher, wait_for_run, wants_progress
from .session_resolver import LOCAL_PRINCIPAL, SessionResolver

INPUT_REQUIRED_VERSION = "2026-07-28"  # the first protocol in which a result can ask for input
MAX_QUESTION_ROUNDS = 8  # of questions in one request; the SDK's clients give up after ten
APPROVAL_FORM = (
    "approval"  # names the form in such a result; questions to a model have names of their own
)
IDEMPOTENCY_KEY_META = (
    "mcpruntime/idempotency-key"  # in a request's _meta: the same key again is the same request
)
MAX_IDEMPOTENCY_KEY_CHARS = 200
REMOTE_POLL_INTERVAL_S = 0.5  # between looks at a run that another server has
CANCEL_TIMEOUT_S = 30.0  # for a cancelled run to end: it is interrupted, then killed

ToolResponse = CallToolResult | InputRequiredResult


class RunToolHandler:
    """Starts runs, and finds those that were started."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        sessions: SessionResolver,
        find_cursor: FindCursor,
        inputs: InputStore,
        evolution: AutoSaver | None = None,
    ) -> None:
        self._evolution = evolution
        self._config = config
        self._runtime = runtime
        self._sessions = sessions
        self._inputs = inputs
        self.find_cursor = find_cursor

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
        """Start a run, or find the one that the same request has started before, and wait for it."""
        key = idempotency_key(ctx)
        if (
            key is not None
            and (again := await self._find_previous_result(session, key)) is not None
        ):
            return again
        found = await self._sessions.resolve_session(session)
        inputs = None
        if context is not None:
            with found.keep_open():
                await self._runtime.wait_for_files(found.id)
                inputs = await resolve_context(self._inputs, context, found.tip)
        limit_s = timeout_s or self._config.sandbox.timeout_s
        run = found.start_run(
            code, limit_s, key, detached=background, dry_run=dry_run, context=inputs
        )
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
        """Wait for something new of a run, having answered what it waits for, or cancelled it."""
        self.find_cursor(ctx).start_request(run)
        found = await self.find_run(run)
        if isinstance(found, RunReport) and answers is None and not cancel:
            found = await self._wait_for_remote_run(found, wait_s)
        if isinstance(found, RunReport):
            return await self._handle_journaled_run(ctx, found, answers, wait_s, cancel=cancel)
        session, live = found
        if cancel:
            session.cancel_run(live)
            with anyio.move_on_after(CANCEL_TIMEOUT_S):
                await live.wait_until_finished()
        if answers is not None:
            by_model = self._config.policy.approver == MODEL_APPROVER
            live.questions.answer_questions(answers, MODEL_APPROVER, may_approve=by_model)
            await self._wait_until_received(live)
        return await self._watch_run(ctx, session, live, wait_s, is_owner=False)

    async def receive_input_responses(
        self, ctx: Context[Any], state: str, wait_s: float | None
    ) -> ToolResponse:
        """Take what the client has answered, and go on waiting for the run that asked."""
        name, rounds, form, asks_name = state.split(" ")
        found = await self.find_run(name)
        if isinstance(found, RunReport):
            return self.build_report_result(found, await self._load_session_handle(found))
        session, run = found
        there = self._runtime.find_active_run(asks_name, LOCAL_PRINCIPAL)
        if there is None:  # an agent that does not work any more
            return await self._watch_run(
                ctx, session, run, wait_s, is_owner=False, rounds=int(rounds)
            )
        asks = there[1]
        given = ctx.input_responses or {}
        result = given.get(APPROVAL_FORM)
        questions = elicitation.questions_of_form(form, elicitation.pending_approvals(asks))
        put_aside = False
        if questions and isinstance(result, ElicitResult):
            put_aside = not await self.receive_form(asks, questions, result)
        if sampling.receive_responses(asks, given):
            await self._wait_until_received(asks)
        elif put_aside or given.keys() != {
            APPROVAL_FORM
        }:  # what nobody has answered now waits for whoever attaches
            return await self.build_progress_result(self.find_cursor(ctx), session, run)
        return await self._watch_run(ctx, session, run, wait_s, is_owner=False, rounds=int(rounds))

    async def _wait_until_received(self, run: Run) -> None:
        with anyio.move_on_after(CANCEL_TIMEOUT_S):
            await run.wait_for_receipt()

    async def receive_form(
        self, run: Run, questions: Sequence[PendingQuestion], result: ElicitResult
    ) -> bool:
        """Answer what was asked with a form that a person has filled in; return whether anything was."""
        answers = elicitation.parse_decisions(questions, result)
        if answers:
            run.questions.answer_questions(answers, "a person, in the client", may_approve=True)
            await self._wait_until_received(run)
        return bool(answers)

    # finding runs -----------------------------------------------------------------------------------

    async def _find_previous_result(self, session: str | None, key: str) -> CallToolResult | None:
        """Return what was answered to the same request before, if that is over.

        Between the last look at the session and the return nothing else happens: the caller may start the run.
        """
        journal = self._runtime.journal
        found = await self._sessions.resolve_session(session)
        run = found.queue.find_by_key(key)
        if run is None:
            row = await journal.find_run_by_key(found.id, key)
            found = await self._sessions.resolve_session(session)
            run = found.queue.find_by_key(key) or (row.id if row and row.is_finished else None)
        if run is None or found.queue.find_active(run) is not None:
            return None
        return self.build_report_result(await load_report(journal, run), found.handle)

    async def find_run(self, run: str) -> tuple[Session, Run] | RunReport:
        """Return a run that is under way, with its session, or else what the journal has of it."""
        live = self._runtime.find_active_run(run, LOCAL_PRINCIPAL)
        if live is not None:
            return live
        row, session = await self.load_run_rows(run)
        if not row.is_finished:
            with suppress(
                Unavailable
            ):  # another server has it: what it has done so far can be told
                await self._runtime.open_session(session.id, LOCAL_PRINCIPAL)
            live = self._runtime.find_active_run(run, LOCAL_PRINCIPAL)
        return live or await load_report(self._runtime.journal, run)

    def agent_runs_of(self, run: Run) -> Iterator[Run]:
        """Yield what is under way of the agents that a run has begun."""
        return self._runtime.agent_runs(run.id)

    async def _wait_for_remote_run(
        self, report: RunReport, wait_s: float | None
    ) -> tuple[Session, Run] | RunReport:
        """Wait for a run that another server has: until it ends or asks something there, or goes on here.

        It is looked for, as answers are, and there is no progress to tell, so a request waits as if it wanted none.
        """
        found: tuple[Session, Run] | RunReport = report
        with anyio.move_on_after(self._config.server.wait_s if wait_s is None else wait_s):
            while isinstance(found, RunReport) and found.status in ("queued", "running"):
                await anyio.sleep(REMOTE_POLL_INTERVAL_S)
                found = await self.find_run(report.run_id)
        return found

    async def load_run_rows(self, run: str) -> tuple[RunRow, SessionRow]:
        """Return what the journal has of a run and of its session; raises `NotFound`."""
        journal = self._runtime.journal
        try:
            row = await journal.load_run(run)
            return row, await journal.find_session(row.session_id, LOCAL_PRINCIPAL)
        except NotFound:
            raise NotFound(
                f"There is no run {run!r:.80}.",
                remedy="A run's id is in the result that told of it.",
            ) from None

    async def _load_session_handle(self, report: RunReport) -> str:
        row = await self._runtime.journal.load_session(report.session_id)
        return row.name or row.id

    # runs that are over -----------------------------------------------------------------------------

    async def _handle_journaled_run(
        self,
        ctx: Context[Any],
        report: RunReport,
        answers: Mapping[str, Any] | None,
        wait_s: float | None,
        *,
        cancel: bool,
    ) -> ToolResponse:
        """Tell of a run that is not under way here; a plan can be committed."""
        if cancel:
            elsewhere = report.status in ("queued", "running")
            remedy = (
                "Cancel it through the server that has its session, or end that."
                if elsewhere
                else ""
            )
            raise InvalidRequest(
                f"Run {report.run_id} is not under way here: {report.status}.", remedy=remedy
            )
        if answers is None:
            handle = await self._load_session_handle(report)
            if report.status not in ("queued", "running"):
                cursor = self.find_cursor(ctx)
                report = cursor.select_undelivered(report)
                cursor.finish(report.run_id)
            return self.build_report_result(report, handle)
        if report.status != "waiting" or not any(
            wait.kind == "plan" for wait in report.pending_questions
        ):
            raise InvalidRequest(f"Run {report.run_id} waits for no answer: {report.status}.")
        session, run = await self._commit_plan(report.run_id, answers)
        return await self._watch_run(ctx, session, run, wait_s)

    async def _commit_plan(self, plan: str, answers: Mapping[str, Any]) -> tuple[Session, Run]:
        """Execute the code of a dry run again, making what is approved of its plan."""
        row, owner = await self.load_run_rows(plan)
        journal, policy = self._runtime.journal, self._config.policy
        recording = await load_recording(journal, row)
        approvals = decide_approvals(
            recording, answers, for_person=policy.approver == MODEL_APPROVER
        )
        if row.finished_at is not None and time.time() - row.finished_at > policy.expires_s:
            raise InvalidRequest(f"The plan of run {plan} has expired.", remedy="Plan it again.")
        before = await journal.find_run_by_key(owner.id, commit_key(plan))
        if before is not None:
            raise InvalidRequest(
                f"The plan of run {plan} was committed already.",
                remedy=f"Attach to run {before.id}, which did so.",
            )
        session = await self._runtime.find_session(owner.id, LOCAL_PRINCIPAL)
        if session.queue.find_by_key(commit_key(plan)) is not None:
            raise InvalidRequest(f"The plan of run {plan} is being committed already.")
        return session, session.commit_plan(recording, approvals, recording.start.timeout_s)

    # waiting ----------------------------------------------------------------------------------------

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
        """Wait for a run as one of those who watch it, and tell what there is."""
        with register_watcher(run, ctx, self.find_cursor(ctx), is_owner=is_owner):
            return await self._wait_and_ask(
                ctx, session, run, wait_s, until_update=not is_owner, rounds=rounds
            )

    async def _wait_and_ask(
        self,
        ctx: Context[Any],
        session: Session,
        run: Run,
        wait_s: float | None,
        *,
        until_update: bool,
        rounds: int,
    ) -> ToolResponse:
        """Wait for a run, asking people what it wants to know, and tell what there is."""
        settings, cursor = self._config.server, self.find_cursor(ctx)
        usual_s = settings.wait_progress_s if wants_progress(ctx) else settings.wait_s
        until = anyio.current_time() + (usual_s if wait_s is None else wait_s)
        while True:
            left_s = max(until - anyio.current_time(), 0.0)
            if left_s or run.finished.is_set():
                asks, questions = self._find_askable_questions(ctx, run)
                can_be_put = (
                    {question.id for question in questions}
                    if asks is run
                    else {run.questions.agent_question}
                )
                await wait_for_run(
                    run,
                    ctx,
                    cursor,
                    left_s,
                    until_update=until_update,
                    known_ids=set(cursor.delivered_questions(run.id)) - can_be_put,
                )
            asks, questions = self._find_askable_questions(ctx, run)
            if run.finished.is_set() or not questions or not left_s:
                break
            if supports_input_required(ctx):
                if rounds >= MAX_QUESTION_ROUNDS:
                    break
                return self._build_input_required(session, run, asks, questions, rounds + 1)
            if not await self._ask_client(ctx, session, run, asks, questions):
                break
            until = max(
                until, anyio.current_time() + 1.0
            )  # a person may take longer than a request
        if not run.finished.is_set():
            return await self.build_progress_result(cursor, session, run)
        report = cursor.select_undelivered(run.report)
        return await self.build_finished_result(cursor, session, run, report)

    def _find_askable_questions(
        self, ctx: Context[Any], run: Run
    ) -> tuple[Run, list[PendingQuestion]]:
        """Return what can be asked through this client now, and the run that asks it: `run`, or one of its agents'."""
        for each in (run, *self.agent_runs_of(run)):
            if questions := self._questions_for_client(ctx, each):
                return each, questions
        return run, []

    def _questions_for_client(self, ctx: Context[Any], run: Run) -> list[PendingQuestion]:
        """Return what can be asked through this client now: a person with forms, its model where it offers that."""
        asks_model = supports_input_required(ctx) or self._config.llm.effective_broker == "sampling"
        samples = asks_model and sampling.supports_sampling(ctx.client_capabilities)
        return [
            *(elicitation.pending_approvals(run) if elicitation.client_supports_forms(ctx) else ()),
            *(sampling.pending_model_questions(run) if samples else ()),
        ]

    def _build_input_required(
        self,
        session: Session,
        run: Run,
        asking_run: Run,
        questions: Sequence[PendingQuestion],
        rounds: int,
    ) -> InputRequiredResult:
        """Return the result by which a client of the newest protocol is asked."""
        run.audience.detach()
        forms, max_tokens = elicitation.select_approvals(questions), self._config.llm.max_tokens
        requests: dict[str, Any] = {
            each.id: sampling.build_sampling_request(each, max_tokens)
            for each in questions
            if each not in forms
        }
        if forms:
            requests[APPROVAL_FORM] = ElicitRequest(
                params=elicitation.build_approval_form(session.handle, run, asking_run, forms)
            )
        state = f"{run.id} {rounds} {elicitation.form_id(forms)} {asking_run.id}"
        return InputRequiredResult(input_requests=requests, request_state=state)

    async def _ask_client(
        self,
        ctx: Context[Any],
        session: Session,
        run: Run,
        asking_run: Run,
        questions: Sequence[PendingQuestion],
    ) -> bool:
        """Ask through a client of the older protocols; return whether something was answered."""
        if forms := elicitation.select_approvals(questions):
            params = elicitation.build_approval_form(session.handle, run, asking_run, forms)
            return await self._elicit_approval(ctx, asking_run, forms, params)
        is_answered = await sampling.sample_answers(
            ctx, asking_run, questions, self._config.llm.max_tokens
        )
        await self._wait_until_received(asking_run)
        return is_answered

    async def _elicit_approval(
        self,
        ctx: Context[Any],
        run: Run,
        questions: list[PendingQuestion],
        params: ElicitRequestFormParams,
    ) -> bool:
        """Have a person fill in a form; return whether something was answered."""
        answers: dict[str, str] = {}
        async with anyio.create_task_group() as tasks:

            async def elsewhere() -> None:
                await run.wait_until_answered(questions)
                tasks.cancel_scope.cancel()  # the question was answered in another place

            tasks.start_soon(elsewhere)
            with suppress(MCPError):  # the client cannot ask after all
                result = await ctx.session.elicit_form(
                    params.message, params.requested_schema, related_request_id=ctx.request_id
                )
                answers = elicitation.parse_decisions(questions, result)
            tasks.cancel_scope.cancel()
        still_open = {
            name: answer for name, answer in answers.items() if name in run.questions.open_questions
        }
        if still_open:
            run.questions.answer_questions(still_open, "a person, in the client", may_approve=True)
            await run.wait_for_receipt()
        return any(question.answer is not None for question in questions)

    async def build_finished_result(
        self, cursor: DeliveryCursor, session: Session, run: Run, report: RunReport
    ) -> CallToolResult:
        """Return the result of a finished run; raises its failure, if there is nothing to report."""
        if run.failure is not None:
            raise run.failure
        cursor.finish(run.id)
        result = self._build_run_result(
            report, session.handle
        )  # while the journal is being written
        result.note = " ".join(
            filter(
                None,
                (
                    result.note,
                    await run.wait_until_recorded(),
                    await self._keep_as_skill(run, report),
                ),
            )
        )
        return run_call_result(result)

    async def _keep_as_skill(self, run: Run, report: RunReport) -> str:
        """Have a run kept as a skill if it is worth it, and return what there is to say of that."""
        if self._evolution is None or report.status != "ok" or run.spec.is_dry_run:
            return ""
        if not self._evolution.should_consider(run.spec.code, report.value, len(report.calls)):
            return ""
        return await self._evolution.consider_run(await self._runtime.journal.load_run(run.id))

    async def build_progress_result(
        self, cursor: DeliveryCursor, session: Session, run: Run
    ) -> CallToolResult:
        """Return what there is of a run that continues without this request."""
        run.audience.detach()
        await run.announce()
        if run.finished.is_set():
            finished = cursor.select_undelivered(run.report)
            return await self.build_finished_result(cursor, session, run, finished)
        snapshot = run.snapshot_report()
        report = cursor.select_undelivered(snapshot)
        cursor.advance(snapshot, run.pending_ids)
        before = session.queue.count_before(run)
        waiting = session.queue.waiting_runs
        if before and waiting:
            first = waiting[0].id
            report.notes.append(
                f"Run {first} of this session comes first, which waits for an answer."
            )
        elif before:
            report.notes.append(queue_note(before, "run of this session", "runs of this session"))
        elif report.status == "queued":
            ahead = run.slots_ahead
            report.notes.append(
                queue_note(ahead, "other run", "other runs") if ahead else "It is about to begin."
            )
        return self.build_report_result(report, session.handle)

    def build_report_result(self, report: RunReport, handle: str) -> CallToolResult:
        """Tell of a run as the journal has it."""
        return run_call_result(self._build_run_result(report, handle))

    def _build_run_result(self, report: RunReport, handle: str) -> RunResult:
        return build_run_result(report, handle, self._config)


def queue_note(count: int, one: str, many: str) -> str:
    """Return the note that so many runs come before another."""
    return f"1 {one} comes first." if count == 1 else f"{count} {many} come first."


def supports_input_required(ctx: Context[Any]) -> bool:
    """Return whether a request's result can ask for input."""
    return ctx.protocol_version is not None and ctx.protocol_version >= INPUT_REQUIRED_VERSION


def idempotency_key(ctx: Context[Any]) -> str | None:
    """Return the idempotency key of a request, if its client gave one."""
    key = dict(ctx.request_context.meta or {}).get(IDEMPOTENCY_KEY_META)
    return None if key is None else str(key)[:MAX_IDEMPOTENCY_KEY_CHARS]
