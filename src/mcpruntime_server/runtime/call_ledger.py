"""The ledger of one run: the calls that a client should know of.

The line number of a call is one of the step that makes it, not of a function from an earlier step
that it goes through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from anyio.lowlevel import checkpoint

from ..journal.events import CallError, CallSummary, find_encoded
from ..journal.large_values import measure_json
from ..journal.recording import RecordedCall
from ..protocol.payloads import JsonObject
from ..protocol.presentation import format_call
from ..protocol.wire import Call
from .plan import PLANNED_KIND

CallStatus = Literal["started", "waiting", "ok", "error", "denied", "planned"]
STATUS_BY_ERROR_KIND: Mapping[str, CallStatus] = {"denied": "denied", PLANNED_KIND: "planned"}

MAX_CALL_CHARS = 300  # of the arguments of one call, as a client sees them
MAX_KEPT_CHARS = 2_000  # of the arguments of a call that is over
MAX_ESCAPE_CHARS = 12  # that stand for one character in ASCII JSON
MAX_FORMATTED = 50  # calls that a result lists
SUBMIT_TARGET = "agent.submit"  # the call that submits an agent's answer


@dataclass
class LedgerEntry:
    """A call that a run has made, for the client."""

    target: str
    args: JsonObject
    status: CallStatus = "started"  # "waiting" while a question about it is open
    duration_ms: float = 0.0
    error: str = ""
    effect: str = "write"  # "read" | "idempotent" | "write"
    summary: CallSummary | None = None  # what a client sees instead of the arguments
    shown: str = ""  # the call as a client sees it, where that takes long or `args` are not kept

    @property
    def is_settled(self) -> bool:
        """Whether nothing more becomes of the call."""
        return self.status not in ("started", "waiting")

    def format(self) -> str:
        """Return the call as a client sees it."""
        if self.shown:
            return self.shown
        args = self.summary["args"] if self.summary else self.args
        encoded = find_encoded(args)
        return encoded.shown if encoded else format_call(self.target, args, MAX_CALL_CHARS)

    def forget_large_args(self) -> None:
        """Keep only what a client sees of large arguments: the journal has them."""
        is_encoded = find_encoded(self.args) is not None
        size = MAX_KEPT_CHARS + 1 if is_encoded else measure_json(self.args, MAX_KEPT_CHARS)
        if size > MAX_KEPT_CHARS:
            self.shown, self.args = self.format(), {}

    def describe(self, args: JsonObject, outcome: str) -> None:
        """Show other arguments than those of the call, and what came of it."""
        self.summary = {"args": args, "outcome": outcome}

    def apply_error(self, error: CallError) -> None:
        """Set the status that follows from an error, and the message."""
        self.status = STATUS_BY_ERROR_KIND.get(error["kind"], "error")
        self.error = error["message"]


class CallLedger:
    """The listed calls of one run, in the order in which they were made."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self._entries_by_id: dict[int, LedgerEntry] = {}  # by the sandbox's id of the call
        self._recorded_entries: dict[int, LedgerEntry] = {}  # by the number in the journal
        self._submission: LedgerEntry | None = None  # that counts

    def add(self, call: Call) -> LedgerEntry:
        """Add `call` and return its entry."""
        entry = self._entries_by_id[call.call_id] = LedgerEntry(call.target, call.args)
        self.entries.append(entry)
        return entry

    def find(self, call_id: int) -> LedgerEntry | None:
        """Return the entry of a call, by the sandbox's id."""
        return self._entries_by_id.get(call_id)

    def restore(self, recorded: RecordedCall, entry: LedgerEntry) -> None:
        """Add a call that was made on a dead server, whether or not the code makes it again."""
        self._recorded_entries[recorded.call_id] = entry
        if recorded.in_ledger:
            self.entries.append(entry)

    def resume(self, call: Call, recorded: RecordedCall) -> LedgerEntry:
        """Return the entry of a restored call that the code makes again."""
        entry = self._entries_by_id[call.call_id] = self._recorded_entries[recorded.call_id]
        return entry

    async def format_last(self) -> None:
        """Format the calls that a result lists, where that takes up to a millisecond for each."""
        listed = [each for each in self.entries if each.status != "ok" or each.effect != "read"]
        for entry in listed[-MAX_FORMATTED:]:
            if entry.is_settled and measure_json(entry.args, MAX_CALL_CHARS) > MAX_CALL_CHARS:
                entry.shown = entry.format()
                await checkpoint()

    def forget_large_args(self, entry: LedgerEntry) -> None:
        """Keep only what a client sees of large arguments, and the first submitted value."""
        if self._submission is None and entry.target == SUBMIT_TARGET and entry.status == "ok":
            self._submission = entry
        if entry is not self._submission:
            entry.forget_large_args()


def measure_arguments(args: Mapping[str, Any], limit: int) -> int:
    """Return about how many characters arguments have; no longer exact beyond `limit`."""
    encoded = find_encoded(args)
    if encoded is None:
        return measure_json(args, limit)
    least = len(encoded.data) // MAX_ESCAPE_CHARS
    return least if least > limit else measure_json(dict(args), limit)
