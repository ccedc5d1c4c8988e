"""The router: every call of sandboxed code to the host passes here and is journaled.

A target is `prefix.rest`; the prefix selects the route. The settings may allow a call, deny it or
have a person asked; a dry run plans calls that may write. The sandbox is not trusted to say which
run it executes or how its calls are numbered.

Rule: a call that may have reached an upstream is never sent again unless somebody says so.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, Protocol

from anyio import to_thread
from anyio.lowlevel import checkpoint

from ..config import Verdict
from ..errors import CallFailed, JournalFailed
from ..journal.call_scope import CallScope, CredentialRequest, Download, enter_call_scope
from ..journal.events import (
    ApprovedCall,
    CallError,
    ClientModelRequest,
    Effect,
    EncodedJson,
    QuestionAnswered,
    arguments_text,
    canonical_json,
    decode_json,
    find_encoded,
)
from ..journal.large_values import MAX_TURN_CHARS, encode_if_large
from ..protocol.library_names import PLANNED_RESULT_TEXT
from ..protocol.payloads import JsonObject
from ..protocol.wire import ABANDON_TARGET, Call, EncodedValue, Reply, escape_surrogates
from .call_journal import CallJournal, digest_args
from .call_ledger import LedgerEntry, measure_arguments
from .observer import NO_OBSERVERS, ObservedCall, Observers
from .pending_questions import (
    APPROVAL_KIND,
    CREDENTIAL_KIND,
    CREDENTIAL_STORED,
    IN_DOUBT_KIND,
    MODEL_REQUEST_KIND,
    EncodedAnswer,
)
from .plan import PLANNED_KIND, Plan, PlannedCall

PLANNED_RESULT_PREFIX = PLANNED_RESULT_TEXT.partition("{")[0]  # of a planned result in arguments

logger = logging.getLogger(__name__)


def is_never_open_world(target: str) -> bool:
    """Return that the answers of a route hold nothing from the open world."""
    return False


def name_no_blobs(value: Any) -> list[str]:
    """Return that the answers of a route name no blobs."""
    return []


async def decode_here(text: bytes) -> Any:
    """Return the data in JSON text."""
    return decode_json(text.decode("ascii"))


class SuppliedSandbox(Protocol):
    """A sandbox, as far as an answer can bring something along."""

    async def copy_package(self, name: str, folder: Path) -> None:
        """Let code see a folder of this machine below the folder of packages."""
        ...


def allow_always(target: str, args: Mapping[str, Any]) -> Verdict:
    """Return that the calls of a route are allowed."""
    return "allow"


HandleCall = Callable[[str, JsonObject], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """How the calls of one prefix are answered; each function gets the target.

    `verdict_for` gets the arguments, too; it may raise `CallFailed` to say why a call is refused.
    `supply` brings into a sandbox what an answer names, recorded or not, before code gets it.
    `load_data` returns the bytes of a `Download` that was recorded.
    """

    handle: HandleCall
    effect_of: Callable[[str], Effect]  # what a call may change, known when `prepare` has returned
    is_listed: bool = True  # in the ledger
    max_args_chars: int | None = None  # of a call, roughly; None: as many as the link takes
    takes_encoded: bool = False  # `handle` passes large arguments on without looking into them
    is_billed: bool = False  # somebody pays for a call, whatever it changes
    prepare: Callable[[str], Awaitable[None]] | None = None
    verdict_for: Callable[[str, Mapping[str, Any]], Verdict] = allow_always
    is_open_world: Callable[[str], bool] = is_never_open_world  # strangers may write its answers
    blobs_of: Callable[[Any], list[str]] = name_no_blobs  # that an answer names, 200 at most
    supply: Callable[[Any, SuppliedSandbox], Awaitable[None]] | None = None
    load_data: Callable[[Any], Awaitable[bytes]] | None = None
    runs_ahead: bool = False  # calls are made before code needs the answers, in varying numbers


class CallHandler(Protocol):
    """Answers the calls of a run: the router, or a recording."""

    async def answer_call(self, call: Call, call_journal: CallJournal) -> Reply:
        """Return the reply to `call`, which is journaled."""
        ...


@dataclass
class ActiveCall:
    """A call that is being answered."""

    call: Call
    entry: LedgerEntry
    journal: CallJournal
    number: int

    @property
    def target(self) -> str:
        """What is called."""
        return self.call.target

    @property
    def effective_args(self) -> JsonObject:
        """The arguments that it is made with."""
        return self.journal.effective_args(self.call, self.number)

    @property
    def is_allowed_by_person(self) -> bool:
        """Whether a person has allowed all calls of its target."""
        return self.journal.questions.permissions.is_allowed(self.target)

    async def ask(
        self,
        kind: str,
        args: Mapping[str, Any],
        covers: Iterable[ApprovedCall] = (),
        model_request: ClientModelRequest | None = None,
        credential: CredentialRequest | None = None,
    ) -> QuestionAnswered:
        """Ask about this call and return the answer; the run waits."""
        self.entry.status = "waiting"
        answer = await self.journal.questions.ask(
            kind, self.number, self.target, args, self.call.line, covers, model_request, credential
        )
        if not self.journal.questions.asks_about(self.number):  # else a batch waits for others
            self.entry.status = "started"
        return answer

    async def ask_model(self, request: ClientModelRequest) -> Any:
        """Return the answer of the client's model; raises `CallFailed` if there is none."""
        answer = await self.ask(MODEL_REQUEST_KIND, self.call.args, model_request=request)
        if answer.decision != "result":
            raise CallFailed("llm_unavailable", "Nobody has answered the question.")
        value = answer.value
        return value.value if isinstance(value, EncodedAnswer) else value

    async def ask_for_credential(self, request: CredentialRequest) -> bool:
        """Return whether a person has stored a credential; False if nobody can be asked."""
        if not self.journal.questions.may_ask_for_credential(self.number, request.url):
            return False
        answer = await self.ask(CREDENTIAL_KIND, self.effective_args, credential=request)
        return answer.decision == CREDENTIAL_STORED

    def enter_scope(self) -> None:
        """Tell the handler for which run it works."""
        questions = self.journal.questions
        enter_call_scope(
            CallScope(
                self.journal.session_id,
                self.journal.run_id,
                self.journal.principal,
                self.ask_model,
                partial(questions.pause_for_call, self.number),
                questions.set_agent_question,
                self.entry.describe,
                self.call.data,
                self.ask_for_credential,
                questions.report_progress,
                self.journal.count_download,
            )
        )


class Router:
    """Answers calls by their prefix; `decode_json` decodes large arguments elsewhere."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        observers: Observers = NO_OBSERVERS,
        decode_json: Callable[[bytes], Awaitable[Any]] = decode_here,
    ) -> None:
        self._routes = dict(routes)
        self._observers = observers
        self._decode_json = decode_json
        # A call of an unknown target is journaled like any other, so that it can be replayed.
        self._unknown_route = Route(self._reject_unknown_target, lambda _: "read")

    def add_route(self, prefix: str, route: Route) -> None:
        """Add the route of `prefix`, for a handler that is built after the runtime."""
        self._routes[prefix] = route

    def effect_of(self, target: str) -> Effect:
        """Return what a call of `target` may change."""
        return self._find_route(target).effect_of(target)

    def is_listed(self, target: str) -> bool:
        """Return whether calls of `target` are in the ledger."""
        return self._find_route(target).is_listed

    def runs_ahead(self, target: str) -> bool:
        """Return whether a repeated run may make more calls of `target` than were recorded."""
        return self._find_route(target).runs_ahead

    def is_open_world(self, target: str) -> bool:
        """Return whether strangers may have written the answers of `target`."""
        return self._find_route(target).is_open_world(target)

    def blobs_of(self, target: str, value: Any) -> list[str]:
        """Return the blobs that an answer names, which the journal keeps with it."""
        return self._find_route(target).blobs_of(value)

    async def names_foreign_blobs(self, call: Call, value: Any, blobs: Collection[str]) -> bool:
        """Return whether a recorded answer names a blob that is neither in `blobs` nor the call's.

        An archive of a stranger may hold such an answer: what is in `blobs` came with it.
        """
        foreign = set(self.blobs_of(call.target, value)).difference(blobs)
        if foreign and call.data:
            foreign.discard(await to_thread.run_sync(_digest_data, call.data))
        return bool(foreign)

    def passes_answers_on(self, target: str) -> bool:
        """Return whether nothing on the host looks into the answers of `target`."""
        route = self._find_route(target)
        return route.supply is None and route.load_data is None

    async def supply_reply(self, sandbox: SuppliedSandbox, call: Call, reply: Reply) -> Reply:
        """Bring into a sandbox what a reply names; return the reply, or the error if that fails."""
        route = self._find_route(call.target)
        if reply.error is not None:
            return reply
        try:
            if route.supply is not None:
                await route.supply(reply.value, sandbox)
            if route.load_data is not None and not reply.data:
                return reply.replace(data=await route.load_data(reply.value))
        except Exception as exc:  # noqa: BLE001 - the failure is the answer, whatever it is
            return Reply(call.call_id, None, dict(_describe_failure(call.target, exc)))
        return reply

    def leaves_trace(self, target: str) -> bool:
        """Return whether the outside remembers a call of `target`: it is billed, or not a read."""
        route = self._find_route(target)
        return route.is_billed or route.effect_of(target) != "read"

    async def answer_call(self, call: Call, call_journal: CallJournal) -> Reply:
        """Return the reply to `call`, which has the error if it fails; raises only cancellation."""
        if call.target == ABANDON_TARGET:
            call_journal.abandon_call(call)
            return Reply(call.call_id)
        if self.is_listed(call.target):
            entry = call_journal.ledger.add(call)
        else:
            entry = LedgerEntry(call.target, call.args)
        observed = ObservedCall(call_journal.run_id, self._find_prefix(call.target), entry)
        self._observers.on_call_started(observed)
        try:
            return await self._answer_listed_call(call, entry, call_journal)
        finally:
            self._observers.on_call_ended(observed)
            call_journal.ledger.forget_large_args(entry)

    async def _answer_listed_call(
        self, call: Call, entry: LedgerEntry, call_journal: CallJournal
    ) -> Reply:
        started = time.perf_counter()
        try:
            number = await _start_call(call, self._find_route(call.target), call_journal)
        except Exception as exc:  # noqa: BLE001 - a handler's failure is the answer, whatever it is
            error = _describe_failure(call.target, exc)
            entry.duration_ms = _elapsed_ms(started)
            entry.apply_error(error)
            return Reply(call.call_id, None, dict(error))
        return await self._execute_call(ActiveCall(call, entry, call_journal, number))

    async def resume_call(
        self,
        call: Call,
        number: int,
        entry: LedgerEntry,
        call_journal: CallJournal,
        *,
        in_doubt: bool = False,
    ) -> Reply:
        """Return the reply to a call that the journal has as started and not as finished.

        A call that is `in_doubt` may have been made: somebody is asked before it is made again.
        """
        active = ActiveCall(call, entry, call_journal, number)
        observed = ObservedCall(call_journal.run_id, self._find_prefix(call.target), entry)
        self._observers.on_call_started(observed)
        try:
            return await self._execute_call(active, in_doubt=in_doubt)
        finally:
            self._observers.on_call_ended(observed)
            call_journal.ledger.forget_large_args(entry)

    async def _execute_call(self, active: ActiveCall, *, in_doubt: bool = False) -> Reply:
        call, entry, journal, number = active.call, active.entry, active.journal, active.number
        started = time.perf_counter()
        try:
            doubt = await self._resolve_doubt(active) if in_doubt else None
            if doubt is not None and doubt.decision == "result":
                value = doubt.value
            else:
                if doubt is None:
                    args = await self._authorize_call(active)
                else:
                    args = active.effective_args
                entry.status, entry.args = "started", args
                started = time.perf_counter()
                value = await self._handle_call(active, args)
            data = b""
            if isinstance(value, Download):
                value, data = value.value, value.data
            entry.duration_ms = _elapsed_ms(started)
            blobs = self.blobs_of(call.target, value)
            if self.passes_answers_on(call.target):
                value = await encode_if_large(value)
            journal.finish_call(
                number, value, None, entry.duration_ms, entry.summary, blobs, len(data)
            )
        except Exception as exc:  # noqa: BLE001 - a handler's failure is the answer, whatever it is
            error = _describe_failure(call.target, exc)
            entry.duration_ms = _elapsed_ms(started)
            journal.fail_call(number, error, entry.duration_ms)
            if not journal.is_abandoned(number):
                entry.apply_error(error)
                if entry.status == "planned":
                    entry.error = ""
            return Reply(call.call_id, None, dict(error))
        if not journal.is_abandoned(number):
            entry.status = "ok"
        if isinstance(value, EncodedJson):
            return Reply(call.call_id, EncodedValue(value.data))
        return Reply(call.call_id, value, data=data)

    async def _handle_call(self, active: ActiveCall, args: JsonObject) -> Any:
        if self.leaves_trace(active.target):
            # The arguments may follow from answers before: all of them must survive a crash now.
            await _sync_call_start(active)
        active.enter_scope()
        route = self._find_route(active.target)
        encoded = find_encoded(args)
        if encoded is not None and not route.takes_encoded:
            args = await self._decode_json(encoded.data)
        return await route.handle(active.target, args)

    # what may be called ---------------------------------------------------------------------------

    async def _authorize_call(self, active: ActiveCall) -> JsonObject:
        """Return the arguments that a call may be made with; raises `CallFailed` if it may not."""
        route, plan = self._find_route(active.target), active.journal.plan
        verdict = _check_verdict(active, route, active.call.args)
        args, is_approved = active.call.args, False
        if plan is not None and route.effect_of(active.target) != "read":
            needs_person = verdict == "ask" and not active.is_allowed_by_person
            approval = await self._require_approval(active, plan, needs_person=needs_person)
            args, is_approved = active.effective_args, approval["person"]
            active.entry.args = args  # that is the call that is made, or asked about
            verdict = _check_verdict(active, route, args)
        if verdict == "ask" and not is_approved:
            await self._ask_person(active, args)
        return args

    async def _ask_person(self, active: ActiveCall, args: JsonObject) -> None:
        """Ask a person whether a call may be made; raises `CallFailed` if it may not."""
        if active.is_allowed_by_person:
            return
        covers = self._approvals_to_ask(active)
        answer = await active.ask(APPROVAL_KIND, args, covers=covers)
        is_allowed = answer.decision == "allow"
        plan = active.journal.plan
        if plan is not None and is_allowed:
            plan.record_approval(covers)
        elif plan is not None:
            plan.record_denial(covers)
        if not is_allowed:
            raise CallFailed("denied", _denial_message(active.target, answer))

    async def _require_approval(
        self, active: ActiveCall, plan: Plan, *, needs_person: bool
    ) -> ApprovedCall:
        """Return the approval of a call; raises `CallFailed` if it is only planned, or denied."""
        call, key = active.call, active.journal.call_key(active.number)
        approval = plan.find_approval(key)
        if approval is None:
            hints = await active.journal.questions.find_origin_hints(call.args)
            if PLANNED_RESULT_PREFIX in key[1]:
                hints.append(
                    "The arguments hold the result of a planned call: "
                    "it is planned again when that is known."
                )
            plan.add_call(
                PlannedCall(
                    active.number,
                    call.target,
                    call.args,
                    call.line,
                    tuple(hints),
                    needs_person=needs_person,
                )
            )
            message = f"{call.target} may change something: it is planned, and not made."
            data = {"call": active.number, "hints": hints, "needs_person": needs_person}
            raise CallFailed(PLANNED_KIND, message, data=data)
        if not approval["sent"]:
            message = f"{call.target} was planned with these arguments, and was not approved."
            raise CallFailed("denied", message)
        return approval

    def _approvals_to_ask(self, active: ActiveCall) -> list[ApprovedCall]:
        """Return the other calls of the plan that a person has to allow: all are asked at once.

        The client's model commits a plan; a person then approves what the policy asks about.
        """
        plan = active.journal.plan
        if plan is None:
            return []
        own_key = active.journal.call_key(active.number)
        return [
            each
            for each in plan.approved_calls
            if not each["person"]
            and self._verdict_for_planned(each) == "ask"
            and (each["target"], each["args"], each["nth"]) != own_key
        ]

    def _verdict_for_planned(self, approved: ApprovedCall) -> Verdict:
        args = json.loads(approved["sent"])
        try:
            return self._find_route(approved["target"]).verdict_for(approved["target"], args)
        except CallFailed:
            return "deny"

    async def _resolve_doubt(self, active: ActiveCall) -> QuestionAnswered:
        """Ask what to do about a call that may have been made before the server died."""
        answer = await active.ask(IN_DOUBT_KIND, active.effective_args)
        if answer.decision not in ("again", "result"):
            message = f"The server died while {active.target} was called; it may have taken effect."
            raise CallFailed("in_doubt", message)
        return answer

    def _find_route(self, target: str) -> Route:
        return self._routes.get(self._find_prefix(target), self._unknown_route)

    def _find_prefix(self, target: str) -> str:
        """Return the prefix that selects the route of a call; "" if there is none."""
        prefix, _, rest = target.partition(".")
        return prefix if rest and prefix in self._routes else ""

    async def _reject_unknown_target(self, target: str, args: JsonObject) -> NoReturn:
        known = ", ".join(sorted(self._routes))
        message = f"Nothing answers to {target!r:.80}; the prefixes are {known}."
        raise CallFailed("unknown_target", message)


def _check_verdict(active: ActiveCall, route: Route, args: Mapping[str, Any]) -> Verdict:
    """Return the verdict on a call with these arguments; raises `CallFailed` if it is denied."""
    verdict = route.verdict_for(active.target, args)
    if verdict == "deny":
        remedy = "The settings of the server say so, under [policy]."
        raise CallFailed("denied", f"{active.target} is not allowed here.", remedy=remedy)
    return verdict


async def _start_call(call: Call, route: Route, call_journal: CallJournal) -> int:
    """Journal the start of `call` and return its number; raises `CallFailed`."""
    if route.prepare is not None:
        await route.prepare(call.target)
    limit = route.max_args_chars
    if limit is not None and measure_arguments(call.args, limit) > limit:
        message = f"{call.target}: the arguments have more than {limit:,} characters."
        raise CallFailed("too_large", message)
    try:
        args, digest = arguments_text(call.args), None
        is_large = find_encoded(call.args) is None and len(args) > MAX_TURN_CHARS
        if is_large:  # each step takes the event loop some milliseconds: no two at once
            digest = await to_thread.run_sync(digest_args, args)
        number = call_journal.start_call(
            call, args, route.effect_of(call.target), is_listed=route.is_listed, digest=digest
        )
        if len(args) > MAX_TURN_CHARS:
            await checkpoint()
        return number
    except ValueError as exc:
        message = f"{call.target}: the arguments are not JSON data: {exc}"
        raise CallFailed("invalid_arguments", message) from exc
    except JournalFailed as exc:
        call_journal.record_gap()
        raise _not_called(call.target, exc) from exc


async def _sync_call_start(active: ActiveCall) -> None:
    """Wait until the start of a call is durable; raises `CallFailed`."""
    try:
        await active.journal.sync()
    except JournalFailed as exc:
        raise _not_called(active.target, exc) from exc


def _not_called(target: str, exc: JournalFailed) -> CallFailed:
    return CallFailed("unavailable", f"{target} was not called: {exc}")


def _denial_message(target: str, answer: QuestionAnswered) -> str:
    if answer.decision == "expired":
        return f"{target} was not called: nobody has answered whether it may be."
    return f"{target} was not called: it was refused by {answer.answered_by or 'nobody known'}."


def _digest_data(data: bytes) -> str:
    return sha256(data).hexdigest()


def _elapsed_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 3)


def _describe_failure(target: str, exc: Exception) -> CallError:
    """Return `exc` as the error that code gets; the text of an unforeseen one stays here."""
    if isinstance(exc, CallFailed):
        message = escape_surrogates(str(exc))  # it may quote an upstream
        return {"kind": exc.kind, "message": message, "data": _drop_invalid_json(exc.data)}
    kind, message = "internal", f"{target} failed inside the server; its log says why."
    if isinstance(exc, JournalFailed):
        kind = "unavailable"
        message = f"{target} was called, but its answer could not be journaled: {exc}"
    elif isinstance(exc, ValueError):
        kind, message = "protocol", f"{target} answered with something that is not JSON data."
    else:
        logger.error("call of %s failed", target, exc_info=exc)
    return {"kind": kind, "message": message, "data": None}


def _drop_invalid_json(data: Any) -> Any:
    """Return `data`, or None if the journal could not hold it."""
    try:
        canonical_json(data)
    except ValueError:
        return None
    return data
