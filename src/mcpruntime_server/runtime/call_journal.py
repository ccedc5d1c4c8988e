"""The calls of one run in the journal: their numbers, their starts and their ends."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from ..errors import JournalFailed, JournalLimitReached
from ..journal.events import (
    CallError,
    CallFinished,
    CallStarted,
    CallSummary,
    EncodedJson,
    find_encoded,
)
from ..journal.recording import RecordedCall
from ..journal.store import Journal
from ..protocol.payloads import JsonObject
from ..protocol.wire import Call
from .call_ledger import MAX_KEPT_CHARS, CallLedger, LedgerEntry
from .pending_questions import PendingQuestions
from .plan import CallKey, Plan

ABANDONED_ERROR: CallError = {
    "kind": "abandoned",
    "message": "The code did not wait for the answer; what was asked for may have been done.",
    "data": None,
}

logger = logging.getLogger(__name__)


class CallJournal:
    """Numbers the calls of one run, and journals how they start and end.

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
        self.ledger = CallLedger()
        self.session_id = session_id
        self.run_id = run_id
        self.principal = principal  # who owns the session
        self._journal = journal
        self._on_limit = on_limit
        self._call_count = 0
        self._occurrences: Counter[tuple[str, str]] = Counter()  # by target and `digest_args`
        self._numbers_by_id: dict[int, int] = {}  # of calls that have no end in the journal
        self._abandoned_numbers: set[int] = set()
        self._open_keys: dict[int, CallKey] = {}  # by number; of calls that have no end yet
        self._has_gap = False  # the code has seen an answer that the journal could not take

    def start_call(
        self, call: Call, args: str, effect: str, *, is_listed: bool, digest: str | None = None
    ) -> int:
        """Journal the start of `call`, whose arguments as canonical JSON are `args`.

        `digest` is what `digest_args` returns for them, if that is known. Return the number of the
        call; raises `ValueError` if it cannot be journaled.
        """
        journaled = args
        if (encoded := find_encoded(call.args)) is not None:
            digest = encoded.digest
            journaled = cast("str", EncodedJson(encoded.journaled))  # the journal writes it as text
        occurrence = call.target, digest or digest_args(args)
        nth = self._occurrences[occurrence]
        self._occurrences[occurrence] += 1
        self._call_count += 1
        number = self._call_count
        self._numbers_by_id[call.call_id] = number
        self._open_keys[number] = call.target, args, nth
        if (entry := self.ledger.find(call.call_id)) is not None:
            entry.effect = effect
        self._append_event(
            CallStarted(
                number, call.target, journaled, effect, nth, call.line, is_listed, call.order
            )
        )
        return number

    def restore_call(self, recorded: RecordedCall, entry: LedgerEntry) -> None:
        """Count a call that was made on a dead server, whether or not the code makes it again."""
        self._call_count = max(self._call_count, recorded.call_id)
        self.ledger.restore(recorded, entry)

    def resume_call(self, call: Call, recorded: RecordedCall) -> LedgerEntry:
        """Return the ledger entry of a call that the journal has and that the code makes again."""
        if recorded.finished_sequence is None:
            self._numbers_by_id[call.call_id] = recorded.call_id
            self._open_keys[recorded.call_id] = recorded.target, recorded.args, recorded.nth
        self._occurrences[call.target, digest_args(recorded.args)] += 1
        return self.ledger.resume(call, recorded)

    def call_key(self, number: int) -> CallKey:
        """Return the key that identifies an unfinished call in a recording."""
        return self._open_keys[number]

    def effective_args(self, call: Call, number: int) -> JsonObject:
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
        blobs: Sequence[str] = (),
        download_bytes: int = 0,
    ) -> None:
        """Journal the end of a call, unless the code has abandoned it."""
        self._append_end(
            CallFinished(number, value, error, duration_ms, summary, list(blobs), download_bytes)
        )
        self._journal.flush_soon()  # once the answer is on its way: the call is not made again

    def count_download(self, size: int) -> None:
        """Count bytes that a call of the run brings; raises `JournalLimitReached`."""
        with self._stopping_at_limit():
            self._journal.count_download(self.session_id, self.run_id, size)

    def copy_end(self, number: int, recorded: RecordedCall, blobs: list[str]) -> None:
        """Journal the end of a call that another run has made: a crash may lose it."""
        self._append_end(
            CallFinished(number, recorded.value, recorded.error, 0.0, recorded.summary, blobs)
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
        if (entry := self.ledger.find(call_id)) is not None:
            entry.apply_error(ABANDONED_ERROR)

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
        with self._stopping_at_limit():
            self._journal.append(self.session_id, event, self.run_id)

    @contextmanager
    def _stopping_at_limit(self) -> Iterator[None]:
        try:
            yield
        except JournalLimitReached as exc:
            self._on_limit(exc)
            raise


def digest_args(args: str) -> str:
    """Return what stands for canonical arguments: a digest if they are long."""
    if len(args) <= MAX_KEPT_CHARS:
        return args
    return hashlib.sha256(args.encode()).hexdigest()


def abandoned_call_id(call: Call) -> int:
    """Return the sandbox's id of the call that is abandoned; -1 if there is none."""
    call_id = call.args.get("call")
    return call_id if type(call_id) is int else -1


def is_abandoned_error(error: CallError | None) -> bool:
    """Return whether a call ended because the code did not wait for it."""
    return error is not None and error["kind"] == ABANDONED_ERROR["kind"]
