"""The calls of one run: their numbers, their ledger for the client, and their events.

The ledger lists the calls that a client should know of. The line number of a call is one of the
step that makes it, not of a function from an earlier step that it goes through.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import JournalFailed, JournalLimitReached
from ..journal.events import CallError, CallFinished, CallStarted, CallSummary
from ..journal.recording import RecordedCall
from ..journal.store import Journal
from ..protocol.presentation import format_call
from ..protocol.wire import Call
from .pending_questions import PendingQuestions
from .plan import PLANNED_KIND, CallKey, Plan

CallStatus = Literal["started", "waiting", "ok", "error", "denied", "planned"]
STATUS_BY_ERROR_KIND: Mapping[str, CallStatus] = {"denied": "denied", PLANNED_KIND: "planned"}
ABANDONED_ERROR: CallError = {
    "kind": "abandoned",
    "message": "The code did not wait for the answer; what was asked for may have been done.",
    "data": None,
}

MAX_CALL_CHARS = 300  # of the arguments of one call, as a client sees them
MAX_KEPT_CHARS = 2_000  # of the arguments of a call that is over
SUBMIT_TARGET = "agent.submit"  # the call that submits an agent's answer

logger = logging.getLogger(__name__)


@dataclass
class LedgerEntry:
    """A call that a run has made, for the client."""

    target: str
    args: dict[str, Any]
    status: CallStatus = "started"  # "waiting" while a question about it is open
    duration_ms: float = 0.0
    error: str = ""
    effect: str = "write"  # "read" | "idempotent" | "write"
    summary: CallSummary | None = None  # what a client sees instead of the arguments
    shown: str = ""  # the call as a client sees it, where `args` are too large to be kept

    @property
    def is_settled(self) -> bool:
        """Whether nothing more becomes of the call."""
        return self.status not in ("started", "waiting")

    def format(self) -> str:
        """Return the call as a client sees it."""
        args = self.summary["args"] if self.summary else self.args
        return self.shown or format_call(self.target, args, MAX_CALL_CHARS)

    def forget_large_args(self) -> None:
        """Keep only what a client sees of large arguments: the journal has them."""
        if measure(self.args, MAX_KEPT_CHARS) > MAX_KEPT_CHARS:
            self.shown, self.args = self.format(), {}

    def describe(self, args: dict[str, Any], outcome: str) -> None:
        """Show other arguments than those of the call, and what came of it."""
        self.summary = {"args": args, "outcome": outcome}

    def apply_error(self, error: CallError) -> None:
        """Set the status that follows from an error, and the message."""
        self.status = STATUS_BY_ERROR_KIND.get(error["kind"], "error")
        self.error = error["message"]


class CallJournal:
    """Numbers the calls of one run, keeps the ledger and journals starts and ends.

    The sandbox identifies a call by an id of its own, which only serves to match replies. The
    journal identifies it by its number.
    """

    def __init__(
        self,
        journal: Journal,
        session_id: str,
        run_id: str,
        principal: str,
        questions: PendingQuestions,
        plan: Plan | None = None,
        on_limit: Callable[[JournalLimitReached], None] = lambda _: None,
    ) -> None:
        self.questions = questions
        self.plan = plan  # of a dry run
        self.ledger: list[LedgerEntry] = []
        self.session_id = session_id
        self.run_id = run_id
        self.principal = principal  # who owns the session
        self._journal = journal
        self._on_limit = on_limit
        self._submission: LedgerEntry | None = None  # that counts
        self._call_count = 0
        self._occurrences: Counter[tuple[str, str]] = Counter()  # by target and `digest_args`
        self._recorded_entries: dict[int, LedgerEntry] = {}  # by number
        self._entries_by_id: dict[int, LedgerEntry] = {}
        self._numbers_by_id: dict[int, int] = {}  # of calls that have no end in the journal
        self._abandoned_numbers: set[int] = set()
        self._open_keys: dict[int, CallKey] = {}  # by number; of calls that have no end yet
        self._has_gap = False  # the code has seen an answer that the journal could not take

    def add_to_ledger(self, call: Call) -> LedgerEntry:
        """Add `call` to the ledger."""
        entry = self._entries_by_id[call.call_id] = LedgerEntry(call.target, call.args)
        self.ledger.append(entry)
        return entry

    def forget_large_args(self, entry: LedgerEntry) -> None:
        """Keep only what a client sees of large arguments, and the first submitted value."""
        if self._submission is None and entry.target == SUBMIT_TARGET and entry.status == "ok":
            self._submission = entry
        if entry is not self._submission:
            entry.forget_large_args()

    def start_call(self, call: Call, args: str, effect: str, *, is_listed: bool) -> int:
        """Journal the start of `call`, whose arguments as canonical JSON are `args`.

        Return its number; raises `ValueError` if it cannot be journaled.
        """
        occurrence = call.target, digest_args(args)
        nth = self._occurrences[occurrence]
        self._occurrences[occurrence] += 1
        self._call_count += 1
        number = self._call_count
        self._numbers_by_id[call.call_id] = number
        self._open_keys[number] = call.target, args, nth
        if call.call_id in self._entries_by_id:
            self._entries_by_id[call.call_id].effect = effect
        self._append_event(
            CallStarted(number, call.target, args, effect, nth, call.line, is_listed)
        )
        return number

    def restore_call(self, recorded: RecordedCall, entry: LedgerEntry) -> None:
        """Count a call that was made on a dead server, whether or not the code makes it again."""
        self._call_count = max(self._call_count, recorded.call_id)
        self._recorded_entries[recorded.call_id] = entry
        if recorded.in_ledger:
            self.ledger.append(entry)

    def resume_call(self, call: Call, recorded: RecordedCall) -> LedgerEntry:
        """Return the ledger entry of a call that the journal has and that the code makes again."""
        if recorded.finished_sequence is None:
            self._numbers_by_id[call.call_id] = recorded.call_id
            self._open_keys[recorded.call_id] = recorded.target, recorded.args, recorded.nth
        self._occurrences[call.target, digest_args(recorded.args)] += 1
        entry = self._entries_by_id[call.call_id] = self._recorded_entries[recorded.call_id]
        return entry

    def call_key(self, number: int) -> CallKey:
        """Return the key that identifies an unfinished call in a recording."""
        return self._open_keys[number]

    def effective_args(self, call: Call, number: int) -> dict[str, Any]:
        """Return the arguments that a call is made with; an approved plan may change them."""
        if self.plan is None:
            return call.args
        return self.plan.approved_args(self.call_key(number), call.args)

    def finish_call(
        self,
        number: int,
        value: Any,
        error: CallError | None,
        duration_ms: float,
        summary: CallSummary | None = None,
    ) -> None:
        """Journal the end of a call, unless the code has abandoned it."""
        self._append_end(CallFinished(number, value, error, duration_ms, summary))
        self._journal.flush_soon()  # once the answer is on its way: the call is not made again

    def copy_end(self, number: int, recorded: RecordedCall) -> None:
        """Journal the end of a call that another run has made: a crash may lose it."""
        self._append_end(
            CallFinished(number, recorded.value, recorded.error, 0.0, recorded.summary)
        )

    def fail_call(self, number: int, error: CallError, duration_ms: float) -> None:
        """Journal that a call failed; if that is impossible, the code still gets the error."""
        try:
            self.finish_call(number, None, error, duration_ms)
        except (JournalFailed, ValueError) as exc:
            logger.error("the end of a call in run %s was not journaled: %s", self.run_id, exc)
            self.record_gap()

    def record_gap(self) -> None:
        """Note that the code gets an answer that the journal does not have.

        What it does from here on cannot be repeated after a crash, so `sync` fails.
        """
        self._has_gap = True

    def abandon_call(self, call: Call) -> None:
        """Journal that the code does not wait for the answer to the call that `call` names."""
        call_id = abandoned_call_id(call)
        number = self._numbers_by_id.pop(call_id, None)
        if number is None:
            return
        self.questions.withdraw_call(number)
        self.fail_call(number, ABANDONED_ERROR, 0.0)
        self._abandoned_numbers.add(number)
        if call_id in self._entries_by_id:
            self._entries_by_id[call_id].apply_error(ABANDONED_ERROR)

    def is_abandoned(self, number: int | None) -> bool:
        """Return whether the code has stopped waiting for a call."""
        return number in self._abandoned_numbers

    async def sync(self) -> None:
        """Wait until what the code has seen so far is durable; raises `JournalFailed`."""
        if self._has_gap:
            raise JournalFailed(
                "The answer to an earlier call of this run is not in the journal.",
                remedy="Run the code again.",
            )
        await self._journal.sync()

    def _append_end(self, event: CallFinished) -> None:
        if not self.is_abandoned(event.call_id):
            self._append_event(event)
        self._open_keys.pop(event.call_id, None)

    def _append_event(self, event: CallStarted | CallFinished) -> None:
        try:
            self._journal.append(self.session_id, event, self.run_id)
        except JournalLimitReached as exc:
            self._on_limit(exc)
            raise


def digest_args(args: str) -> str:
    """Return what stands for canonical arguments: a digest if they are long."""
    if len(args) <= MAX_KEPT_CHARS:
        return args
    return hashlib.sha256(args.encode()).hexdigest()


def measure(value: Any, limit: int) -> int:
    """Return about how many characters JSON data has; no longer exact beyond `limit`."""
    size, waiting = 0, [value]
    while waiting and size <= limit:
        item = waiting.pop()
        size += len(item) if isinstance(item, str) else 8
        if isinstance(item, dict):
            size += sum(map(len, item))
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return size


def abandoned_call_id(call: Call) -> int:
    """Return the sandbox's id of the call that is abandoned; -1 if there is none."""
    call_id = call.args.get("call")
    return call_id if type(call_id) is int else -1


def is_abandoned_error(error: CallError | None) -> bool:
    """Return whether a call ended because the code did not wait for it."""
    return error is not None and error["kind"] == ABANDONED_ERROR["kind"]
