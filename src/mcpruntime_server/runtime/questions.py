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
from ..journal.events import Answered, Approval, Asked, canonical_json
from ..journal.replay import Matter, RecordedCall, Recording, matter
from ..journal.store import Journal

SCOPES: Mapping[str, str] = {"allow": "once", "allow_run": "run", "allow_session": "session"}
APPROVAL = "approval"
IN_DOUBT = "in_doubt"
QUESTION = "question"
WORDS: Mapping[str, tuple[str, ...]] = {APPROVAL: (*SCOPES, "deny"), IN_DOUBT: ("again", "fail")}
MODEL = "model"
REFUSALS = 3  # of a tool in one run; its other calls are refused unasked, or code could ask until somebody gives in
NOTHING: Mapping[str, Any] = {}
KEPT = 10_000  # answered questions that a live run remembers, to tell who answers twice

logger = logging.getLogger(__name__)


@dataclass
class Question:
    """One thing that a run waits for; `args` are those of the call as it would be made."""

    run: str
    asked: Asked
    target: str
    args: Mapping[str, Any]
    line: int | None
    answer: Answered | None = None
    over: anyio.Event = field(default_factory=anyio.Event)

    @property
    def id(self) -> str:
        """Its name, unique in the run."""
        return self.asked.question

    @property
    def calls(self) -> list[tuple[str, Mapping[str, Any]]]:
        """All calls that the answer holds for: targets and arguments."""
        covered = [(each["target"], json.loads(each["sent"])) for each in self.asked.covers]
        return [(self.target, self.args), *covered]


class Waiting(Protocol):
    """The run, as its questions know it."""

    def pause(self) -> None:
        """Have its time limit stand still, and let others execute."""
        ...

    async def go_on(self) -> None:
        """End the pause, as soon as it may execute again."""
        ...

    def notify(self) -> None:
        """Tell who watches it that something has changed."""
        ...

    def enter_stage(self, stage: str) -> None:
        """Tell who watches it what it is about."""
        ...


class Questions:
    """The questions of one run; `granted` are the targets that were allowed for the whole session."""

    def __init__(
        self, journal: Journal, session: str, run: str, host: Waiting, *, expires_s: float, granted: set[str]
    ) -> None:
        self.open: dict[str, Question] = {}
        self.elsewhere = ""  # what is asked where agents of the run work
        self.find_hints: Callable[[Mapping[str, Any]], Awaitable[list[str]]] | None = None
        self._journal = journal
        self._session = session
        self._run = run
        self._host = host
        self._expires_s = expires_s
        self._granted = granted
        self._granted_here: set[str] = set()
        self._refused: Counter[str] = Counter()  # targets of calls
        self._count = 0
        self._away: dict[int, anyio.CancelScope] = {}  # calls that wait for something else than an answer
        self._answered: dict[str, Answered] = {}
        self._left_open: dict[Matter, Asked] = {}  # asked before the server died, and not answered
        self._early: dict[str, tuple[Any, str]] = {}  # by question: an answer that came before it is asked again
        self._unheard: dict[Matter, tuple[str, Answered]] = {}  # kind and answer that the code was not told of

    def restore(self, recording: Recording) -> None:
        """Go on with the questions of a run that has begun in another server."""
        self._count = len(recording.asked)
        self._answered = dict(recording.answered)
        self._left_open = dict(recording.open_questions)
        for asked in recording.asked:
            answer = recording.answered.get(asked.question)
            if answer is not None and answer.scope == "run":
                self._granted_here.add(answer.target)
            if answer is not None and answer.decision == "deny":
                self._refused[answer.target] += 1
            if answer is not None and answer.decision not in ("allow", "again"):
                self._unheard[matter(asked)] = asked.kind, answer

    def is_granted(self, target: str) -> bool:
        """Return whether a person has allowed all calls of `target`."""
        return target in self._granted or target in self._granted_here

    def is_unmade(self, recorded: RecordedCall) -> bool:
        """Return whether a recorded call without an end was not made: a person had not allowed it yet, or refused."""
        mine = recorded.call, ""
        asked = self._left_open.get(mine)
        kind = asked.kind if asked is not None else self._unheard.get(mine, ("",))[0]
        return kind == APPROVAL

    async def ask(
        self,
        kind: str,
        number: int,
        target: str,
        args: Mapping[str, Any],
        line: int | None,
        covers: Iterable[Approval] = (),
        about: Mapping[str, Any] = NOTHING,
    ) -> Answered:
        """Ask whether call `number` is to be made, or what it is `about`, and wait for the answer."""
        key = number, canonical_json(about) if about else ""
        unheard = self._unheard.pop(key, None)
        if unheard is not None:
            return unheard[1]
        asked = self._left_open.pop(key, None)
        if asked is None and kind == APPROVAL and self._refused[target] >= REFUSALS:
            return Answered("", "deny", by=f"as {REFUSALS} calls of it in this run were")
        if asked is None:
            asked = await self._ask(kind, number, args, list(covers), about)
        question = Question(self._run, asked, target, args, line)
        self._host.pause()
        self.open[question.id] = question
        try:
            if question.id in self._early:
                self.hear(question.id, *self._early.pop(question.id))
            self._host.notify()
            with anyio.move_on_after(asked.expires - time.time()):
                await question.over.wait()
            if question.answer is None:
                self._settle(question, Answered(question.id, "expired"))
        finally:
            self.open.pop(question.id, None)
            self._host.notify()
        if not self.is_paused:
            await self._host.go_on()
        assert question.answer is not None, "it has just been settled"
        return question.answer

    @property
    def is_paused(self) -> bool:
        """Whether the run waits for something, so that its time stands still."""
        return bool(self.open or self._away)

    @asynccontextmanager
    async def away(self, number: int) -> AsyncIterator[None]:
        """Have the run wait for something else than an answer, for call `number`, which takes turns of its own.

        Raises `CallFailed` if the code waits no more.
        """
        self._host.pause()
        scope = self._away[number] = anyio.CancelScope()
        try:
            with scope:
                yield
        finally:
            del self._away[number]
        if scope.cancelled_caught:
            raise CallFailed("cancelled", "The code did not wait for the answer.")
        if not self.is_paused:
            await self._host.go_on()

    def tell(self, stage: str) -> None:
        """Tell who watches the run what others wait for that it waits for; "" for nothing."""
        self.elsewhere = stage
        self._host.enter_stage(stage)

    async def _ask(
        self, kind: str, number: int, args: Mapping[str, Any], covers: list[Approval], about: Mapping[str, Any]
    ) -> Asked:
        self._count += 1
        name = f"q{self._count}"
        hints = await self.hints_for(args) if kind == APPROVAL else []
        asked = Asked(name, kind, number, time.time() + self._expires_s, covers, hints, about)
        self._journal.append(self._session, asked, self._run)
        await self._journal.flush()
        return asked

    async def hints_for(self, args: Mapping[str, Any]) -> list[str]:
        """Return where text in the arguments of a call may have come from."""
        return await self.find_hints(args) if self.find_hints is not None else []

    def withdraw(self, number: int) -> None:
        """The code waits no more for call `number`."""
        if number in self._away:
            self._away[number].cancel()
        for question in list(self.open.values()):
            if question.asked.call == number:
                self._settle(question, Answered(question.id, "deny", by="the code, which did not wait"))

    def answer(self, given: Mapping[str, Any], by: str, *, may_approve: bool) -> None:
        """Answer questions, all of them or none; `*` answers those that are not named.

        Raises `InvalidRequest` for what is not open or is no answer, `Forbidden` where a person has to answer.
        """
        rest = {name: given["*"] for name in self.open if name not in given} if "*" in given else {}
        chosen = {name: value for name, value in {**rest, **given}.items() if name != "*"}
        if not chosen:
            asked = f"It asks {', '.join(self.open)}: name them, or" if self.open else "It asks nothing:"
            raise InvalidRequest(f"Run {self._run} is given no answers.", remedy=f"{asked} attach without answers.")
        settled = [(self._question(name), value) for name, value in chosen.items()]
        answers = [(question, parse_answer(question, value, by)) for question, value in settled]
        for question, _ in answers:
            if question.asked.kind == APPROVAL and not may_approve:
                raise Forbidden(
                    f"Question {question.id} of run {self._run} is for a person: may {question.target} be called?",
                    remedy=(
                        "They can answer with `mcpruntime-server approvals`, or in the client where that can ask them."
                    ),
                )
        for question, answer in answers:
            self._settle(question, answer)

    def hear(self, name: str, answer: Any, by: str) -> None:
        """Take what a person has answered elsewhere: now, or when the run comes to ask again."""
        if name not in self.open:
            self._early[name] = answer, by
            return
        try:
            self.answer({name: answer}, by, may_approve=True)
        except InvalidRequest as exc:
            logger.error("an answer that was left for run %s could not be taken: %s", self._run, exc)

    def _question(self, name: str) -> Question:
        question = self.open.get(name)
        if question is None or question.answer is not None:
            known = self._answered.get(name)
            if known is not None:
                raise InvalidRequest(f"Question {name} of run {self._run} was answered already: {known.decision}.")
            listed = f"Its questions are {', '.join(self.open)}." if self.open else "It does not wait for an answer."
            raise InvalidRequest(f"Run {self._run} has no question {name!r:.80}.", remedy=listed)
        return question

    def _settle(self, question: Question, answer: Answered) -> None:
        """Journal the answer and let the call go on."""
        self._journal.append(self._session, answer, self._run)
        question.answer = answer
        if answer.decision == "deny":
            self._refused[answer.target] += 1
        self._answered[question.id] = answer
        if len(self._answered) > KEPT:
            del self._answered[next(iter(self._answered))]
        if answer.scope == "session":
            self._granted.add(answer.target)
        if answer.scope == "run":
            self._granted_here.add(answer.target)
        if answer.scope != "once":
            for other in self.open.values():
                if other.answer is None and other.target == answer.target and other.asked.kind == APPROVAL:
                    self._settle(other, Answered(other.id, "allow", "once", answer.by))
        question.over.set()


def parse_answer(question: Question, value: Any, by: str) -> Answered:
    """Return an answer as the journal has it; raises `InvalidRequest` if it is none to this question."""
    kind = question.asked.kind
    if kind == QUESTION:
        return Answered(question.id, "result", "once", by, question.target, kept(question, value))
    words = WORDS[kind]
    if isinstance(value, str) and value in words:
        decision = "allow" if value in SCOPES else value
        return Answered(question.id, decision, SCOPES.get(value, "once"), by, question.target)
    if kind == IN_DOUBT and isinstance(value, dict) and value.keys() == {"result"}:
        return Answered(question.id, "result", "once", by, question.target, kept(question, value["result"]))
    more = ' or {"result": ...}' if kind == IN_DOUBT else ""
    raise InvalidRequest(
        f"{json.dumps(value, default=str)[:80]} is no answer to question {question.id}.",
        remedy=f"Answer with {', '.join(map(repr, words))}{more}.",
    )


def kept(question: Question, value: Any) -> Any:
    """Return a value that somebody has answered with; raises `InvalidRequest` if it cannot be kept."""
    try:
        canonical_json(value)
    except ValueError as exc:
        raise InvalidRequest(f"The answer given for {question.id} cannot be kept. {exc}") from exc
    return value
