"""Answers the calls of a run from a recording, in the recorded order.

A call is found by its target, its canonical arguments, its order, and how often the run has made it
before, so that concurrent calls find their answers, too. Answers are replayed in the order of the
recording, starts and ends of calls interleaved as they were, so that code that acts on whatever
ends first sees it end first. What does not happen again is skipped after a second.

Rule 1: nothing outside is touched, except for what is named as live and what a resumed run does
after the end of its recording.
Rule 2: a resumed run never repeats a call whose outcome the journal does not have, unless the call
is harmless or somebody says so. It changes nothing before it has repeated all recorded changes.
Rule 3: a call that the recording does not have is a divergence. The code gets it as an error, and
it is kept for the comparison of the runs.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import anyio

from ..errors import McpRuntimeError, ReplayDiverged
from ..journal.events import CallError, EncodedJson, arguments_text
from ..journal.large_values import encode_if_large
from ..journal.recording import RecordedCall, Recording
from ..protocol.payloads import JsonObject
from ..protocol.presentation import format_stored_call
from ..protocol.wire import ABANDON_TARGET, Call, EncodedValue, Reply
from .call_journal import CallJournal, abandoned_call_id, is_abandoned_error
from .call_ledger import LedgerEntry
from .plan import is_planned
from .router import Router
from .run_spec import RunSpec

ORDER_TIMEOUT_S = 1.0  # for what came before an answer; threads may change the order, or drop it
MAX_ORDER_TIMEOUT_S = 60.0  # whatever a recording says of how long a call took
DIVERGED_ORDER_TIMEOUT_S = 0.05  # once something did not come: the code goes its own way
CATCH_UP_TIMEOUT_S = 10.0  # for a thread on a loaded machine to repeat a call; then it has diverged
MAX_CALL_CHARS = 300  # of a call in a message
FOREIGN_BLOB_ERROR: CallError = {
    "kind": "unavailable",
    "message": "The recorded answer names data that is not part of its recording.",
    "data": None,
}


class Replayer:
    """Answers calls in place of the router.

    `spec` is that of the run, unless a recorded step is only rebuilt. A dry run that is committed
    has its planned calls, and all that follow from them, answered by the router. `on_halt` is
    called with the reason when a resumed run cannot continue.
    """

    def __init__(
        self,
        recording: Recording,
        router: Router,
        spec: RunSpec | None = None,
        on_halt: Callable[[McpRuntimeError], None] | None = None,
    ) -> None:
        self.divergence: ReplayDiverged | None = None
        self._recording = recording
        self._router = router
        self._on_halt = on_halt
        self._live_targets = spec.live_targets if spec else frozenset()
        self._is_resumed = spec is not None and spec.is_resumed
        self._is_commit = spec is not None and spec.is_dry_run and not spec.is_resumed
        self._allow_lookups = spec is not None and spec.allow_lookups
        self._unclaimed_calls = UnclaimedCalls(recording.calls, may_be_partial=self._is_resumed)
        self._order = ReplayOrder([call for call in recording.calls if self._is_replayed(call)])
        self._repeated_calls: dict[int, RecordedCall] = {}  # by the sandbox's id of the call
        self._call_count = 0
        self._is_halted = False

    def _is_replayed(self, call: RecordedCall) -> bool:
        if self._is_live_call(call.target, {}):
            return False
        return not (self._is_commit and is_planned(call))

    async def answer_call(self, call: Call, call_journal: CallJournal | None) -> Reply:
        """Return the recorded reply to `call`; it is journaled if there is a `call_journal`."""
        if self._is_halted:
            await anyio.sleep_forever()  # until the run is finished
        if call.target == ABANDON_TARGET:
            return self._abandon_call(call, call_journal)
        if self._is_live_call(call.target, call.args):
            return await self._answer_live(call, call_journal)
        self._call_count += 1
        try:
            args = arguments_text(call.args)
        except ValueError as exc:
            message = f"{call.target}: the arguments are not JSON data: {exc}"
            error = {"kind": "invalid_arguments", "message": message, "data": None}
            return Reply(call.call_id, None, error)
        recorded = self._unclaimed_calls.claim_call(call.target, args, call.order)
        if recorded is None or not self._is_replayed(recorded):
            return await self._answer_unrecorded(call, args, call_journal)
        self._order.mark_started(recorded)
        self._repeated_calls[call.call_id] = recorded
        if self._is_resumed:
            return await self._resume_call(call, recorded, call_journal)
        return await self._answer_recorded(call, args, recorded, call_journal)

    def unrepeated_calls(self) -> list[RecordedCall]:
        """Return the recorded calls of the ledger that the code has not made again."""
        unstarted = self._order.unstarted_calls()
        return [call for call in unstarted if self._router.is_listed(call.target)]

    def find_missing_call(self) -> ReplayDiverged | None:
        """Return the divergence that the code ended without making a recorded call, if it did."""
        left = self.unrepeated_calls()
        if not left or self._is_resumed:
            return None
        return self._make_divergence(
            format_request(left[0].target, left[0].args), "the end of the code"
        )

    def _is_live_call(self, target: str, args: JsonObject) -> bool:
        prefix, _, rest = target.partition(".")
        server = str(args.get("server")) if prefix == "catalog" else rest.partition(".")[0]
        return server in self._live_targets or rest in self._live_targets

    async def _answer_live(self, call: Call, call_journal: CallJournal | None) -> Reply:
        assert call_journal is not None, "a rebuilt step has no live calls"
        return await self._router.answer_call(call, call_journal)

    # a recorded call ------------------------------------------------------------------------------

    async def _answer_recorded(
        self, call: Call, args: str, recorded: RecordedCall, call_journal: CallJournal | None
    ) -> Reply:
        """Answer as recorded; the run that repeats the call journals it as its own."""
        entry = LedgerEntry(call.target, call.args)
        number = 0
        if call_journal is not None:
            is_listed = self._router.is_listed(call.target)
            if is_listed:
                entry = call_journal.ledger.add(call)
            number = call_journal.start_call(call, args, recorded.effect, is_listed=is_listed)
        if recorded.error is None and await self._router.names_foreign_blobs(
            call, recorded.value, recorded.blobs
        ):
            recorded = replace(recorded, value=None, error=FOREIGN_BLOB_ERROR)
        blobs = self._router.blobs_of(recorded.target, recorded.value)
        recorded = await self._encode_large_value(recorded)
        await self._wait_for_turn(recorded)  # after which nothing waits, so that the order holds
        if call_journal is not None:
            call_journal.copy_end(number, recorded, blobs)
        return _recorded_reply(call, recorded, entry)

    async def _resume_call(
        self, call: Call, recorded: RecordedCall, call_journal: CallJournal | None
    ) -> Reply:
        """Answer as recorded in the run's own journal; make an unfinished call if it is safe."""
        assert call_journal is not None, "a resumed run has a journal"
        entry = call_journal.resume_call(call, recorded)
        if recorded.finished_sequence is not None:
            recorded = await self._encode_large_value(recorded)
            await self._wait_for_turn(recorded)
            return _recorded_reply(call, recorded, entry)
        in_doubt = recorded.effect == "write" and not was_never_made(recorded, call_journal)
        return await self._router.resume_call(
            call, recorded.call_id, entry, call_journal, in_doubt=in_doubt
        )

    async def _encode_large_value(self, recorded: RecordedCall) -> RecordedCall:
        """Return a call whose answer, if it is large, is the text that journal and code get."""
        if not self._router.passes_answers_on(recorded.target):
            return recorded
        return replace(recorded, value=await encode_if_large(recorded.value))

    async def _wait_for_turn(self, recorded: RecordedCall) -> None:
        if recorded.finished_sequence is None or is_abandoned_error(recorded.error):
            await anyio.sleep_forever()  # as recorded
        await self._order.wait_for_turn(recorded)

    def _abandon_call(self, call: Call, call_journal: CallJournal | None) -> Reply:
        """Note that the code does not wait for a call; what came after that may come now."""
        recorded = self._repeated_calls.get(abandoned_call_id(call))
        if recorded is not None and is_abandoned_error(recorded.error):
            self._order.mark_finished(recorded)
        if call_journal is not None:
            call_journal.abandon_call(call)
        return Reply(call.call_id)

    # a call that the recording does not have ------------------------------------------------------

    async def _answer_unrecorded(
        self, call: Call, args: str, call_journal: CallJournal | None
    ) -> Reply:
        if self._is_resumed:
            await self._wait_until_caught_up(call, args)
            if self._is_halted:
                await anyio.sleep_forever()
            return await self._answer_live(call, call_journal)
        is_lookup = self._allow_lookups and not self._router.is_listed(call.target)
        if self._is_commit or is_lookup:
            return await self._answer_live(call, call_journal)
        if self._router.runs_ahead(call.target):
            message = f"{call.target}: the recording ends here, because its code had left."
            error = {"kind": "unavailable", "message": message, "data": None}
            return Reply(call.call_id, None, error)
        left = self.unrepeated_calls()
        expected = format_request(left[0].target, left[0].args) if left else "no further call"
        divergence = self._make_divergence(expected, format_request(call.target, args))
        self.divergence = self.divergence or divergence
        error = {"kind": "diverged", "message": str(divergence), "data": None}
        return Reply(call.call_id, None, error)

    async def _wait_until_caught_up(self, call: Call, args: str) -> None:
        """Wait until a resumed run has repeated what it changed, before it changes anything."""
        if self._router.effect_of(call.target) == "read":
            return
        waited_from = time.monotonic()
        while left := [each for each in self._order.unstarted_calls() if each.effect != "read"]:
            if time.monotonic() - waited_from > CATCH_UP_TIMEOUT_S:
                got = format_request(call.target, args)
                await self._halt_run(
                    self._make_divergence(format_request(left[0].target, left[0].args), got)
                )
            await self._order.wait_for_update(CATCH_UP_TIMEOUT_S)

    def _make_divergence(self, expected: str, got: str) -> ReplayDiverged:
        return ReplayDiverged(self._recording.start.step, self._call_count, expected, got)

    async def _halt_run(self, reason: McpRuntimeError) -> None:
        """Stop the run for `reason`; its code gets no more answers."""
        self._is_halted = True
        if self._on_halt is not None:
            self._on_halt(reason)
        await anyio.sleep_forever()


class OfflineCalls:
    """Refuses every call of code that must not reach anything outside its sandbox."""

    async def answer_call(self, call: Call, call_journal: CallJournal) -> Reply:
        """Return the refusal of a call; it is not journaled, because nothing is called."""
        if call.target == ABANDON_TARGET:
            return Reply(call.call_id)
        message = f"{call.target} was not called: a question about a state cannot call anything."
        return Reply(call.call_id, None, {"kind": "denied", "message": message, "data": None})


class UnclaimedCalls:
    """The recorded calls that the code has not made again.

    Threads and connections make identical calls in another order each time. Those with the same
    order find their own answers. Those whose order is new take the next one, unless the recording
    `may_be_partial`: then theirs is not there, and the next one is somebody else's.
    """

    def __init__(self, calls: Sequence[RecordedCall], *, may_be_partial: bool = False) -> None:
        self._may_be_partial = may_be_partial
        self._claimed: set[int] = set()
        self._by_order: defaultdict[tuple[str, str, int], deque[RecordedCall]] = defaultdict(deque)
        self._identical: defaultdict[tuple[str, str], deque[RecordedCall]] = defaultdict(deque)
        for call in sorted(calls, key=lambda each: each.nth):
            self._by_order[call.target, call.args, call.order].append(call)
            self._identical[call.target, call.args].append(call)

    def claim_call(self, target: str, args: str, order: int) -> RecordedCall | None:
        """Return the recorded call that a call repeats, and do not return it again."""
        queues = [self._by_order.get((target, args, order))]
        if not self._may_be_partial:
            queues.append(self._identical.get((target, args)))
        for queue in queues:
            while queue:
                call = queue.popleft()
                if call.call_id not in self._claimed:
                    self._claimed.add(call.call_id)
                    return call
        return None


class ReplayOrder:
    """The recorded order in which calls started and ended, and how far it has been repeated.

    Ends are released one at a time: each waiter releases the next one when it has its answer.
    """

    def __init__(self, calls: list[RecordedCall]) -> None:
        moments = [(call.started_sequence, call.call_id, False) for call in calls]
        moments += [
            (call.finished_sequence, call.call_id, True)
            for call in calls
            if call.finished_sequence is not None
        ]
        self._events = [(number, is_end) for _, number, is_end in sorted(moments)]
        self._finish_positions = {
            number: position for position, (number, is_end) in enumerate(self._events) if is_end
        }
        self._calls = {call.call_id: call for call in calls}
        self._started: set[int] = set()
        self._waiting: set[int] = set()
        self._finished: set[int] = set()
        self._released = {call.call_id: anyio.Event() for call in calls}
        self._position = 0
        self._has_diverged = False  # something did not happen again in time
        self._update = anyio.Event()

    def mark_started(self, call: RecordedCall) -> None:
        """Note that the code has made this call again."""
        self._started.add(call.call_id)
        self._advance()
        self._update.set()
        self._update = anyio.Event()

    def unstarted_calls(self) -> list[RecordedCall]:
        """Return the calls that the code has not made again, in their order."""
        return [call for number, call in self._calls.items() if number not in self._started]

    async def wait_for_update(self, timeout_s: float) -> None:
        """Wait at most so long until another call has been made again."""
        with anyio.move_on_after(timeout_s):
            await self._update.wait()

    async def wait_for_turn(self, call: RecordedCall) -> None:
        """Wait until everything before the end of `call` has happened again, or is skipped."""
        released = self._released[call.call_id]
        self._waiting.add(call.call_id)
        while not released.is_set() and self._finish_positions[call.call_id] >= self._position:
            before = self._position
            recorded_s = min(2 * call.duration_ms / 1e3, MAX_ORDER_TIMEOUT_S)
            timeout_s = max(ORDER_TIMEOUT_S, recorded_s)
            if self._has_diverged:
                timeout_s = DIVERGED_ORDER_TIMEOUT_S
            with anyio.move_on_after(timeout_s):
                await released.wait()
            if self._position == before and not released.is_set():
                self._skip_missing()
        self.mark_finished(call)

    def _skip_missing(self) -> None:
        """Skip to the first end that somebody waits for: what precedes it seems not to happen."""
        self._has_diverged = True
        positions = (self._finish_positions[number] for number in self._waiting)
        self._position = min(each for each in positions if each >= self._position)
        self._advance()

    def mark_finished(self, call: RecordedCall) -> None:
        """Note that the end of `call` has happened again."""
        self._waiting.discard(call.call_id)
        self._finished.add(call.call_id)
        self._advance()

    def _advance(self) -> None:
        """Pass over what has happened again, and release the end whose turn it is."""
        while self._position < len(self._events):
            number, is_end = self._events[self._position]
            if is_end and number in self._started:
                self._released[number].set()
            if number not in (self._finished if is_end else self._started):
                return
            self._position += 1


def was_never_made(recorded: RecordedCall, call_journal: CallJournal) -> bool:
    """Return whether a recorded call without an end is known not to have been made."""
    if call_journal.questions.was_never_made(recorded):
        return True
    if call_journal.plan is None:
        return False
    approval = call_journal.plan.find_approval((recorded.target, recorded.args, recorded.nth))
    return approval is None or not approval["sent"]


def format_request(target: str, args: str) -> str:
    """Return a call as text for a message."""
    return format_stored_call(target, args, MAX_CALL_CHARS)


def _recorded_reply(call: Call, recorded: RecordedCall, entry: LedgerEntry) -> Reply:
    entry.duration_ms, entry.summary = recorded.duration_ms, recorded.summary
    if recorded.error is None:
        entry.status = "ok"
        value = recorded.value
        if isinstance(value, EncodedJson):
            value = EncodedValue(value.data)
        return Reply(call.call_id, value)
    entry.apply_error(recorded.error)
    return Reply(call.call_id, None, dict(recorded.error))
