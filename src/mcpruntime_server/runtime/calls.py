"""The router: everything sandboxed code asks of the host passes here, once, and is journaled.

A target is `prefix.rest`; the prefix chooses the route. What the sandbox says of itself (which run, which number) is
not trusted: the run is the one that the session executes, and numbers only serve to match the answer.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

from ..errors import CallFailed, JournalFailed
from ..journal.events import CallFinished, CallStarted, canonical_json
from ..journal.replay import RecordedCall
from ..journal.store import Journal
from ..kernel.wire import ABANDON, Call, Reply

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


@dataclass
class LedgerEntry:
    """One line of what a run asked for: `status` is `started` until it is `ok` or `error`."""

    target: str
    args: dict[str, Any]
    status: Literal["started", "ok", "error"] = "started"
    ms: float = 0.0
    error: str = ""


class Answers(Protocol):
    """Whoever answers the calls of a run: the router, or a recording."""

    async def answer(self, call: Call, log: CallLog) -> Reply:
        """Return the reply to `call`, which goes on the run's `log`."""
        ...


class CallLog:
    """The calls of one run: their numbers, their ledger, and where they are journaled."""

    def __init__(self, journal: Journal, session: str, run: str) -> None:
        self.ledger: list[LedgerEntry] = []
        self._journal = journal
        self._session = session
        self._run = run
        self._count = 0
        self._seen: Counter[tuple[str, str]] = Counter()
        self._recorded: dict[int, LedgerEntry] = {}  # by their numbers in the journal
        self._entries: dict[int, LedgerEntry] = {}  # this and the next by the sandbox's number of the call
        self._numbers: dict[int, int] = {}  # in the journal, of calls that have no end there
        self._abandoned: set[int] = set()  # this and the next by their numbers in the journal
        self._writes: set[int] = set()  # that have no end there

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
        self._seen[call.target, recorded.args] += 1
        entry = self._entries[call.id] = self._recorded[recorded.call]
        return entry

    def finish(self, number: int, value: Any, error: Mapping[str, Any] | None, ms: float) -> None:
        """Journal how call `number` ended, unless that is of no matter to the code any more."""
        if not self.is_abandoned(number):
            self._append(CallFinished(number, value, error, ms))
        if number in self._writes:
            self._writes.discard(number)
            self._journal.hurry()  # a server that died now would not know that this has ended

    def abandon(self, call: Call) -> None:
        """Journal that the code waits no more for the answer to the call that `call` names."""
        own = abandoned_by(call)
        number = self._numbers.pop(own, None)
        if number is None:
            return
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
            logger.error("the end of a call in run %s was not journaled: %s", self._run, exc)

    async def flush(self) -> None:
        """Wait until all of it is on the disk."""
        await self._journal.flush()

    def _append(self, event: CallStarted | CallFinished) -> None:
        self._journal.append(self._session, event, self._run)


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

    async def answer(self, call: Call, log: CallLog) -> Reply:
        """Return the reply to `call`; failures become errors in it, and only cancellation leaves."""
        if call.target == ABANDON:
            log.abandon(call)
            return Reply(call.id)
        entry = log.list(call) if self.is_listed(call.target) else LedgerEntry(call.target, call.args)
        return await self._make(call, entry, log, None)

    async def answer_again(self, call: Call, number: int, entry: LedgerEntry, log: CallLog) -> Reply:
        """Make a call whose start is in the journal, and on the ledger, as number `number`, and whose end is not."""
        return await self._make(call, entry, log, number)

    async def _make(self, call: Call, entry: LedgerEntry, log: CallLog, number: int | None) -> Reply:
        started = time.perf_counter()
        try:
            route = self._route(call.target)
            if number is None:
                number = await _admit(call, route, log)
            value = await route.call(call.target, call.args)
            entry.ms = _ms_since(started)
            log.finish(number, value, None, entry.ms)
        except Exception as exc:  # noqa: BLE001 - a handler's failure is the answer, whatever it is
            error = _describe(call.target, exc)
            entry.ms = _ms_since(started)
            if number is not None:
                log.fail(number, error, entry.ms)
            if not log.is_abandoned(number):
                entry.status, entry.error = "error", error["message"]
            return Reply(call.id, None, error)
        if not log.is_abandoned(number):
            entry.status = "ok"
        return Reply(call.id, value)

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
    """Journal the start of `call`; what may change something waits until that is on the disk.

    A server that dies right after must know that such a call was made, or it would be made twice.
    """
    if route.prepare is not None:
        await route.prepare(call.target)
    effect = route.effect(call.target)
    try:
        number = log.start(call, effect, listed=route.listed)
        if effect == "write":
            await log.flush()
    except ValueError as exc:
        raise CallFailed("invalid_arguments", f"{call.target}: the arguments are not JSON data: {exc}") from exc
    except JournalFailed as exc:
        raise CallFailed("unavailable", f"{call.target} was not called: {exc}") from exc
    return number


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
