"""Asks a client what a run waits for: a person by forms or pages, the client's model by sampling.

In the newest protocol the result of the request carries the questions, and the client sends its
request again with the answers. In the older ones the server sends requests of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.mcpserver import Context
from mcp.types import (
    ElicitRequest,
    ElicitResult,
    InputRequiredResult,
)

from ..config import Config
from ..protocol.payloads import JsonObject
from ..runtime.pending_questions import (
    CREDENTIAL_DECLINED,
    MODEL_APPROVER,
    MODEL_REQUEST_KIND,
    PendingQuestion,
)
from ..runtime.run import Run
from ..runtime.session import Session
from . import elicitation, sampling
from .delivery import FindCursor
from .permissions import check_may_approve, may_approve
from .run_lookup import RunLookup

INPUT_REQUIRED_VERSION = "2026-07-28"  # the first protocol whose results can ask for input
MAX_QUESTION_ROUNDS = 8  # in one request; the SDK's clients give up after ten
APPROVAL_FORM = "approval"  # the name of the form in a result; model requests have their own names
CREDENTIAL_PAGE = "credential"  # the name of the page in a result
PERSON = "a person, in the client"
DECLINED = "the client, which declined the form"  # perhaps without showing it
FORM_OPEN_S = 20.0  # without an answer; then another request asks: nobody says if it was dropped
PAGE_OPEN_S = 600.0  # without a credential; then another request shows the page again
RECEIPT_TIMEOUT_S = 30.0  # for the code to receive an answer


@dataclass(frozen=True)
class AskedQuestions:
    """Questions that a client can be asked now, and the run that asks them."""

    run: Run
    questions: Sequence[PendingQuestion]


@dataclass(frozen=True)
class RequestState:
    """What a client sends back with its answers, so that the server knows what they answer."""

    run_id: str  # that the request waits for
    rounds: int  # of questions so far
    form_id: str
    asking_run_id: str

    def encode(self) -> str:
        """Return the state as text for a client."""
        return f"{self.run_id} {self.rounds} {self.form_id} {self.asking_run_id}"

    @classmethod
    def decode(cls, text: str) -> RequestState:
        """Return the state that `encode` has written."""
        run_id, rounds, form_id, asking_run_id = text.split(" ")
        return cls(run_id, int(rounds), form_id, asking_run_id)


class ClientQuestions:
    """Asks clients, and gives their answers to the runs."""

    def __init__(self, config: Config, lookup: RunLookup, find_cursor: FindCursor) -> None:
        self._max_tokens = config.llm.max_tokens
        self._is_sampling_broker = config.llm.effective_broker == "sampling"
        self.asks_person = config.policy.approver != MODEL_APPROVER
        self._lookup = lookup
        self._find_cursor = find_cursor

    def can_show_pages(self, ctx: Context[Any]) -> bool:
        """Return whether the client can show a person the page for a credential."""
        return may_approve(ctx) and elicitation.can_open_pages(ctx.client_capabilities)

    def find_askable(self, ctx: Context[Any], run: Run) -> AskedQuestions:
        """Return the questions of `run`, or of one of its agents, that this client can be asked."""
        for each in (run, *self._lookup.agent_runs_of(run)):
            questions = self._questions_for_client(ctx, each)
            if questions:
                return AskedQuestions(each, questions)
        return AskedQuestions(run, ())

    def _questions_for_client(self, ctx: Context[Any], run: Run) -> list[PendingQuestion]:
        questions: list[PendingQuestion] = []
        if not run.questions.open_questions:
            return questions
        may_ask = self.asks_person and may_approve(ctx)
        if may_ask and elicitation.client_supports_forms(ctx):
            in_forms = self._find_cursor(ctx).questions_in_forms(run.id)
            approvals = elicitation.pending_approvals(run)
            questions += [each for each in approvals if each.id not in in_forms]
        if self.can_show_pages(ctx):
            in_forms = self._find_cursor(ctx).questions_in_forms(run.id)
            pending = run.questions.open_questions.values()
            questions += elicitation.select_page(
                each for each in pending if each.answer is None and each.id not in in_forms
            )
        asks_model = supports_input_required(ctx) or self._is_sampling_broker
        if asks_model and sampling.supports_sampling(ctx.client_capabilities):
            questions += sampling.pending_model_questions(run)
        return questions

    def find_shown(self, ctx: Context[Any], run: Run) -> set[str]:
        """Return the ids of what `run` waits for that the client shows in other forms already."""
        agent_question = run.questions.agent_question
        if not agent_question and not run.questions.open_questions:
            return set()
        cursor = self._find_cursor(ctx)
        shown = cursor.questions_in_forms(run.id)
        agent_runs = self._lookup.agent_runs_of(run)
        if agent_question and any(cursor.questions_in_forms(each.id) for each in agent_runs):
            shown.add(agent_question)
        return shown

    def build_input_required(
        self,
        ctx: Context[Any],
        session: Session,
        run: Run,
        asked: AskedQuestions,
        rounds: int,
    ) -> InputRequiredResult:
        """Return the result that asks a client; the run continues when the request has ended."""
        run.audience.detach()
        approvals = elicitation.select_approvals(asked.questions)
        requests: JsonObject = {
            each.id: sampling.build_sampling_request(each, self._max_tokens)
            for each in asked.questions
            if each.asked.kind == MODEL_REQUEST_KIND
        }
        shown = approvals or elicitation.select_page(asked.questions)
        form_id = elicitation.form_id(shown)
        if approvals:
            form = elicitation.build_approval_form(session.handle, run, asked.run, approvals)
            requests[APPROVAL_FORM] = ElicitRequest(params=form)
        elif shown:
            page = elicitation.build_page_request(session.handle, run, shown)
            requests[CREDENTIAL_PAGE] = ElicitRequest(params=page)
        if shown:
            ids = [each.id for each in shown]
            self._find_cursor(ctx).open_form(form_id, asked.run.id, ids, FORM_OPEN_S)
        state = RequestState(run.id, rounds, form_id, asked.run.id)
        return InputRequiredResult(input_requests=requests, request_state=state.encode())

    async def receive_responses(
        self, ctx: Context[Any], state: RequestState, asking_run: Run
    ) -> bool:
        """Give the answers in a request to the run that asked; return whether to continue waiting.

        A client that answers nothing gets what there is instead of another question.
        """
        self._find_cursor(ctx).close_form(state.form_id)
        responses = ctx.input_responses or {}
        result = responses.get(APPROVAL_FORM)
        approvals = elicitation.pending_approvals(asking_run)
        questions = elicitation.questions_of_form(state.form_id, approvals)
        was_dismissed = False
        if questions and isinstance(result, ElicitResult):
            check_may_approve(ctx)
            was_dismissed = not await self.receive_form(asking_run, questions, result)
        page = responses.get(CREDENTIAL_PAGE)
        if isinstance(page, ElicitResult):
            return await self.receive_page(ctx, state.form_id, asking_run, page)
        if await sampling.receive_responses(asking_run, responses):
            await self.wait_until_received(asking_run)
            return True
        return not was_dismissed and responses.keys() == {APPROVAL_FORM}

    async def receive_page(
        self, ctx: Any, form_id: str, asking_run: Run, result: ElicitResult
    ) -> bool:
        """Note what a person does with a page; return whether to wait for the run."""
        shown = elicitation.questions_of_page(form_id, asking_run.questions.open_questions.values())
        if shown and result.action == "accept":
            self._keep_page_open(ctx, form_id, asking_run, shown)
        elif result.action == "decline":
            await self._decline(asking_run, shown)
        return not shown or result.action != "cancel"

    def _keep_page_open(
        self, ctx: Any, form_id: str, run: Run, shown: Sequence[PendingQuestion]
    ) -> None:
        """Note that a person has the page, and need not be asked again meanwhile."""
        ids = [each.id for each in shown]
        self._find_cursor(ctx).open_form(form_id, run.id, ids, PAGE_OPEN_S)

    async def _decline(self, run: Run, shown: Sequence[PendingQuestion]) -> None:
        """Let the calls fail that wait for a credential."""
        names = [each.id for each in shown if each.id in run.questions.open_questions]
        if names:
            answers = dict.fromkeys(names, CREDENTIAL_DECLINED)
            run.questions.answer_questions(answers, PERSON, may_approve=True)
            await self.wait_until_received(run)

    async def receive_form(
        self, run: Run, questions: Sequence[PendingQuestion], result: ElicitResult
    ) -> bool:
        """Give the decisions in a form to the run; return whether there are any."""
        answers = elicitation.parse_decisions(questions, result)
        if answers:
            by = describe_author(result)
            run.questions.answer_questions(answers, by, may_approve=True)
            await self.wait_until_received(run)
        return bool(answers)

    async def wait_until_received(self, run: Run) -> None:
        """Wait until the code has received its answers."""
        with anyio.move_on_after(RECEIPT_TIMEOUT_S):
            await run.wait_for_receipt()

    # older protocols ------------------------------------------------------------------------------

    async def ask_client(
        self, ctx: Context[Any], session: Session, run: Run, asked: AskedQuestions
    ) -> bool:
        """Ask a client of an older protocol; return whether something was answered."""
        approvals = elicitation.select_approvals(asked.questions)
        if approvals:
            return await self._elicit_approvals(ctx, session, run, asked.run, approvals)
        if shown := elicitation.select_page(asked.questions):
            return await self._elicit_page(ctx, session, run, asked.run, shown)
        is_answered = await sampling.sample_answers(
            ctx, asked.run, asked.questions, self._max_tokens
        )
        await self.wait_until_received(asked.run)
        return is_answered

    async def _elicit_approvals(
        self,
        ctx: Context[Any],
        session: Session,
        run: Run,
        asking_run: Run,
        questions: Sequence[PendingQuestion],
    ) -> bool:
        """Have a person fill in a form, unless the questions are answered elsewhere first."""
        form = elicitation.build_approval_form(session.handle, run, asking_run, questions)
        cursor, form_id = self._find_cursor(ctx), elicitation.form_id(questions)
        answers: dict[str, str] = {}
        by = PERSON
        cursor.open_form(form_id, asking_run.id, [question.id for question in questions])
        try:
            async with anyio.create_task_group() as tasks:

                async def wait_for_other_answer() -> None:
                    await asking_run.wait_until_answered(questions)
                    tasks.cancel_scope.cancel()  # which closes the form

                tasks.start_soon(wait_for_other_answer)
                with suppress(MCPError):  # the client cannot show forms after all
                    result = await ctx.session.elicit_form(
                        form.message, form.requested_schema, related_request_id=ctx.request_id
                    )
                    answers = elicitation.parse_decisions(questions, result)
                    by = describe_author(result)
                tasks.cancel_scope.cancel()
        finally:
            cursor.close_form(form_id)
        open_ids = asking_run.questions.open_questions
        still_open = {name: answer for name, answer in answers.items() if name in open_ids}
        if still_open:
            asking_run.questions.answer_questions(still_open, by, may_approve=True)
            await asking_run.wait_for_receipt()
        return any(question.answer is not None for question in questions)

    async def _elicit_page(
        self,
        ctx: Context[Any],
        session: Session,
        run: Run,
        asking_run: Run,
        questions: Sequence[PendingQuestion],
    ) -> bool:
        """Show a person the page for a credential; return whether the run may go on soon."""
        cursor, form_id = self._find_cursor(ctx), elicitation.form_id(questions)
        message = elicitation.build_page_message(session.handle, run, questions)
        action = ""
        self._keep_page_open(ctx, form_id, asking_run, questions)
        try:
            async with anyio.create_task_group() as tasks:

                async def wait_for_other_answer() -> None:
                    await asking_run.wait_until_answered(questions)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(wait_for_other_answer)
                with suppress(MCPError):  # the client cannot show pages after all
                    result = await ctx.session.elicit_url(
                        message, questions[0].asked.url, form_id, related_request_id=ctx.request_id
                    )
                    action = result.action
                tasks.cancel_scope.cancel()
        finally:
            if action != "accept":
                cursor.close_form(form_id)
        if action == "decline":
            await self._decline(asking_run, questions)
        return action == "accept" or any(each.answer is not None for each in questions)


def describe_author(result: ElicitResult) -> str:
    """Return who has answered a form: a client may decline it without asking anybody."""
    return DECLINED if result.action == "decline" else PERSON


def supports_input_required(ctx: Context[Any]) -> bool:
    """Return whether the result of a request can ask its client for input."""
    return ctx.protocol_version is not None and ctx.protocol_version >= INPUT_REQUIRED_VERSION
