"""What a run waits for: questions that must be answered before a call of its code is made.

A question is in the journal before anybody hears of it, so that it outlives the server. While a run waits, its time
limit stands still and its turn to execute is somebody else's.

Rule 1: an answer comes once. What it permits is journaled before it is acted on.
Rule 2: an approval holds for the arguments that it was asked for, unless the person says more.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from ..errors import CallFailed, Forbidden, InvalidRequest
from ..journal.events import ApprovedCall, QuestionAnswered, QuestionAsked, canonical_json
from ..journal.recording import QuestionSubject, RecordedCall, Recording, question_subject
from ..journal.store import Journal

APPROVAL_SCOPES: Mapping[str, str] = {
    "allow": "once",
    "allow_run": "run",
    "allow_session": "session",
}
APPROVAL_KIND = "approval"
IN_DOUBT_KIND = "in_doubt"
MODEL_REQUEST_KIND = "question"
ANSWER_WORDS: Mapping[str, tuple[str, ...]] = {
    APPROVAL_KIND: (*APPROVAL_SCOPES, "deny"),
    IN_DOUBT_KIND: ("again", "fail"),
}
MODEL_APPROVER = "model"
MAX_DENIALS = 3  # of a tool in one run; its other calls are refused unasked, or code could ask until somebody gives in
NO_DETAILS: Mapping[str, Any] = {}
MAX_REMEMBERED_ANSWERS = (
    10_000  # answered questions that a live run remembers, to tell who answers twice
)

logger = logging.getLogger(__name__)


@dataclass
class PendingQuestion:
    """One thing that a run waits for; `args` are those of the call as it would be made."""

    run_id: str
    asked: QuestionAsked
    target: str
    args: Mapping[str, Any]
    line: int | None
    answer: QuestionAnswered | None = None
    settled: anyio.Event = field(default_factory=anyio.Event)

    @property
    def id(self) -> str:
        """Its name, unique in the run."""
        return self.asked.question_id

    @property
    def covered_calls(self) -> list[tuple[str, Mapping[str, Any]]]:
        """All calls that the answer holds for: targets and arguments."""
        covered = [(each["target"], json.loads(each["sent"])) for each in self.asked.covered_calls]
        return [(self.target, self.args), *covered]


class QuestionHost(Protocol):
    """The run, as its questions know it."""

    def pause(self) -> None:
        """Have its time limit stand still, and let others execute."""
        ...

    async def resume(self) -> None:
        """End the pause, as soon as it may execute again."""
        ...

    def notify_watchers(self) -> None:
        """Tell who watches it that something has changed."""
        ...

    def set_stage(self, stage: str) -> None:
        """Tell who watches it what it is about."""
        ...


class PendingQuestions:
    """The questions of one run; `granted` are the targets that were allowed for the whole session."""

    def __init__(
        self,
        journal: Journal,
        session_id: str,
        run_id: str,
        host: QuestionHost,
        *,
        expires_s: float,
        allowed_targets: set[str],
    ) -> None:
        self.open_questions: dict[str, PendingQuestion] = {}
        self.agent_question = ""  # what is asked where agents of the run work
        self.find_origin_hints: Callable[[Mapping[str, Any]], Awaitable[list[str]]] | None = None
        self._journal = journal
        self._session_id = session_id
        self._run_id = run_id
        self._host = host
        self._expires_s = expires_s
        self._session_allowed = allowed_targets
        self._run_allowed: set[str] = set()
        self._denials: Counter[str] = Counter()  # targets of calls
        self._count = 0
        self._paused_calls: dict[
            int, anyio.CancelScope
        ] = {}  # calls that wait for something else than an answer
        self._answered: dict[str, QuestionAnswered] = {}
        self._reopened: dict[
            QuestionSubject, QuestionAsked
        ] = {}  # asked before the server died, and not answered
        self._early_answers: dict[
            str, tuple[Any, str]
        ] = {}  # by question: an answer that came before it is asked again
        self._undelivered_answers: dict[
            QuestionSubject, tuple[str, QuestionAnswered]
        ] = {}  # kind and answer that the code was not told of

    def restore(self, recording: Recording) -> None:
        """Go on with the questions of a run that has begun in another server."""
        self._count = len(recording.questions)
        self._answered = dict(recording.answers)
        self._reopened = dict(recording.pending_questions)
        for asked in recording.questions:
            answer = recording.answers.get(asked.question_id)
            if answer is not None and answer.scope == "run":
                self._run_allowed.add(answer.target)
            if answer is not None and answer.decision == "deny":
                self._denials[answer.target] += 1
            if answer is not None and answer.decision not in ("allow", "again"):
                self._undelivered_answers[question_subject(asked)] = asked.kind, answer

    def is_allowed(self, target: str) -> bool:
        """Return whether a person has allowed all calls of `target`."""
        return target in self._session_allowed or target in self._run_allowed

    def was_never_made(self, recorded: RecordedCall) -> bool:
        """Return whether a recorded call without an end was not made: a person had not allowed it yet, or refused."""
        mine = recorded.call_id, ""
        asked = self._reopened.get(mine)
        kind = asked.kind if asked is not None else self._undelivered_answers.get(mine, ("",))[0]
        return kind == APPROVAL_KIND

    async def ask(
        self,
        kind: str,
        call_number: int,
        target: str,
        args: Mapping[str, Any],
        line: int | None,
        covers: Iterable[ApprovedCall] = (),
        about: Mapping[str, Any] = NO_DETAILS,
    ) -> QuestionAnswered:
        """Ask whether call `number` is to be made, or what it is `about`, and wait for the answer."""
        key = call_number, canonical_json(about) if about else ""
        unheard = self._undelivered_answers.pop(key, None)
        if unheard is not None:
            return unheard[1]
        asked = self._reopened.pop(key, None)
        if asked is None and kind == APPROVAL_KIND and self._denials[target] >= MAX_DENIALS:
            return QuestionAnswered(
                "", "deny", answered_by=f"as {MAX_DENIALS} calls of it in this run were"
            )
        if asked is None:
            asked = await self._create_question(kind, call_number, args, list(covers), about)
        question = PendingQuestion(self._run_id, asked, target, args, line)
        self._host.pause()
        self.open_questions[question.id] = question
        try:
            if question.id in self._early_answers:
                self.receive_answer(question.id, *self._early_answers.pop(question.id))
            self._host.notify_watchers()
            with anyio.move_on_after(asked.expires_at - time.time()):
                await question.settled.wait()
            if question.answer is None:
                self._settle_question(question, QuestionAnswered(question.id, "expired"))
        finally:
            self.open_questions.pop(question.id, None)
            self._host.notify_watchers()
        if not self.is_paused:
            await self._host.resume()
        assert question.answer is not None, "it has just been settled"
        return question.answer

    @property
    def is_paused(self) -> bool:
        """Whether the run waits for something, so that its time stands still."""
        return bool(self.open_questions or self._paused_calls)

    @asynccontextmanager
    async def pause_for_call(self, call_number: int) -> AsyncIterator[None]:
        """Have the run wait for something else than an answer, for call `number`, which takes turns of its own.

        Raises `CallFailed` if the code waits no more.
        """
        self._host.pause()
        scope = self._paused_calls[call_number] = anyio.CancelScope()
        try:
            with scope:
                yield
        finally:
            del self._paused_calls[call_number]
        if scope.cancelled_caught:
            raise CallFailed("cancelled", "The code did not wait for the answer.")
        if not self.is_paused:
            await self._host.resume()

    def set_agent_question(self, stage: str) -> None:
        """Tell who watches the run what others wait for that it waits for; "" for nothing."""
        self.agent_question = stage
        self._host.set_stage(stage)

    async def _create_question(
        self,
        kind: str,
        call_number: int,
        args: Mapping[str, Any],
        covers: list[ApprovedCall],
        about: Mapping[str, Any],
    ) -> QuestionAsked:
        self._count += 1
        name = f"q{self._count}"
        hints = await self.origin_hints(args) if kind == APPROVAL_KIND else []
        asked = QuestionAsked(
            name, kind, call_number, time.time() + self._expires_s, covers, hints, about
        )
        self._journal.append(self._session_id, asked, self._run_id)
        await self._journal.flush()
        return asked

    async def origin_hints(self, args: Mapping[str, Any]) -> list[str]:
        """Return where text in the arguments of a call may have come from."""
        return await self.find_origin_hints(args) if self.find_origin_hints is not None else []

    def withdraw_call(self, call_number: int) -> None:
        """The code waits no more for call `number`."""
        if call_number in self._paused_calls:
            self._paused_calls[call_number].cancel()
        for question in list(self.open_questions.values()):
            if question.asked.call_id == call_number:
                self._settle_question(
                    question,
                    QuestionAnswered(
                        question.id, "deny", answered_by="the code, which did not wait"
                    ),
                )

    def answer_questions(self, given: Mapping[str, Any], by: str, *, may_approve: bool) -> None:
        """Answer questions, all of them or none; `*` answers those that are not named.

        Raises `InvalidRequest` for what is not open or is no answer, `Forbidden` where a person has to answer.
        """
        rest = (
            {name: given["*"] for name in self.open_questions if name not in given}
            if "*" in given
            else {}
        )
        chosen = {name: value for name, value in {**rest, **given}.items() if name != "*"}
        if not chosen:
            asked = (
                f"It asks {', '.join(self.open_questions)}: name them, or"
                if self.open_questions
                else "It asks nothing:"
            )
            raise InvalidRequest(
                f"Run {self._run_id} is given no answers.",
                remedy=f"{asked} attach without answers.",
            )
        settled = [(self._find_question(name), value) for name, value in chosen.items()]
        answers = [(question, parse_answer(question, value, by)) for question, value in settled]
        for question, _ in answers:
            if question.asked.kind == APPROVAL_KIND and not may_approve:
                raise Forbidden(
                    f"Question {question.id} of run {self._run_id} is for a person: may {question.target} be called?",
                    remedy=(
                        "They can answer with `mcpruntime-server approvals`, or in the client where that can ask them."
                    ),
                )
        for question, answer in answers:
            self._settle_question(question, answer)

    def receive_answer(self, question_id: str, answer: Any, by: str) -> None:
        """Take what a person has answered elsewhere: now, or when the run comes to ask again."""
        if question_id not in self.open_questions:
            self._early_answers[question_id] = answer, by
            return
        try:
            self.answer_questions({question_id: answer}, by, may_approve=True)
        except InvalidRequest as exc:
            logger.error(
                "an answer that was left for run %s could not be taken: %s", self._run_id, exc
            )

    def _find_question(self, question_id: str) -> PendingQuestion:
        question = self.open_questions.get(question_id)
        if question is None or question.answer is not None:
            known = self._answered.get(question_id)
            if known is not None:
                raise InvalidRequest(
                    f"Question {question_id} of run {self._run_id} was answered already: {known.decision}."
                )
            listed = (
                f"Its questions are {', '.join(self.open_questions)}."
                if self.open_questions
                else "It does not wait for an answer."
            )
            raise InvalidRequest(
                f"Run {self._run_id} has no question {question_id!r:.80}.", remedy=listed
            )
        return question

    def _settle_question(self, question: PendingQuestion, answer: QuestionAnswered) -> None:
        """Journal the answer and let the call go on."""
        self._journal.append(self._session_id, answer, self._run_id)
        question.answer = answer
        if answer.decision == "deny":
            self._denials[answer.target] += 1
        self._answered[question.id] = answer
        if len(self._answered) > MAX_REMEMBERED_ANSWERS:
            del self._answered[next(iter(self._answered))]
        if answer.scope == "session":
            self._session_allowed.add(answer.target)
        if answer.scope == "run":
            self._run_allowed.add(answer.target)
        if answer.scope != "once":
            for other in self.open_questions.values():
                if (
                    other.answer is None
                    and other.target == answer.target
                    and other.asked.kind == APPROVAL_KIND
                ):
                    self._settle_question(
                        other, QuestionAnswered(other.id, "allow", "once", answer.answered_by)
                    )
        question.settled.set()


def parse_answer(question: PendingQuestion, value: Any, by: str) -> QuestionAnswered:
    """Return an answer as the journal has it; raises `InvalidRequest` if it is none to this question."""
    kind = question.asked.kind
    if kind == MODEL_REQUEST_KIND:
        return QuestionAnswered(
            question.id, "result", "once", by, question.target, check_storable(question, value)
        )
    words = ANSWER_WORDS[kind]
    if isinstance(value, str) and value in words:
        decision = "allow" if value in APPROVAL_SCOPES else value
        return QuestionAnswered(
            question.id, decision, APPROVAL_SCOPES.get(value, "once"), by, question.target
        )
    if kind == IN_DOUBT_KIND and isinstance(value, dict) and value.keys() == {"result"}:
        return QuestionAnswered(
            question.id,
            "result",
            "once",
            by,
            question.target,
            check_storable(question, value["result"]),
        )
    more = ' or {"result": ...}' if kind == IN_DOUBT_KIND else ""
    raise InvalidRequest(
        f"{json.dumps(value, default=str)[:80]} is no answer to question {question.id}.",
        remedy=f"Answer with {', '.join(map(repr, words))}{more}.",
    )


def check_storable(question: PendingQuestion, value: Any) -> Any:
    """Return a value that somebody has answered with; raises `InvalidRequest` if it cannot be kept."""
    try:
        canonical_json(value)
    except ValueError as exc:
        raise InvalidRequest(f"The answer given for {question.id} cannot be kept. {exc}") from exc
    return value
