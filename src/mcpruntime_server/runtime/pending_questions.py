"""What a run waits for: questions that must be answered before a call of its code is made.

A question is in the journal before any client sees it, so that it survives the server. While a run
waits, its clock stands still and other runs use its slot.

Rule 1: a question is answered once. The answer is journaled before anything acts on it.
Rule 2: an approval holds for the arguments that were shown, unless the person allows more.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import anyio

from ..errors import CallFailed, Conflict, Forbidden, InvalidRequest
from ..journal.call_scope import CredentialRequest
from ..journal.events import (
    AgentQuestionAnswered,
    AgentQuestionAsked,
    ApprovedCall,
    ClientModelRequest,
    EncodedJson,
    QuestionAnswered,
    QuestionAsked,
    canonical_json,
)
from ..journal.large_values import encode_if_large
from ..journal.recording import QuestionSubject, RecordedCall, Recording, question_subject
from .run_journal import RunJournal

APPROVAL_SCOPES: Mapping[str, str] = {
    "allow": "once",
    "allow_run": "run",
    "allow_session": "session",
}
APPROVAL_KIND = "approval"
IN_DOUBT_KIND = "in_doubt"
MODEL_REQUEST_KIND = "question"
CREDENTIAL_KIND = "credential"
CREDENTIAL_STORED, CREDENTIAL_DECLINED = "stored", "decline"  # decisions
ANSWER_WORDS: Mapping[str, tuple[str, ...]] = {
    APPROVAL_KIND: (*APPROVAL_SCOPES, "deny"),
    IN_DOUBT_KIND: ("again", "fail"),
    CREDENTIAL_KIND: (CREDENTIAL_DECLINED,),  # a stored one is noticed
}
MADE_AFTERWARDS = (
    "allow",
    "again",
    CREDENTIAL_STORED,
)  # after these, the call may have been made
MODEL_APPROVER = "model"
BY_MODEL = "the client's model"
MAX_DENIALS = (
    3  # of one tool in a run; further calls are denied unasked, so code cannot wear people down
)
MAX_REMEMBERED_ANSWERS = 10_000  # of a live run, to recognise a second answer

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class PendingQuestion:
    """One thing that a run waits for; `args` are those that the call would be made with."""

    run_id: str
    asked: QuestionAsked
    target: str
    args: Mapping[str, Any]
    line: int | None
    answer: QuestionAnswered | None = None
    settled: anyio.Event = field(default_factory=anyio.Event)

    @property
    def id(self) -> str:
        """Its id, unique in the run."""
        return self.asked.question_id

    @property
    def covered_calls(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The target and the arguments of every call that the answer holds for."""
        covered = [(each["target"], json.loads(each["sent"])) for each in self.asked.covered_calls]
        return [(self.target, self.args), *covered]


@dataclass(frozen=True)
class EncodedAnswer(EncodedJson):
    """A large answer of a model, as the journal gets it and as it was given."""

    value: Any

    def decode(self) -> Any:
        """Return the answer."""
        return self.value


async def encode_large_answers(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return answers, each large one as an `EncodedAnswer`; raises `InvalidRequest`."""
    answers: dict[str, Any] = {}
    for name, value in given.items():
        try:
            encoded = await encode_if_large(value)
        except ValueError as exc:
            raise _invalid_answer(name, exc) from exc
        answers[name] = value
        if encoded is not value:
            answers[name] = EncodedAnswer(encoded.data, value)
    return answers


class QuestionHost(Protocol):
    """What the questions need of their run."""

    def pause(self) -> None:
        """Stop the run's clock, and let others use its slot."""
        ...

    async def resume(self) -> None:
        """Start the run's clock again, as soon as it has a slot."""
        ...

    def notify_watchers(self) -> None:
        """Wake every task that waits for an update of the run."""
        ...

    def set_stage(self, stage: str) -> None:
        """Tell the watchers what the run is about."""
        ...


class Permissions:
    """Which targets people have allowed or denied beyond a single call.

    `session_allowed` is shared by the runs of a session.
    """

    def __init__(self, session_allowed: set[str]) -> None:
        self._session_allowed = session_allowed
        self._run_allowed: set[str] = set()
        self._denials: Counter[str] = Counter()

    def is_allowed(self, target: str) -> bool:
        """Return whether a person has allowed all calls of `target`."""
        return target in self._session_allowed or target in self._run_allowed

    def is_denied(self, target: str) -> bool:
        """Return whether `target` was denied so often in this run that nobody is asked again."""
        return self._denials[target] >= MAX_DENIALS

    def record_answer(self, answer: QuestionAnswered) -> None:
        """Note what an answer allows or denies."""
        if answer.decision == "deny":
            self._denials[answer.target] += 1
        if answer.scope == "session":
            self._session_allowed.add(answer.target)
        if answer.scope == "run":
            self._run_allowed.add(answer.target)


class QuestionHistory:
    """What a run has asked so far, and the answers; on a server that died, too.

    Code that is resumed asks again, and finds its earlier questions here.
    """

    def __init__(self) -> None:
        self._count = 0
        self._answers: dict[str, QuestionAnswered] = {}  # by question
        self._unanswered: dict[QuestionSubject, QuestionAsked] = {}
        # The kind of a question, and an answer that the code may not have received.
        self._undelivered: dict[QuestionSubject, tuple[str, QuestionAnswered]] = {}
        self._declined_urls: set[str] = set()  # of credentials that nobody is asked for again

    def restore(self, recording: Recording) -> None:
        """Restore what was asked on a server that died."""
        self._count = len(recording.questions)
        self._answers = dict(recording.answers)
        self._unanswered.update(recording.pending_questions)
        for asked in recording.questions:
            answer = recording.answers.get(asked.question_id)
            if answer is None:
                continue
            self._note_declined(asked, answer)
            if answer.decision not in MADE_AFTERWARDS:
                self._undelivered[question_subject(asked)] = asked.kind, answer

    def new_question_id(self) -> str:
        """Return the id of the next question."""
        self._count += 1
        return f"q{self._count}"

    def kind_of(self, subject: QuestionSubject) -> str:
        """Return the kind of the earlier question about `subject`; "" if there was none."""
        if subject in self._unanswered:
            return self._unanswered[subject].kind
        return self._undelivered[subject][0] if subject in self._undelivered else ""

    def take_answer(self, subject: QuestionSubject) -> QuestionAnswered | None:
        """Return the earlier answer about `subject`, once."""
        _, answer = self._undelivered.pop(subject, ("", None))
        return answer

    def take_question(self, subject: QuestionSubject) -> QuestionAsked | None:
        """Return the earlier question about `subject` that has no answer yet, once."""
        return self._unanswered.pop(subject, None)

    def find_answer(self, question_id: str) -> QuestionAnswered | None:
        """Return what a question was answered with."""
        return self._answers.get(question_id)

    def has_declined(self, url: str) -> bool:
        """Return whether a person does not want to store the credential for an address."""
        return url in self._declined_urls

    def record_answer(self, asked: QuestionAsked, answer: QuestionAnswered) -> None:
        """Remember the answer to a question, to recognise a second one."""
        self._note_declined(asked, answer)
        self._answers[answer.question_id] = replace(answer, value=None)  # which may be large
        if len(self._answers) > MAX_REMEMBERED_ANSWERS:
            del self._answers[next(iter(self._answers))]

    def _note_declined(self, asked: QuestionAsked, answer: QuestionAnswered) -> None:
        """Note that a person does not want to store a credential: code cannot wear people down."""
        if asked.kind == CREDENTIAL_KIND and answer.decision == CREDENTIAL_DECLINED:
            self._declined_urls.add(asked.url)


class WaitingTimer:
    """How long a run has waited for answers; it runs while any question is open."""

    def __init__(self) -> None:
        self._waited_s = 0.0  # up to `_started_at`
        self._started_at: float | None = None

    def start(self) -> None:
        """Count from now on, unless it does already."""
        if self._started_at is None:
            self._started_at = time.perf_counter()

    def stop(self) -> None:
        """Count no more."""
        self._waited_s, self._started_at = self.measure(), None

    def measure(self) -> float:
        """Return the seconds until now."""
        if self._started_at is None:
            return self._waited_s
        return self._waited_s + time.perf_counter() - self._started_at


class PendingQuestions:
    """The questions of one run."""

    def __init__(
        self,
        journal: RunJournal,
        run_id: str,
        host: QuestionHost,
        find_origin_hints: Callable[[Mapping[str, Any]], Awaitable[list[str]]],
        *,
        expires_s: float,
        allowed_targets: set[str],
        approvals_command: str,
        shows_pages: bool = False,
    ) -> None:
        self.open_questions: dict[str, PendingQuestion] = {}
        self.timer = WaitingTimer()
        self.agent_question = ""  # what the agents of the run wait for
        self.agent_questions: list[PendingQuestion] = []  # the same, agents of agents included
        self.permissions = Permissions(allowed_targets)
        self.find_origin_hints = find_origin_hints
        self._journal = journal
        self._run_id = run_id
        self._host = host
        self._expires_s = expires_s
        self._approvals_command = approvals_command
        self._shows_pages = shows_pages
        self._paused_calls: dict[int, anyio.CancelScope] = {}  # they wait, but for no answer
        self._history = QuestionHistory()
        self._early_answers: dict[str, tuple[Any, str]] = {}  # answer and author, by question

    def restore(self, recording: Recording) -> None:
        """Restore the questions of a run that another server has started."""
        self._history.restore(recording)
        for answer in recording.answers.values():
            self.permissions.record_answer(answer)

    def was_never_made(self, recorded: RecordedCall) -> bool:
        """Return whether a recorded call without an end was certainly not made.

        That is so if a person had not allowed it yet, or had denied it, or if its credential was
        missing.
        """
        kind = self._history.kind_of((recorded.call_id, ""))
        return kind in (APPROVAL_KIND, CREDENTIAL_KIND)

    async def ask(
        self,
        kind: str,
        call_number: int,
        target: str,
        args: Mapping[str, Any],
        line: int | None,
        covers: Iterable[ApprovedCall] = (),
        model_request: ClientModelRequest | None = None,
        credential: CredentialRequest | None = None,
    ) -> QuestionAnswered:
        """Ask whether a call may be made, or for what it needs; return the answer."""
        subject = call_number, canonical_json(model_request) if model_request else ""
        answer = self._history.take_answer(subject)
        if answer is not None:
            return answer
        asked = self._history.take_question(subject)
        if asked is None:
            if kind == APPROVAL_KIND and self.permissions.is_denied(target):
                by = f"the server, as {MAX_DENIALS} calls of it in this run were refused"
                return QuestionAnswered("", "deny", answered_by=by)
            asked = await self._create_question(
                kind, call_number, args, list(covers), model_request, credential
            )
        question = PendingQuestion(self._run_id, asked, target, args, line)
        self._host.pause()
        self.timer.start()
        self.open_questions[question.id] = question
        try:
            if question.id in self._early_answers:
                self.receive_answer(question.id, *self._early_answers.pop(question.id))
            self._host.notify_watchers()
            with anyio.move_on_after(asked.expires_at - time.time()):
                await self._wait_for_answer(question, credential)
            if question.answer is None:
                self._settle_question(question, QuestionAnswered(question.id, "expired"))
        finally:
            self.open_questions.pop(question.id, None)
            if not self.open_questions:
                self.timer.stop()
            self._host.notify_watchers()
        if not self.is_paused:
            await self._host.resume()
        assert question.answer is not None, "it has just been settled"
        return question.answer

    async def _wait_for_answer(
        self, question: PendingQuestion, credential: CredentialRequest | None
    ) -> None:
        """Wait until a question is answered, or the credential that it asks for is stored."""
        if credential is None:
            await question.settled.wait()
            return

        async def watch() -> None:
            await credential.wait_until_stored()
            if question.answer is None:
                self._settle_question(question, QuestionAnswered(question.id, CREDENTIAL_STORED))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await question.settled.wait()
            tasks.cancel_scope.cancel()

    def may_ask_for_credential(self, call_number: int, url: str) -> bool:
        """Return whether a person may be asked on behalf of a call: nobody has declined before.

        The client of a run that is resumed is not known; it goes on with what was asked.
        """
        was_asked = self._history.kind_of((call_number, "")) == CREDENTIAL_KIND
        return not self._history.has_declined(url) and (self._shows_pages or was_asked)

    @property
    def all_open_questions(self) -> list[PendingQuestion]:
        """What the run waits for, and what its agents wait for."""
        return [*self.open_questions.values(), *self.agent_questions]

    @property
    def answer_command(self) -> str:
        """The command with which a person lists these questions, and answers them."""
        return f"{self._approvals_command} {self._run_id}"

    def asks_about(self, call_number: int) -> bool:
        """Return whether a question about call `call_number` is open."""
        return any(each.asked.call_id == call_number for each in self.open_questions.values())

    @property
    def is_paused(self) -> bool:
        """Whether the run waits for something, so that its clock stands still."""
        return bool(self.open_questions or self._paused_calls)

    @asynccontextmanager
    async def pause_for_call(self, call_number: int) -> AsyncIterator[None]:
        """Pause the run while call `call_number` waits for something that needs slots of its own.

        Raises `CallFailed` if the code no longer waits for the call.
        """
        self._host.pause()
        scope = self._paused_calls[call_number] = anyio.CancelScope()
        try:
            with scope:
                yield
        finally:
            del self._paused_calls[call_number]
        if not self.is_paused:
            await self._host.resume()
        if scope.cancelled_caught:
            raise CallFailed("cancelled", "The code did not wait for the answer.")

    def report_progress(self, stage: str) -> None:
        """Tell the watchers of the run how far one of its calls is; "" if nothing takes long."""
        if not self.agent_question:
            self._host.set_stage(stage)

    def set_agent_question(self, stage: str) -> None:
        """Tell the watchers of the run what its agents wait for; "" for nothing."""
        self.agent_question = stage
        self._host.set_stage(stage)

    def add_agent_question(self, question: PendingQuestion) -> None:
        """Record that an agent of the run waits for an answer."""
        self.agent_questions.append(question)
        asked = vars(question.asked)
        self._journal.append_event(
            AgentQuestionAsked(asking_run=question.run_id, target=question.target, **asked)
        )
        self._host.notify_watchers()

    def remove_agent_question(self, question: PendingQuestion) -> None:
        """Record that an agent of the run no longer waits for an answer."""
        self.agent_questions.remove(question)
        answer = question.answer or QuestionAnswered(question.id, "")
        self._journal.append_event(
            AgentQuestionAnswered(
                question.run_id, question.id, answer.decision, answer.scope, answer.answered_by
            )
        )
        self._host.notify_watchers()

    async def _create_question(
        self,
        kind: str,
        call_number: int,
        args: Mapping[str, Any],
        covers: list[ApprovedCall],
        model_request: ClientModelRequest | None,
        credential: CredentialRequest | None,
    ) -> QuestionAsked:
        # Before the search for hints, because other questions may come meanwhile.
        question_id = self._history.new_question_id()
        hints = await self.find_origin_hints(args) if kind == APPROVAL_KIND else []
        url = ""
        if credential is not None:
            hints, url = credential.hints, credential.url
        expires_at = time.time() + self._expires_s
        asked = QuestionAsked(
            question_id, kind, call_number, expires_at, covers, hints, model_request, url
        )
        self._journal.append_event(asked)
        await self._journal.flush()
        return asked

    def withdraw_call(self, call_number: int) -> None:
        """Settle what call `call_number` waits for: its code waits no more."""
        if call_number in self._paused_calls:
            self._paused_calls[call_number].cancel()
        for question in list(self.open_questions.values()):
            if question.asked.call_id == call_number:
                by = "the code, which did not wait"
                denial = QuestionAnswered(question.id, "deny", answered_by=by)
                self._settle_question(question, denial)

    def answer_questions(
        self,
        given: Mapping[str, Any],
        by: str,
        *,
        may_approve: bool,
        shown_ids: Collection[str] | None = None,
    ) -> None:
        """Answer questions by their ids, all of `given` or none; `*` answers those not named.

        The answering client has seen the questions `shown_ids`, all of them if that is None.

        Raises `InvalidRequest` for a question that is not open or was not shown, or an answer that
        does not fit, and `Forbidden` where a person has to answer.
        """
        shown = self.open_questions if shown_ids is None else shown_ids
        chosen = {name: value for name, value in given.items() if name != "*"}
        if "*" in given:
            rest = (name for name in self.open_questions if name in shown and name not in given)
            chosen |= dict.fromkeys(rest, given["*"])
        if not chosen:
            raise self._no_answers_error(shown)
        questions = [(self._find_question(name), value) for name, value in chosen.items()]
        unseen = [question.id for question, _ in questions if question.id not in shown]
        if unseen:
            raise InvalidRequest(
                f"Question {unseen[0]} of run {self._run_id} was not shown yet.",
                remedy="Attach without answers to see it, after those that were shown: "
                f"{self._list_open(shown) or 'none'}.",
            )
        answers = [(question, parse_answer(question, value, by)) for question, value in questions]
        for question, _ in answers:
            if question.asked.kind == APPROVAL_KIND and not may_approve:
                raise Forbidden(
                    f"Question {question.id} of run {self._run_id} is for a person: "
                    f"may {question.target} be called?",
                    remedy="A person can answer in a client that shows forms, or with "
                    f"`{self.answer_command} {question.id} allow` (or deny).",
                )
        for question, answer in answers:
            self._settle_question(question, answer)

    def _list_open(self, shown: Collection[str]) -> str:
        return ", ".join(name for name in self.open_questions if name in shown)

    def _no_answers_error(self, shown: Collection[str]) -> Conflict:
        asked = "It asks nothing that was shown:" if self.open_questions else "It asks nothing:"
        if listed := self._list_open(shown):
            asked = f"It asks {listed}: name them, or"
        return Conflict(
            f"Run {self._run_id} is given no answers.", remedy=f"{asked} attach without answers."
        )

    def receive_answer(self, question_id: str, answer: Any, by: str) -> None:
        """Apply an answer from another process: now, or when the run asks the question again."""
        if question_id not in self.open_questions:
            self._early_answers[question_id] = answer, by
            return
        try:
            self.answer_questions({question_id: answer}, by, may_approve=True)
        except InvalidRequest as exc:
            logger.error("an answer to a question of run %s is invalid: %s", self._run_id, exc)

    def _find_question(self, question_id: str) -> PendingQuestion:
        question = self.open_questions.get(question_id)
        if question is not None and question.answer is None:
            return question
        known = self._history.find_answer(question_id)
        if known is not None:
            raise Conflict(
                f"Question {question_id} of run {self._run_id} was answered already: "
                f"{known.decision}."
            )
        remedy = "It does not wait for an answer."
        if self.open_questions:
            remedy = f"Its questions are {', '.join(self.open_questions)}."
        raise Conflict(f"Run {self._run_id} has no question {question_id!r:.80}.", remedy=remedy)

    def _settle_question(self, question: PendingQuestion, answer: QuestionAnswered) -> None:
        """Journal the answer and wake the call that waits for it."""
        self._journal.append_event(answer)
        self._journal.flush_soon()  # nobody is asked twice
        question.answer = answer
        self.permissions.record_answer(answer)
        self._history.record_answer(question.asked, answer)
        if answer.scope != "once":
            self._allow_same_target(answer)
        question.settled.set()

    def _allow_same_target(self, answer: QuestionAnswered) -> None:
        """Settle the other open approvals of a target that was allowed for more than one call."""
        for other in self.open_questions.values():
            is_same = other.target == answer.target and other.asked.kind == APPROVAL_KIND
            if is_same and other.answer is None:
                allowed = QuestionAnswered(other.id, "allow", "once", answer.answered_by)
                self._settle_question(other, allowed)


def parse_answer(question: PendingQuestion, value: Any, by: str) -> QuestionAnswered:
    """Return the event for an answer; raises `InvalidRequest` if it does not fit the question."""
    kind = question.asked.kind
    if kind == MODEL_REQUEST_KIND:
        return result_answer(question, value, by)
    if isinstance(value, EncodedAnswer):
        value = value.value
    words = ANSWER_WORDS[kind]
    if isinstance(value, str) and value in words:
        decision = "allow" if value in APPROVAL_SCOPES else value
        scope = APPROVAL_SCOPES.get(value, "once")
        return QuestionAnswered(question.id, decision, scope, by, question.target)
    if kind == IN_DOUBT_KIND and isinstance(value, dict) and value.keys() == {"result"}:
        return result_answer(question, value["result"], by)
    more = ' or {"result": ...}' if kind == IN_DOUBT_KIND else ""
    raise InvalidRequest(
        f"{json.dumps(value, default=str)[:80]} is not an answer to question {question.id}.",
        remedy=f"Answer with {', '.join(map(repr, words))}{more}.",
    )


def result_answer(question: PendingQuestion, value: Any, by: str) -> QuestionAnswered:
    """Return the event for an answer that is a value; raises `InvalidRequest` if it is not JSON."""
    if not isinstance(value, EncodedAnswer):
        try:
            canonical_json(value)
        except ValueError as exc:
            raise _invalid_answer(question.id, exc) from exc
    return QuestionAnswered(question.id, "result", "once", by, question.target, value)


def _invalid_answer(question_id: str, problem: ValueError) -> InvalidRequest:
    return InvalidRequest(f"The answer to {question_id:.80} cannot be journaled. {problem}")
