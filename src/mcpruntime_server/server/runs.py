"""The tool `run_code`: it starts runs, waits for them, and hands them what they wait for.

A run belongs to its session; a request only looks at it. So a request may be over long before its run is, and another
one goes on looking where it left off.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from ..config import Config
from ..errors import InvalidRequest, NotFound, Unavailable
from ..inputs.sources import resolve
from ..journal.replay import load_recording
from ..journal.rows import RunRow, SessionRow
from ..runtime.history import load_report
from ..runtime.plan import decide
from ..runtime.questions import MODEL, Question
from ..runtime.report import Report
from ..runtime.run import Run
from ..runtime.session import Session, commit_key
from ..runtime.sessions import Runtime
from ..skills.auto import Evolution
from . import asking, sampling
from .default import PRINCIPAL, DefaultSession
from .results import RunResult, answer_of, result_of
from .watch import asks_for_progress, wait_for, watching

MODERN = "2026-07-28"  # the first protocol in which a result can ask for input
ROUNDS = 8  # of questions in one request; the SDK's clients give up after ten
FORM = "approval"  # names the form in such a result; questions to a model have names of their own
KEY = "mcpruntime/idempotency-key"  # in a request's _meta: the same key again is the same request
KEY_CHARS = 200
ELSEWHERE_S = 0.5  # between looks at a run that another server has
CANCEL_S = 30.0  # for a cancelled run to end: it is interrupted, then killed
MAX_TOLD = 1_000  # runs that were told of before their end, of which it is known how much

Answer = CallToolResult | InputRequiredResult


class Runs:
    """Starts runs, and finds those that were started."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        default: DefaultSession,
        timed_out: Container[str],
        evolution: Evolution | None = None,
    ) -> None:
        self._evolution = evolution
        self._config = config
        self._runtime = runtime
        self._default = default
        self._timed_out = timed_out
        self._told: dict[str, dict[str, int]] = {}  # run to stream to characters, until its end is told, too

    async def start(
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
    ) -> Answer:
        """Start a run, or find the one that the same request has started before, and wait for it."""
        key = key_of(ctx)
        if key is not None and (again := await self._answered(session, key)) is not None:
            return again
        found = await self._default.find(session)
        inputs = None
        if context is not None:
            with found.held():
                await self._runtime.settle(found.id)
                inputs = await resolve(self._runtime.inputs, context, found.tip)
        limit_s = timeout_s or self._config.sandbox.timeout_s
        run = found.start(code, limit_s, key, detached=background, dry_run=dry_run, context=inputs)
        return await self._follow(ctx, found, run, 0.0 if background else wait_s)

    async def attach(
        self, ctx: Context[Any], run: str, answers: Mapping[str, Any] | None, wait_s: float | None, *, cancel: bool
    ) -> Answer:
        """Wait for something new of a run, having answered what it waits for, or cancelled it."""
        found = await self.find(run)
        if isinstance(found, Report) and answers is None and not cancel:
            found = await self._until_over(found, wait_s)
        if isinstance(found, Report):
            return await self._past(ctx, found, answers, wait_s, cancel=cancel)
        session, live = found
        if cancel:
            session.cancel_run(live)
            with anyio.move_on_after(CANCEL_S):
                await live.over()
        if answers is not None:
            by_model = self._config.policy.approver == MODEL
            live.questions.answer(answers, MODEL, may_approve=by_model)
            await self._heard(live)
        return await self._follow(ctx, session, live, wait_s, owns=False)

    async def answer_form(self, ctx: Context[Any], state: str, wait_s: float | None) -> Answer:
        """Take what the client has answered, and go on waiting for the run that asked."""
        name, rounds, form, asks_name = state.split(" ")
        found = await self.find(name)
        if isinstance(found, Report):
            return self.told(found, await self._handle_of(found))
        session, run = found
        there = self._runtime.live_run(asks_name, PRINCIPAL)
        if there is None:  # an agent that does not work any more
            return await self._follow(ctx, session, run, wait_s, owns=False, rounds=int(rounds))
        asks = there[1]
        given = ctx.input_responses or {}
        result = given.get(FORM)
        questions = asking.asked_by(form, asking.for_person(asks))
        put_aside = False
        if questions and isinstance(result, ElicitResult):
            put_aside = not await self.take_form(asks, questions, result)
        if sampling.take(asks, given):
            await self._heard(asks)
        elif put_aside or given.keys() != {FORM}:  # what nobody has answered now waits for whoever attaches
            return await self.so_far(session, run)
        return await self._follow(ctx, session, run, wait_s, owns=False, rounds=int(rounds))

    async def _heard(self, run: Run) -> None:
        with anyio.move_on_after(CANCEL_S):
            await run.heard()

    async def take_form(self, run: Run, questions: Sequence[Question], result: ElicitResult) -> bool:
        """Answer what was asked with a form that a person has filled in; return whether anything was."""
        answers = asking.decisions(questions, result)
        if answers:
            run.questions.answer(answers, "a person, in the client", may_approve=True)
            await self._heard(run)
        return bool(answers)

    # finding runs -----------------------------------------------------------------------------------

    async def _answered(self, session: str | None, key: str) -> CallToolResult | None:
        """Return what was answered to the same request before, if that is over.

        Between the last look at the session and the return nothing else happens: the caller may start the run.
        """
        journal = self._runtime.journal
        found = await self._default.find(session)
        run = found.run_of(key)
        if run is None:
            row = await journal.find_request(found.id, key)
            found = await self._default.find(session)
            run = found.run_of(key) or (row.id if row and row.is_over else None)
        if run is None or found.under_way(run) is not None:
            return None
        return self.told(await load_report(journal, run), found.handle)

    async def find(self, run: str) -> tuple[Session, Run] | Report:
        """Return a run that is under way, with its session, or else what the journal has of it."""
        live = self._runtime.live_run(run, PRINCIPAL)
        if live is not None:
            return live
        row, session = await self.row_of(run)
        if not row.is_over:
            with suppress(Unavailable):  # another server has it: what it has done so far can be told
                await self._runtime.session(session.id, PRINCIPAL)
            live = self._runtime.live_run(run, PRINCIPAL)
        return live or await load_report(self._runtime.journal, run)

    def agents_of(self, run: Run) -> Iterator[Run]:
        """Yield what is under way of the agents that a run has begun."""
        return self._runtime.agents_of(run.id)

    async def _until_over(self, report: Report, wait_s: float | None) -> tuple[Session, Run] | Report:
        """Wait for a run that another server has: until it ends or asks something there, or goes on here.

        It is looked for, as answers are, and there is no progress to tell, so a request waits as if it wanted none.
        """
        found: tuple[Session, Run] | Report = report
        with anyio.move_on_after(self._config.server.wait_s if wait_s is None else wait_s):
            while isinstance(found, Report) and found.status in ("queued", "running"):
                await anyio.sleep(ELSEWHERE_S)
                found = await self.find(report.run)
        return found

    async def row_of(self, run: str) -> tuple[RunRow, SessionRow]:
        """Return what the journal has of a run and of its session; raises `NotFound`."""
        journal = self._runtime.journal
        try:
            row = await journal.run(run)
            return row, await journal.find_session(row.session, PRINCIPAL)
        except NotFound:
            raise NotFound(
                f"There is no run {run!r:.80}.", remedy="A run's id is in the result that told of it."
            ) from None

    async def _handle_of(self, report: Report) -> str:
        row = await self._runtime.journal.session(report.session)
        return row.name or row.id

    # runs that are over -----------------------------------------------------------------------------

    async def _past(
        self,
        ctx: Context[Any],
        report: Report,
        answers: Mapping[str, Any] | None,
        wait_s: float | None,
        *,
        cancel: bool,
    ) -> Answer:
        """Tell of a run that is not under way here; a plan can be committed."""
        if cancel:
            elsewhere = report.status in ("queued", "running")
            remedy = "Cancel it through the server that has its session, or end that." if elsewhere else ""
            raise InvalidRequest(f"Run {report.run} is not under way here: {report.status}.", remedy=remedy)
        if answers is None:
            handle = await self._handle_of(report)
            return self.told(report if report.status in ("queued", "running") else self._rest_of(report), handle)
        if report.status != "waiting" or not any(wait.kind == "plan" for wait in report.waiting_for):
            raise InvalidRequest(f"Run {report.run} waits for no answer: {report.status}.")
        session, run = await self._commit(report.run, answers)
        return await self._follow(ctx, session, run, wait_s)

    async def _commit(self, plan: str, answers: Mapping[str, Any]) -> tuple[Session, Run]:
        """Execute the code of a dry run again, making what is approved of its plan."""
        row, owner = await self.row_of(plan)
        journal, policy = self._runtime.journal, self._config.policy
        recording = await load_recording(journal, row)
        approvals = decide(recording, answers, for_person=policy.approver == MODEL)
        if row.finished is not None and time.time() - row.finished > policy.expires_s:
            raise InvalidRequest(f"The plan of run {plan} has expired.", remedy="Plan it again.")
        before = await journal.find_request(owner.id, commit_key(plan))
        if before is not None:
            raise InvalidRequest(
                f"The plan of run {plan} was committed already.", remedy=f"Attach to run {before.id}, which did so."
            )
        session = await self._runtime.known_session(owner.id, PRINCIPAL)
        if session.run_of(commit_key(plan)) is not None:
            raise InvalidRequest(f"The plan of run {plan} is being committed already.")
        return session, session.commit(recording, approvals, recording.start.timeout_s)

    # waiting ----------------------------------------------------------------------------------------

    async def _follow(
        self, ctx: Context[Any], session: Session, run: Run, wait_s: float | None, *, owns: bool = True, rounds: int = 0
    ) -> Answer:
        """Wait for a run as one of those who watch it, and tell what there is."""
        with watching(run, ctx, self._timed_out, owns=owns):
            return await self._look(ctx, session, run, wait_s, until_news=not owns, rounds=rounds)

    async def _look(
        self, ctx: Context[Any], session: Session, run: Run, wait_s: float | None, *, until_news: bool, rounds: int
    ) -> Answer:
        """Wait for a run, asking people what it wants to know, and tell what there is."""
        settings = self._config.server
        usual_s = settings.wait_progress_s if asks_for_progress(ctx) else settings.wait_s
        until = anyio.current_time() + (usual_s if wait_s is None else wait_s)
        while True:
            left_s = max(until - anyio.current_time(), 0.0)
            if left_s or run.finished.is_set():
                asks, questions = self._asked(ctx, run)
                can_be_put = {question.id for question in questions} if asks is run else {run.questions.elsewhere}
                await wait_for(run, ctx, left_s, until_news=until_news, known=run.told_questions - can_be_put)
            asks, questions = self._asked(ctx, run)
            if run.finished.is_set() or not questions or not left_s:
                break
            if is_modern(ctx):
                if rounds >= ROUNDS:
                    break
                return self._input_required(session, run, asks, questions, rounds + 1)
            if not await self._ask(ctx, session, run, asks, questions):
                break
            until = max(until, anyio.current_time() + 1.0)  # a person may take longer than a request
        if not run.finished.is_set():
            return await self.so_far(session, run)
        return await self.end_of(session, run, run.last_report())

    def _asked(self, ctx: Context[Any], run: Run) -> tuple[Run, list[Question]]:
        """Return what can be asked through this client now, and the run that asks it: `run`, or one of its agents'."""
        for each in (run, *self.agents_of(run)):
            if questions := self._for_client(ctx, each):
                return each, questions
        return run, []

    def _for_client(self, ctx: Context[Any], run: Run) -> list[Question]:
        """Return what can be asked through this client now: a person with forms, its model where it offers that."""
        asks_model = is_modern(ctx) or self._config.llm.answered_by == "sampling"
        samples = asks_model and sampling.is_offered(ctx.client_capabilities)
        return [
            *(asking.for_person(run) if asking.can_ask(ctx) else ()),
            *(sampling.for_model(run) if samples else ()),
        ]

    def _input_required(
        self, session: Session, run: Run, asks: Run, questions: Sequence[Question], rounds: int
    ) -> InputRequiredResult:
        """Return the result by which a client of the newest protocol is asked."""
        run.detached = True
        forms, max_tokens = asking.approvals(questions), self._config.llm.max_tokens
        requests: dict[str, Any] = {
            each.id: sampling.request(each, max_tokens) for each in questions if each not in forms
        }
        if forms:
            requests[FORM] = ElicitRequest(params=asking.form(session.handle, run, asks, forms))
        state = f"{run.id} {rounds} {asking.name_of(forms)} {asks.id}"
        return InputRequiredResult(input_requests=requests, request_state=state)

    async def _ask(
        self, ctx: Context[Any], session: Session, run: Run, asks: Run, questions: Sequence[Question]
    ) -> bool:
        """Ask through a client of the older protocols; return whether something was answered."""
        if forms := asking.approvals(questions):
            params = asking.form(session.handle, run, asks, forms)
            return await self._ask_person(ctx, asks, forms, params)
        is_answered = await sampling.ask(ctx, asks, questions, self._config.llm.max_tokens)
        await self._heard(asks)
        return is_answered

    async def _ask_person(
        self, ctx: Context[Any], run: Run, questions: list[Question], params: ElicitRequestFormParams
    ) -> bool:
        """Have a person fill in a form; return whether something was answered."""
        answers: dict[str, str] = {}
        async with anyio.create_task_group() as tasks:

            async def elsewhere() -> None:
                await run.until_answered(questions)
                tasks.cancel_scope.cancel()  # the question was answered in another place

            tasks.start_soon(elsewhere)
            with suppress(MCPError):  # the client cannot ask after all
                result = await ctx.session.elicit_form(
                    params.message, params.requested_schema, related_request_id=ctx.request_id
                )
                answers = asking.decisions(questions, result)
            tasks.cancel_scope.cancel()
        still_open = {name: answer for name, answer in answers.items() if name in run.questions.open}
        if still_open:
            run.questions.answer(still_open, "a person, in the client", may_approve=True)
            await run.heard()
        return any(question.answer is not None for question in questions)

    async def end_of(self, session: Session, run: Run, report: Report) -> CallToolResult:
        """Tell what became of a run that is over; raises why, if there is nothing to report."""
        if run.failure is not None:
            raise run.failure
        self._told.pop(run.id, None)
        result = self._result(report, session.handle)  # while the journal is being written
        result.note = " ".join(filter(None, (result.note, await run.recorded(), await self._kept(run, report))))
        return answer_of(result)

    async def _kept(self, run: Run, report: Report) -> str:
        """Have a run kept as a skill if it is worth it, and return what there is to say of that."""
        if self._evolution is None or report.status != "ok" or run.request.dry_run:
            return ""
        if not self._evolution.looks_at(run.request.code, report.value, len(report.calls)):
            return ""
        return await self._evolution.consider(await self._runtime.journal.run(run.id))

    async def so_far(self, session: Session, run: Run) -> CallToolResult:
        """Tell what there is of a run that goes on without this request."""
        run.detached = True
        await run.announce()
        if run.finished.is_set():
            return await self.end_of(session, run, run.last_report())
        report = run.snapshot()
        self._note_told(report)
        run.told_questions.update(run.asks)
        before = session.runs_before(run)
        if before and session.waiting:
            first = session.waiting[0].id
            report.notes.append(f"Run {first} of this session comes first, which waits for an answer.")
        elif before:
            report.notes.append(come_first(before, "run of this session", "runs of this session"))
        elif report.status == "queued":
            ahead = run.runs_ahead
            report.notes.append(come_first(ahead, "other run", "other runs") if ahead else "It is about to begin.")
        return self.told(report, session.handle)

    def _note_told(self, report: Report) -> None:
        told = self._told.pop(report.run, {})
        for stream, text in (("stdout", report.stdout), ("stderr", report.stderr)):
            told[stream] = told.get(stream, 0) + len(text)
        self._told[report.run] = told
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]

    def _rest_of(self, report: Report) -> Report:
        """Return the report of a run that has ended since it was told of, with the output that was not told yet.

        Once its end was told, it is told whole to whoever asks again.
        """
        told = self._told.pop(report.run, {})
        return replace(
            report, stdout=report.stdout[told.get("stdout", 0) :], stderr=report.stderr[told.get("stderr", 0) :]
        )

    def told(self, report: Report, handle: str) -> CallToolResult:
        """Tell of a run as the journal has it."""
        return answer_of(self._result(report, handle))

    def _result(self, report: Report, handle: str) -> RunResult:
        return result_of(report, handle, self._config)


def come_first(count: int, one: str, many: str) -> str:
    """Return the note that so many runs come before another."""
    return f"1 {one} comes first." if count == 1 else f"{count} {many} come first."


def is_modern(ctx: Context[Any]) -> bool:
    """Return whether a request's result can ask for input."""
    return ctx.protocol_version is not None and ctx.protocol_version >= MODERN


def key_of(ctx: Context[Any]) -> str | None:
    """Return the idempotency key of a request, if its client gave one."""
    key = dict(ctx.request_context.meta or {}).get(KEY)
    return None if key is None else str(key)[:KEY_CHARS]
