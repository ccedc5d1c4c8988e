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
from ..journal.call_scope import CallScope, enter_call_scope
from ..journal.events import (
    ApprovedCall,
    CallFinished,
    CallStarted,
    QuestionAnswered,
    canonical_json,
)
from ..journal.recording import RecordedCall
from ..journal.store import Journal
from ..protocol.library_names import PLANNED_RESULT_TEXT
from ..protocol.wire import ABANDON_TARGET, Call, Reply
from .pending_questions import APPROVAL_KIND, IN_DOUBT_KIND, MODEL_REQUEST_KIND, PendingQuestions
from .plan import PLANNED_KIND, CallKey, Plan, PlannedCall

Effect = Literal["read", "idempotent", "write"]
ABANDONED_ERROR: Mapping[str, Any] = {
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

    handle: Callable[[str, dict[str, Any]], Awaitable[Any]]
    effect_of: Callable[[str], Effect]
    is_listed: bool = True
    prepare: Callable[[str], Awaitable[None]] | None = None
    verdict_for: Callable[[str], Verdict] = lambda _: "allow"
    is_open_world: Callable[[str], bool] = lambda _: (
        False
    )  # whether answers may hold what strangers wrote


CallStatus = Literal["started", "waiting", "ok", "error", "denied", "planned"]
# in arguments: text that stands for a result that does not exist yet
PLANNED_RESULT_PREFIX = PLANNED_RESULT_TEXT.partition("{")[0]
STATUS_BY_ERROR_KIND: Mapping[str, CallStatus] = {
    "denied": "denied",
    PLANNED_KIND: "planned",
}  # by kind of error; others are errors


@dataclass
class LedgerEntry:
    """One line of what a run asked for.

    `started` (and `waiting` while a question about it is open) until it is `ok`, `error`, `denied` or `planned`.
    """

    target: str
    args: dict[str, Any]
    status: CallStatus = "started"
    duration_ms: float = 0.0
    error: str = ""


class CallHandler(Protocol):
    """Whoever answers the calls of a run: the router, or a recording."""

    async def answer_call(self, call: Call, call_journal: CallJournal) -> Reply:
        """Return the reply to `call`, which goes on the run's `log`."""
        ...


class CallJournal:
    """The calls of one run: their numbers, their ledger, and where they are journaled."""

    def __init__(
        self,
        journal: Journal,
        session_id: str,
        run_id: str,
        questions: PendingQuestions,
        plan: Plan | None = None,
    ) -> None:
        self.questions = questions
        self.plan = plan  # of a dry run
        self.ledger: list[LedgerEntry] = []
        self._journal = journal
        self.session_id = session_id
        self.run_id = run_id
        self._call_count = 0
        self._occurrences: Counter[tuple[str, str]] = Counter()
        self._recorded_entries: dict[int, LedgerEntry] = {}  # by their numbers in the journal
        self._entries_by_id: dict[
            int, LedgerEntry
        ] = {}  # this and the next by the sandbox's number of the call
        self._numbers_by_id: dict[int, int] = {}  # in the journal, of calls that have no end there
        self._abandoned_numbers: set[int] = (
            set()
        )  # this and the next by their numbers in the journal
        self._open_writes: set[int] = set()  # that have no end there
        self._open_keys: dict[int, CallKey] = {}  # of calls that have no end there

    def add_to_ledger(self, call: Call) -> LedgerEntry:
        """Put `call` on the ledger."""
        entry = self._entries_by_id[call.call_id] = LedgerEntry(call.target, call.args)
        self.ledger.append(entry)
        return entry

    def start_call(self, call: Call, effect: str, *, is_listed: bool) -> int:
        """Journal that `call` starts; return its number in this run. Raises `ValueError` if it is not JSON data."""
        args = canonical_json(call.args)
        nth = self._occurrences[call.target, args]
        self._occurrences[call.target, args] += 1
        self._call_count += 1
        self._numbers_by_id[call.call_id] = self._call_count
        self._open_keys[self._call_count] = call.target, args, nth
        self._append_event(
            CallStarted(self._call_count, call.target, args, effect, nth, call.line, is_listed)
        )
        if effect == "write":
            self._open_writes.add(self._call_count)
        return self._call_count

    def restore_call(self, recorded: RecordedCall, entry: LedgerEntry) -> None:
        """Count a call that the run has made before its server died; whether the code makes it again or not, it was."""
        self._call_count = max(self._call_count, recorded.call_id)
        self._recorded_entries[recorded.call_id] = entry
        if recorded.in_ledger:
            self.ledger.append(entry)

    def resume_call(self, call: Call, recorded: RecordedCall) -> LedgerEntry:
        """The code makes a call again that the journal has already: return its line of the ledger."""
        if recorded.finished_sequence is None:
            self._numbers_by_id[call.call_id] = recorded.call_id
            self._open_keys[recorded.call_id] = recorded.target, recorded.args, recorded.nth
        self._occurrences[call.target, recorded.args] += 1
        entry = self._entries_by_id[call.call_id] = self._recorded_entries[recorded.call_id]
        return entry

    def call_key(self, number: int) -> CallKey:
        """Return what names call `number`, which has not ended, in a recording."""
        return self._open_keys[number]

    def effective_args(self, call: Call, number: int) -> dict[str, Any]:
        """Return the arguments with which a call is made, which somebody may have changed in a plan."""
        return (
            call.args
            if self.plan is None
            else self.plan.approved_args(self.call_key(number), call.args)
        )

    def finish_call(
        self, number: int, value: Any, error: Mapping[str, Any] | None, ms: float
    ) -> None:
        """Journal how call `number` ended, unless that is of no matter to the code any more."""
        if not self.is_abandoned(number):
            self._append_event(CallFinished(number, value, error, ms))
        self._open_keys.pop(number, None)
        if number in self._open_writes:
            self._open_writes.discard(number)
            self._journal.flush_soon()  # a server that died now would not know that this has ended

    def abandon_call(self, call: Call) -> None:
        """Journal that the code waits no more for the answer to the call that `call` names."""
        own = abandoned_call_id(call)
        number = self._numbers_by_id.pop(own, None)
        if number is None:
            return
        self.questions.withdraw_call(number)
        self.fail_call(number, ABANDONED_ERROR, 0.0)
        self._abandoned_numbers.add(number)
        if own in self._entries_by_id:
            self._entries_by_id[own].status, self._entries_by_id[own].error = (
                "error",
                ABANDONED_ERROR["message"],
            )

    def is_abandoned(self, number: int | None) -> bool:
        """Return whether the code waits no more for the answer to call `number`."""
        return number in self._abandoned_numbers

    def fail_call(self, number: int, error: Mapping[str, Any], ms: float) -> None:
        """Journal that call `number` failed; where the journal refuses, the code must still hear of it."""
        try:
            self.finish_call(number, None, error, ms)
        except (JournalFailed, ValueError) as exc:
            logger.error("the end of a call in run %s was not journaled: %s", self.run_id, exc)

    async def flush(self) -> None:
        """Wait until all of it is on the disk."""
        await self._journal.flush()

    def _append_event(self, event: CallStarted | CallFinished) -> None:
        self._journal.append(self.session_id, event, self.run_id)


class Router:
    """Answers calls by their prefix."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = dict(routes)
        self._unknown_route = Route(
            self._reject_unknown_target, lambda _: "read"
        )  # journaled like any other call, so that it can be replayed

    def add_route(self, prefix: str, route: Route) -> None:
        """Route the calls of `prefix`, for a handler that is built after the runtime."""
        self._routes[prefix] = route

    def effect_of(self, target: str) -> Effect:
        """Return what a call of `target` may change."""
        return self._find_route(target).effect_of(target)

    def is_listed(self, target: str) -> bool:
        """Return whether calls of `target` are told to the client."""
        return self._find_route(target).is_listed

    def is_open_world(self, target: str) -> bool:
        """Return whether answers to calls of `target` may hold what strangers wrote."""
        return self._find_route(target).is_open_world(target)

    async def answer_call(self, call: Call, call_journal: CallJournal) -> Reply:
        """Return the reply to `call`; failures become errors in it, and only cancellation leaves."""
        if call.target == ABANDON_TARGET:
            call_journal.abandon_call(call)
            return Reply(call.call_id)
        entry = (
            call_journal.add_to_ledger(call)
            if self.is_listed(call.target)
            else LedgerEntry(call.target, call.args)
        )
        return await self._execute_call(call, entry, call_journal, None)

    async def resume_call(
        self,
        call: Call,
        number: int,
        entry: LedgerEntry,
        call_journal: CallJournal,
        *,
        in_doubt: bool = False,
    ) -> Reply:
        """Make a call whose start is in the journal, and on the ledger, as number `number`, and whose end is not.

        One that is `in_doubt` may have been made: whether it is to be made again is asked first.
        """
        return await self._execute_call(call, entry, call_journal, number, in_doubt=in_doubt)

    async def _execute_call(
        self,
        call: Call,
        entry: LedgerEntry,
        call_journal: CallJournal,
        number: int | None,
        *,
        in_doubt: bool = False,
    ) -> Reply:
        started = time.perf_counter()
        try:
            route = self._find_route(call.target)
            if number is None:
                number = await _start_call(call, route, call_journal)
            doubt = (
                await self._resolve_doubt(call, number, entry, call_journal) if in_doubt else None
            )
            if doubt is not None and doubt.decision == "result":
                value = doubt.value
            else:
                args = (
                    await self._authorize_call(call, route, number, entry, call_journal)
                    if doubt is None
                    else call_journal.effective_args(call, number)
                )
                entry.status = "started"
                started = time.perf_counter()
                if route.effect_of(call.target) == "write":
                    await _flush_call_start(call, call_journal)
                put = partial(self._ask_model, call, number, entry, call_journal)
                away = partial(call_journal.questions.pause_for_call, number)
                enter_call_scope(
                    CallScope(
                        call_journal.session_id,
                        call_journal.run_id,
                        put,
                        away,
                        call_journal.questions.set_agent_question,
                    )
                )
                value = await route.handle(call.target, args)
            entry.duration_ms = _elapsed_ms(started)
            call_journal.finish_call(number, value, None, entry.duration_ms)
        except Exception as exc:  # noqa: BLE001 - a handler's failure is the answer, whatever it is
            error = _describe_failure(call.target, exc)
            entry.duration_ms = _elapsed_ms(started)
            if number is not None:
                call_journal.fail_call(number, error, entry.duration_ms)
            if not call_journal.is_abandoned(number):
                entry.status = STATUS_BY_ERROR_KIND.get(error["kind"], "error")
                entry.error = "" if entry.status == "planned" else error["message"]
            return Reply(call.call_id, None, error)
        if not call_journal.is_abandoned(number):
            entry.status = "ok"
        return Reply(call.call_id, value)

    # what may be called ---------------------------------------------------------------------------

    async def _authorize_call(
        self, call: Call, route: Route, number: int, entry: LedgerEntry, call_journal: CallJournal
    ) -> dict[str, Any]:
        """Return the arguments with which a call may be made; raises `CallFailed` where it may not, or not now."""
        target, verdict, args = call.target, route.verdict_for(call.target), call.args
        if verdict == "deny":
            raise CallFailed(
                "denied",
                f"{target} is not allowed here.",
                remedy="The settings of the server say so, under [policy].",
            )
        approval = None
        if call_journal.plan is not None and route.effect_of(target) != "read":
            approval = await self._require_approval(call, number, call_journal, call_journal.plan)
            args = call_journal.effective_args(call, number)
        by_person = approval is not None and approval["person"]
        if (
            verdict == "ask"
            and not by_person
            and not call_journal.questions.permissions.is_allowed(target)
        ):
            covers = self._approvals_to_ask(call_journal, number)
            entry.status = "waiting"
            answer = await call_journal.questions.ask(
                APPROVAL_KIND, number, target, args, call.line, covers
            )
            if call_journal.plan is not None:
                (
                    call_journal.plan.record_approval
                    if answer.decision == "allow"
                    else call_journal.plan.record_denial
                )(covers)
            if answer.decision != "allow":
                raise CallFailed("denied", _denial_message(target, answer))
        return args

    async def _ask_model(
        self,
        call: Call,
        number: int,
        entry: LedgerEntry,
        call_journal: CallJournal,
        request: Mapping[str, Any],
    ) -> Any:
        """Ask the client's model and return its answer; raises `CallFailed` if there is none."""
        entry.status = "waiting"
        answer = await call_journal.questions.ask(
            MODEL_REQUEST_KIND, number, call.target, call.args, call.line, model_request=request
        )
        entry.status = "started"
        if answer.decision != "result":
            raise CallFailed("llm_unavailable", "Nobody has answered the question.")
        return answer.value

    async def _require_approval(
        self, call: Call, number: int, call_journal: CallJournal, plan: Plan
    ) -> ApprovedCall:
        """Return what was approved of a planned call; raises `CallFailed` where that is nothing."""
        approval = plan.find_approval(call_journal.call_key(number))
        if approval is None:
            message = f"{call.target} may change something: it is planned, and not made."
            hints = await call_journal.questions.find_origin_hints(call.args)
            if PLANNED_RESULT_PREFIX in call_journal.call_key(number)[1]:
                hints.append(
                    "The arguments hold the result of a planned call: it is planned again when that is known."
                )
            plan.add_call(PlannedCall(number, call.target, call.args, call.line, tuple(hints)))
            raise CallFailed(PLANNED_KIND, message, data={"call": number, "hints": hints})
        if not approval["sent"]:
            raise CallFailed(
                "denied", f"{call.target} was planned with these arguments, and was not approved."
            )
        return approval

    def _approvals_to_ask(self, call_journal: CallJournal, number: int) -> list[ApprovedCall]:
        """Return the other calls of a plan that a person has to allow, too, so that they are asked once."""
        if call_journal.plan is None:
            return []
        return [
            each
            for each in call_journal.plan.approved_calls
            if not each["person"]
            and self._find_route(each["target"]).verdict_for(each["target"]) == "ask"
            and (each["target"], each["args"], each["nth"]) != call_journal.call_key(number)
        ]

    async def _resolve_doubt(
        self, call: Call, number: int, entry: LedgerEntry, call_journal: CallJournal
    ) -> QuestionAnswered:
        """Ask what is to be done about a call that may have been made before the server died."""
        entry.status = "waiting"
        answer = await call_journal.questions.ask(
            IN_DOUBT_KIND, number, call.target, call_journal.effective_args(call, number), call.line
        )
        if answer.decision not in ("again", "result"):
            message = f"The server died while {call.target} was called; whether that took effect is not known."
            raise CallFailed("in_doubt", message)
        return answer

    def _find_route(self, target: str) -> Route:
        prefix, _, rest = target.partition(".")
        return self._routes[prefix] if rest and prefix in self._routes else self._unknown_route

    async def _reject_unknown_target(self, target: str, args: dict[str, Any]) -> NoReturn:
        known = ", ".join(sorted(self._routes))
        raise CallFailed(
            "unknown_target", f"Nothing answers to {target!r:.80}; the prefixes are {known}."
        )


def abandoned_call_id(call: Call) -> int:
    """Return the sandbox's number of the call that its code waits no more for; -1 if it names none."""
    number = call.args.get("call")
    return number if type(number) is int else -1


def is_abandoned_error(error: Mapping[str, Any] | None) -> bool:
    """Return whether a call ended because the code did not wait for its answer."""
    return error is not None and error.get("kind") == ABANDONED_ERROR["kind"]


def _elapsed_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 3)


async def _start_call(call: Call, route: Route, call_journal: CallJournal) -> int:
    """Journal the start of `call` and return its number."""
    if route.prepare is not None:
        await route.prepare(call.target)
    try:
        return call_journal.start_call(
            call, route.effect_of(call.target), is_listed=route.is_listed
        )
    except ValueError as exc:
        raise CallFailed(
            "invalid_arguments", f"{call.target}: the arguments are not JSON data: {exc}"
        ) from exc
    except JournalFailed as exc:
        raise CallFailed("unavailable", f"{call.target} was not called: {exc}") from exc


async def _flush_call_start(call: Call, call_journal: CallJournal) -> None:
    """Wait until the start of a call that may change something is on the disk.

    A server that dies right after must know that such a call was made, or it would be made twice.
    """
    try:
        await call_journal.flush()
    except JournalFailed as exc:
        raise CallFailed("unavailable", f"{call.target} was not called: {exc}") from exc


def _denial_message(target: str, answer: QuestionAnswered) -> str:
    if answer.decision == "expired":
        return f"{target} was not called: nobody has answered whether it may be."
    return f"{target} was not called: it was refused ({answer.answered_by or 'nobody said why'})."


def _describe_failure(target: str, exc: Exception) -> dict[str, Any]:
    """Return `exc` as the error that code in the sandbox sees; the text of an unforeseen one stays on the host."""
    if isinstance(exc, CallFailed):
        return {"kind": exc.kind, "message": str(exc), "data": exc.data}
    if isinstance(exc, JournalFailed):
        message = f"{target} was called, but its answer could not be journaled: {exc}"
        return {"kind": "unavailable", "message": message, "data": None}
    if isinstance(exc, ValueError):
        return {
            "kind": "protocol",
            "message": f"{target} answered with something that is not JSON data.",
            "data": None,
        }
    logger.error("call of %s failed", target, exc_info=exc)
    return {
        "kind": "internal",
        "message": f"{target} failed inside the server; its log says why.",
        "data": None,
    }
