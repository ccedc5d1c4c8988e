"""The router: everything sandboxed code asks of the host passes here, once, and is journaled.

A target is `prefix.rest`; the prefix chooses the route. The settings may allow a call, refuse it, or want a person to
be asked; a dry run plans what may change something. What the sandbox says of itself (which run, which number) is not
trusted: the run is the one that the session executes, and numbers only serve to match the answer.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn, Protocol

from ..config import Verdict
from ..errors import CallFailed, JournalFailed
from ..journal.events import Answered, Approval, CallFinished, CallStarted, canonical_json
from ..journal.replay import RecordedCall
from ..journal.scope import Scope, enter
from ..journal.store import Journal
from ..kernel.planned import TEXT as PLANNED_TEXT
from ..kernel.wire import ABANDON, Call, Reply
from .plan import PLANNED, Key, Plan, PlannedCall
from .questions import APPROVAL, IN_DOUBT, QUESTION, Questions

Effect = Literal["read", "idempotent", "write"]
ABANDONED: Mapping[str, Any] = {
    "kind": "abandoned",
    "message": "The code did not wait for the answer; what was asked for may have been done.",
    "data": None,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Route:
    """Who answers the calls of one prefix; `effect` says what a call may change, as soon as `prepare` has ended.

    Unlisted ones stay off the ledger.
    """

    call: Callable[[str, dict[str, Any]], Awaitable[Any]]
    effect: Callable[[str], Effect]
    listed: bool = True
    prepare: Callable[[str], Awaitable[None]] | None = None
    verdict: Callable[[str], Verdict] = lambda _: "allow"
    is_open: Callable[[str], bool] = lambda _: False  # whether answers may hold what strangers wrote


CallStatus = Literal["started", "waiting", "ok", "error", "denied", "planned"]
USES_PLANNED = PLANNED_TEXT.partition("{")[0]  # in arguments: text that stands for a result that there is not yet
STATUS_OF: Mapping[str, CallStatus] = {"denied": "denied", PLANNED: "planned"}  # by kind of error; others are errors


@dataclass
class LedgerEntry:
    """One line of what a run asked for.

    `started` (and `waiting` while a question about it is open) until it is `ok`, `error`, `denied` or `planned`.
    """

    target: str
    args: dict[str, Any]
    status: CallStatus = "started"
    ms: float = 0.0
    error: str = ""


class Answers(Protocol):
    """Whoever answers the calls of a run: the router, or a recording."""

    async def answer(self, call: Call, log: CallLog) -> Reply:
        """Return the reply to `call`, which goes on the run's `log`."""
        ...


class CallLog:
    """The calls of one run: their numbers, their ledger, and where they are journaled."""

    def __init__(
        self, journal: Journal, session: str, run: str, questions: Questions, plan: Plan | None = None
    ) -> None:
        self.questions = questions
        self.plan = plan  # of a dry run
        self.ledger: list[LedgerEntry] = []
        self._journal = journal
        self.session = session
        self.run = run
        self._count = 0
        self._seen: Counter[tuple[str, str]] = Counter()
        self._recorded: dict[int, LedgerEntry] = {}  # by their numbers in the journal
        self._entries: dict[int, LedgerEntry] = {}  # this and the next by the sandbox's number of the call
        self._numbers: dict[int, int] = {}  # in the journal, of calls that have no end there
        self._abandoned: set[int] = set()  # this and the next by their numbers in the journal
        self._writes: set[int] = set()  # that have no end there
        self._keys: dict[int, Key] = {}  # of calls that have no end there

    def list(self, call: Call) -> LedgerEntry:
        """Put `call` on the ledger."""
        entry = self._entries[call.id] = LedgerEntry(call.target, call.args)
        self.ledger.append(entry)
        return entry

    def start(self, call: Call, effect: str, *, listed: bool) -> int:
        """Journal that `call` starts; return its number in this run. Raises `ValueError` if it is not JSON data."""
        args = canonical_json(call.args)
        nth = self._seen[call.target, args]
        self._seen[call.target, args] += 1
        self._count += 1
        self._numbers[call.id] = self._count
        self._keys[self._count] = call.target, args, nth
        self._append(CallStarted(self._count, call.target, args, effect, nth, call.line, listed))
        if effect == "write":
            self._writes.add(self._count)
        return self._count

    def remember(self, recorded: RecordedCall, entry: LedgerEntry) -> None:
        """Count a call that the run has made before its server died; whether the code makes it again or not, it was."""
        self._count = max(self._count, recorded.call)
        self._recorded[recorded.call] = entry
        if recorded.listed:
            self.ledger.append(entry)

    def recall(self, call: Call, recorded: RecordedCall) -> LedgerEntry:
        """The code makes a call again that the journal has already: return its line of the ledger."""
        if recorded.finished is None:
            self._numbers[call.id] = recorded.call
            self._keys[recorded.call] = recorded.target, recorded.args, recorded.nth
        self._seen[call.target, recorded.args] += 1
        entry = self._entries[call.id] = self._recorded[recorded.call]
        return entry

    def key(self, number: int) -> Key:
        """Return what names call `number`, which has not ended, in a recording."""
        return self._keys[number]

    def sent(self, call: Call, number: int) -> dict[str, Any]:
        """Return the arguments with which a call is made, which somebody may have changed in a plan."""
        return call.args if self.plan is None else self.plan.arguments(self.key(number), call.args)

    def finish(self, number: int, value: Any, error: Mapping[str, Any] | None, ms: float) -> None:
        """Journal how call `number` ended, unless that is of no matter to the code any more."""
        if not self.is_abandoned(number):
            self._append(CallFinished(number, value, error, ms))
        self._keys.pop(number, None)
        if number in self._writes:
            self._writes.discard(number)
            self._journal.hurry()  # a server that died now would not know that this has ended

    def abandon(self, call: Call) -> None:
        """Journal that the code waits no more for the answer to the call that `call` names."""
        own = abandoned_by(call)
        number = self._numbers.pop(own, None)
        if number is None:
            return
        self.questions.withdraw(number)
        self.fail(number, ABANDONED, 0.0)
        self._abandoned.add(number)
        if own in self._entries:
            self._entries[own].status, self._entries[own].error = "error", ABANDONED["message"]

    def is_abandoned(self, number: int | None) -> bool:
        """Return whether the code waits no more for the answer to call `number`."""
        return number in self._abandoned

    def fail(self, number: int, error: Mapping[str, Any], ms: float) -> None:
        """Journal that call `number` failed; where the journal refuses, the code must still hear of it."""
        try:
            self.finish(number, None, error, ms)
        except (JournalFailed, ValueError) as exc:
            logger.error("the end of a call in run %s was not journaled: %s", self.run, exc)

    async def flush(self) -> None:
        """Wait until all of it is on the disk."""
        await self._journal.flush()

    def _append(self, event: CallStarted | CallFinished) -> None:
        self._journal.append(self.session, event, self.run)


class Router:
    """Answers calls by their prefix."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = routes
        self._nowhere = Route(
            self._refuse, lambda _: "read"
        )  # journaled like any other call, so that it can be replayed

    def effect(self, target: str) -> Effect:
        """Return what a call of `target` may change."""
        return self._route(target).effect(target)

    def is_listed(self, target: str) -> bool:
        """Return whether calls of `target` are told to the client."""
        return self._route(target).listed

    def is_open(self, target: str) -> bool:
        """Return whether answers to calls of `target` may hold what strangers wrote."""
        return self._route(target).is_open(target)

    async def answer(self, call: Call, log: CallLog) -> Reply:
        """Return the reply to `call`; failures become errors in it, and only cancellation leaves."""
        if call.target == ABANDON:
            log.abandon(call)
            return Reply(call.id)
        entry = log.list(call) if self.is_listed(call.target) else LedgerEntry(call.target, call.args)
        return await self._make(call, entry, log, None)

    async def answer_again(
        self, call: Call, number: int, entry: LedgerEntry, log: CallLog, *, in_doubt: bool = False
    ) -> Reply:
        """Make a call whose start is in the journal, and on the ledger, as number `number`, and whose end is not.

        One that is `in_doubt` may have been made: whether it is to be made again is asked first.
        """
        return await self._make(call, entry, log, number, in_doubt=in_doubt)

    async def _make(
        self, call: Call, entry: LedgerEntry, log: CallLog, number: int | None, *, in_doubt: bool = False
    ) -> Reply:
        started = time.perf_counter()
        try:
            route = self._route(call.target)
            if number is None:
                number = await _admit(call, route, log)
            doubt = await self._clear_up(call, number, entry, log) if in_doubt else None
            if doubt is not None and doubt.decision == "result":
                value = doubt.value
            else:
                args = await self._permit(call, route, number, entry, log) if doubt is None else log.sent(call, number)
                entry.status = "started"
                started = time.perf_counter()
                if route.effect(call.target) == "write":
                    await _flush(call, log)
                put = partial(self._put, call, number, entry, log)
                away = partial(log.questions.away, number)
                enter(Scope(log.session, log.run, put, away, log.questions.tell))
                value = await route.call(call.target, args)
            entry.ms = _ms_since(started)
            log.finish(number, value, None, entry.ms)
        except Exception as exc:  # noqa: BLE001 - a handler's failure is the answer, whatever it is
            error = _describe(call.target, exc)
            entry.ms = _ms_since(started)
            if number is not None:
                log.fail(number, error, entry.ms)
            if not log.is_abandoned(number):
                entry.status = STATUS_OF.get(error["kind"], "error")
                entry.error = "" if entry.status == "planned" else error["message"]
            return Reply(call.id, None, error)
        if not log.is_abandoned(number):
            entry.status = "ok"
        return Reply(call.id, value)

    # what may be called ---------------------------------------------------------------------------

    async def _permit(self, call: Call, route: Route, number: int, entry: LedgerEntry, log: CallLog) -> dict[str, Any]:
        """Return the arguments with which a call may be made; raises `CallFailed` where it may not, or not now."""
        target, verdict, args = call.target, route.verdict(call.target), call.args
        if verdict == "deny":
            raise CallFailed(
                "denied", f"{target} is not allowed here.", remedy="The settings of the server say so, under [policy]."
            )
        approval = None
        if log.plan is not None and route.effect(target) != "read":
            approval = await self._planned(call, number, log, log.plan)
            args = log.sent(call, number)
        by_person = approval is not None and approval["person"]
        if verdict == "ask" and not by_person and not log.questions.is_granted(target):
            covers = self._to_be_asked(log, number)
            entry.status = "waiting"
            answer = await log.questions.ask(APPROVAL, number, target, args, call.line, covers)
            if log.plan is not None:
                (log.plan.allow if answer.decision == "allow" else log.plan.refuse)(covers)
            if answer.decision != "allow":
                raise CallFailed("denied", _refused(target, answer))
        return args

    async def _put(self, call: Call, number: int, entry: LedgerEntry, log: CallLog, about: Mapping[str, Any]) -> Any:
        """Put a question before the client's model and return the answer; raises `CallFailed` if there is none."""
        entry.status = "waiting"
        answer = await log.questions.ask(QUESTION, number, call.target, call.args, call.line, about=about)
        entry.status = "started"
        if answer.decision != "result":
            raise CallFailed("llm_unavailable", "Nobody has answered the question.")
        return answer.value

    async def _planned(self, call: Call, number: int, log: CallLog, plan: Plan) -> Approval:
        """Return what was approved of a planned call; raises `CallFailed` where that is nothing."""
        approval = plan.approval(log.key(number))
        if approval is None:
            message = f"{call.target} may change something: it is planned, and not made."
            hints = await log.questions.hints_for(call.args)
            if USES_PLANNED in log.key(number)[1]:
                hints.append("The arguments hold the result of a planned call: it is planned again when that is known.")
            plan.add(PlannedCall(number, call.target, call.args, call.line, tuple(hints)))
            raise CallFailed(PLANNED, message, data={"call": number, "hints": hints})
        if not approval["sent"]:
            raise CallFailed("denied", f"{call.target} was planned with these arguments, and was not approved.")
        return approval

    def _to_be_asked(self, log: CallLog, number: int) -> list[Approval]:
        """Return the other calls of a plan that a person has to allow, too, so that they are asked once."""
        if log.plan is None:
            return []
        return [
            each
            for each in log.plan.approved
            if not each["person"]
            and self._route(each["target"]).verdict(each["target"]) == "ask"
            and (each["target"], each["args"], each["nth"]) != log.key(number)
        ]

    async def _clear_up(self, call: Call, number: int, entry: LedgerEntry, log: CallLog) -> Answered:
        """Ask what is to be done about a call that may have been made before the server died."""
        entry.status = "waiting"
        answer = await log.questions.ask(IN_DOUBT, number, call.target, log.sent(call, number), call.line)
        if answer.decision not in ("again", "result"):
            message = f"The server died while {call.target} was called; whether that took effect is not known."
            raise CallFailed("in_doubt", message)
        return answer

    def _route(self, target: str) -> Route:
        prefix, _, rest = target.partition(".")
        return self._routes[prefix] if rest and prefix in self._routes else self._nowhere

    async def _refuse(self, target: str, args: dict[str, Any]) -> NoReturn:
        known = ", ".join(sorted(self._routes))
        raise CallFailed("unknown_target", f"Nothing answers to {target!r:.80}; the prefixes are {known}.")


def abandoned_by(call: Call) -> int:
    """Return the sandbox's number of the call that its code waits no more for; -1 if it names none."""
    number = call.args.get("call")
    return number if type(number) is int else -1


def is_abandoned(error: Mapping[str, Any] | None) -> bool:
    """Return whether a call ended because the code did not wait for its answer."""
    return error is not None and error.get("kind") == ABANDONED["kind"]


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 3)


async def _admit(call: Call, route: Route, log: CallLog) -> int:
    """Journal the start of `call` and return its number."""
    if route.prepare is not None:
        await route.prepare(call.target)
    try:
        return log.start(call, route.effect(call.target), listed=route.listed)
    except ValueError as exc:
        raise CallFailed("invalid_arguments", f"{call.target}: the arguments are not JSON data: {exc}") from exc
    except JournalFailed as exc:
        raise CallFailed("unavailable", f"{call.target} was not called: {exc}") from exc


async def _flush(call: Call, log: CallLog) -> None:
    """Wait until the start of a call that may change something is on the disk.

    A server that dies right after must know that such a call was made, or it would be made twice.
    """
    try:
        await log.flush()
    except JournalFailed as exc:
        raise CallFailed("unavailable", f"{call.target} was not called: {exc}") from exc


def _refused(target: str, answer: Answered) -> str:
    if answer.decision == "expired":
        return f"{target} was not called: nobody has answered whether it may be."
    return f"{target} was not called: it was refused ({answer.by or 'nobody said why'})."


def _describe(target: str, exc: Exception) -> dict[str, Any]:
    """Return `exc` as the error that code in the sandbox sees; the text of an unforeseen one stays on the host."""
    if isinstance(exc, CallFailed):
        return {"kind": exc.kind, "message": str(exc), "data": exc.data}
    if isinstance(exc, JournalFailed):
        message = f"{target} was called, but its answer could not be journaled: {exc}"
        return {"kind": "unavailable", "message": message, "data": None}
    if isinstance(exc, ValueError):
        return {"kind": "protocol", "message": f"{target} answered with something that is not JSON data.", "data": None}
    logger.error("call of %s failed", target, exc_info=exc)
    return {"kind": "internal", "message": f"{target} failed inside the server; its log says why.", "data": None}
