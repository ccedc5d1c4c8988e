"""Answers the calls of a run from a recording, in the order in which they were answered then.

A call is found by target, canonical arguments and how often the run has made it before, so that concurrent calls find
their answers too. An answer is held until everything that came before it in the recording has happened again: code that
acts on whatever ends first sees it end first.

Rule 1: nothing outside is touched but what is named as live, and what a resumed run does after its recording's end.
Rule 2: a resumed run never makes a call again of which the journal cannot say how it ended, unless that is harmless or
somebody says so.
Rule 3: a call that the recording does not have is a divergence, told to the code and kept for whoever compares.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio

from ..errors import McpRuntimeError, ReplayDiverged
from ..journal.events import canonical_json
from ..journal.recording import RecordedCall, Recording
from ..protocol.presentation import truncate_text
from ..protocol.wire import ABANDON_TARGET, Call, Reply
from .plan import is_planned
from .router import (
    STATUS_BY_ERROR_KIND,
    CallJournal,
    LedgerEntry,
    Router,
    abandoned_call_id,
    is_abandoned_error,
)
from .run_spec import RunSpec

ORDER_TIMEOUT_S = 1.0  # for what came before an answer to happen again; threads may do it in another order, or never
CATCH_UP_TIMEOUT_S = 10.0  # for another thread to make a call again, on a loaded machine; then the code has gone another way
DIVERGED_ORDER_TIMEOUT_S = 0.05  # the same, once something has not come: the code goes its own way
MAX_ARGS_CHARS = 300  # of a call's arguments in a message


class Replayer:
    """Stands where the router stands; `halt` is called with the reason when the run must not go on.

    `request` is the run's, if it is more than to execute again what is recorded. A dry run's, to commit it, has what
    was planned go to the router, and all that follows from it. One that `looks_up` has the router answer what is on no
    ledger, if the recording does not have it.
    """

    def __init__(
        self,
        recording: Recording,
        router: Router,
        spec: RunSpec | None = None,
        on_halt: Callable[[McpRuntimeError], None] | None = None,
    ) -> None:
        self.divergence: ReplayDiverged | None = None
        self._on_halt = on_halt
        self._recording = recording
        self._router = router
        self._live_targets = spec.live_targets if spec else frozenset()
        self._is_resumed = spec is not None and spec.is_resumed
        self._is_commit = commits = spec is not None and spec.is_dry_run and not spec.is_resumed
        self._allow_lookups = spec is not None and spec.allow_lookups
        self._recorded_calls = {
            (call.target, call.args, call.nth): call
            for call in recording.calls
            if not self._is_live_call(call.target, {}) and not (commits and is_planned(call))
        }
        self._occurrences: Counter[tuple[str, str]] = Counter()
        self._repeated_calls: dict[int, RecordedCall] = {}  # by the sandbox's number of the call
        self._call_count = 0
        self._order = ReplayOrder(list(self._recorded_calls.values()))
        self._is_halted = False

    async def answer_call(self, call: Call, call_journal: CallJournal | None) -> Reply:
        """Return the recorded reply to `call`; `log`, if there is one, gets it like any other."""
        if self._is_halted:
            await anyio.sleep_forever()  # until the run is over
        if call.target == ABANDON_TARGET:
            return self._abandon_call(call, call_journal)
        if self._is_live_call(call.target, call.args):
            return await self._answer_live(call, call_journal)
        self._call_count += 1
        try:
            args = canonical_json(call.args)
        except ValueError as exc:
            message = f"{call.target}: the arguments are not JSON data: {exc}"
            return Reply(
                call.call_id, None, {"kind": "invalid_arguments", "message": message, "data": None}
            )
        recorded = self._recorded_calls.get(
            (call.target, args, self._occurrences[call.target, args])
        )
        self._occurrences[call.target, args] += 1
        if recorded is None:
            return await self._answer_unrecorded(call, args, call_journal)
        self._order.mark_started(recorded)
        self._repeated_calls[call.call_id] = recorded
        return await (
            self._resume_call(call, recorded, call_journal)
            if self._is_resumed
            else self._answer_recorded(call, recorded, call_journal)
        )

    def unrepeated_calls(self) -> list[RecordedCall]:
        """Return the calls of the recording that the code has not made again, imports aside."""
        return [
            call for call in self._order.unstarted_calls() if self._router.is_listed(call.target)
        ]

    def find_missing_call(self) -> ReplayDiverged | None:
        """Return the divergence that the code ended without making a recorded call, if it did."""
        left = self.unrepeated_calls()
        if not left or self._is_resumed:
            return None
        return self._make_divergence(
            format_recorded_call(left[0].target, left[0].args), "the end of the code"
        )

    def _is_live_call(self, target: str, args: dict[str, Any]) -> bool:
        prefix, _, rest = target.partition(".")
        server = str(args.get("server")) if prefix == "catalog" else rest.partition(".")[0]
        return server in self._live_targets or rest in self._live_targets

    async def _answer_live(self, call: Call, call_journal: CallJournal | None) -> Reply:
        assert call_journal is not None, "what is rebuilt has no live calls"
        return await self._router.answer_call(call, call_journal)

    # one recorded call ----------------------------------------------------------------------------

    async def _answer_recorded(
        self, call: Call, recorded: RecordedCall, call_journal: CallJournal | None
    ) -> Reply:
        """Answer as recorded, journaling it as a call of the run that repeats it."""
        entry = self._ledger_entry(call, call_journal)
        listed = self._router.is_listed(call.target)
        number = (
            call_journal.start_call(call, recorded.effect, is_listed=listed)
            if call_journal is not None
            else 0
        )
        await self._wait_for_turn(recorded)
        if call_journal is not None:
            call_journal.finish_call(number, recorded.value, recorded.error, 0.0)
        return _recorded_reply(call, recorded, entry)

    async def _resume_call(
        self, call: Call, recorded: RecordedCall, call_journal: CallJournal | None
    ) -> Reply:
        """Answer as recorded in the journal of this very run; what has no end there is made again if it is harmless."""
        assert call_journal is not None
        entry = call_journal.resume_call(call, recorded)
        if recorded.finished_sequence is not None:
            await self._wait_for_turn(recorded)
            return _recorded_reply(call, recorded, entry)
        in_doubt = recorded.effect == "write" and not self._was_never_made(recorded, call_journal)
        return await self._router.resume_call(
            call, recorded.call_id, entry, call_journal, in_doubt=in_doubt
        )

    @staticmethod
    def _was_never_made(recorded: RecordedCall, call_journal: CallJournal) -> bool:
        """Return whether a call without an end is known not to have been made."""
        if call_journal.questions.was_never_made(recorded):
            return True
        approval = (
            call_journal.plan.find_approval((recorded.target, recorded.args, recorded.nth))
            if call_journal.plan
            else None
        )
        return call_journal.plan is not None and (approval is None or not approval["sent"])

    def _ledger_entry(self, call: Call, call_journal: CallJournal | None) -> LedgerEntry:
        if call_journal is not None and self._router.is_listed(call.target):
            return call_journal.add_to_ledger(call)
        return LedgerEntry(call.target, call.args)

    async def _wait_for_turn(self, recorded: RecordedCall) -> None:
        if recorded.finished_sequence is None or is_abandoned_error(recorded.error):
            await anyio.sleep_forever()  # as it did then
        await self._order.wait_for_turn(recorded)

    def _abandon_call(self, call: Call, call_journal: CallJournal | None) -> Reply:
        """The code waits no more for the answer to a call: what came after that then may come now."""
        recorded = self._repeated_calls.get(abandoned_call_id(call))
        if recorded is not None and is_abandoned_error(recorded.error):
            self._order.mark_finished(recorded)
        if call_journal is not None:
            call_journal.abandon_call(call)
        return Reply(call.call_id)

    # a call that the recording does not have --------------------------------------------------------

    async def _answer_unrecorded(
        self, call: Call, args: str, call_journal: CallJournal | None
    ) -> Reply:
        if self._is_resumed:
            assert call_journal is not None
            await self._wait_until_caught_up(call, args)
            if self._is_halted:
                await anyio.sleep_forever()
            return await self._router.answer_call(call, call_journal)
        if self._is_commit or (self._allow_lookups and not self._router.is_listed(call.target)):
            assert call_journal is not None
            return await self._router.answer_call(call, call_journal)
        left = self.unrepeated_calls()
        expected = format_recorded_call(left[0].target, left[0].args) if left else "no further call"
        divergence = self._make_divergence(expected, format_recorded_call(call.target, args))
        self.divergence = self.divergence or divergence
        return Reply(
            call.call_id, None, {"kind": "diverged", "message": str(divergence), "data": None}
        )

    async def _wait_until_caught_up(self, call: Call, args: str) -> None:
        """Before a resumed run changes anything anew, it must have made all the changes that it had made before."""
        if self._router.effect_of(call.target) == "read":
            return
        waited_from = time.monotonic()
        while left := [each for each in self._order.unstarted_calls() if each.effect == "write"]:
            if time.monotonic() - waited_from > CATCH_UP_TIMEOUT_S:
                divergence = self._make_divergence(
                    format_recorded_call(left[0].target, left[0].args),
                    format_recorded_call(call.target, args),
                )
                await self._halt_run(divergence)
            await self._order.wait_for_update(CATCH_UP_TIMEOUT_S)

    def _make_divergence(self, expected: str, got: str) -> ReplayDiverged:
        return ReplayDiverged(self._recording.start.step, self._call_count, expected, got)

    async def _halt_run(self, reason: McpRuntimeError) -> None:
        """Have the run end for `reason`; nothing that its code does from here on reaches anybody."""
        self._is_halted = True
        if self._on_halt is not None:
            self._on_halt(reason)
        await anyio.sleep_forever()


class ReplayOrder:
    """The recorded order in which calls began and ended, and how far it has been gone through again.

    Ends are handed out one at a time: whoever takes its turn lets the next one go on, after its own answer.
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
            number: place for place, (number, is_end) in enumerate(self._events) if is_end
        }
        self._calls = {call.call_id: call for call in calls}
        self._started: set[int] = set()
        self._waiting: set[int] = set()
        self._finished: set[int] = set()
        self._released = {call.call_id: anyio.Event() for call in calls}
        self._position = 0
        self._has_diverged = False  # something has not come again in its time
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
        """Wait until another call has been made again, so long at most."""
        with anyio.move_on_after(timeout_s):
            await self._update.wait()

    async def wait_for_turn(self, call: RecordedCall) -> None:
        """Wait until all that came before the end of `call` has come again; what does not come is passed over."""
        released = self._released[call.call_id]
        self._waiting.add(call.call_id)
        while not released.is_set() and self._finish_positions[call.call_id] >= self._position:
            before = self._position
            with anyio.move_on_after(
                DIVERGED_ORDER_TIMEOUT_S
                if self._has_diverged
                else max(ORDER_TIMEOUT_S, 2 * call.duration_ms / 1e3)
            ):
                await released.wait()
            if self._position == before and not released.is_set():
                self._skip_missing()
        self.mark_finished(call)

    def _skip_missing(self) -> None:
        """Go on to the first end that can come: what was to be before it seems not to come again."""
        self._has_diverged = True
        places = (self._finish_positions[number] for number in self._waiting)
        self._position = min(place for place in places if place >= self._position)
        self._advance()

    def mark_finished(self, call: RecordedCall) -> None:
        """Note that the end of `call` has come again."""
        self._waiting.discard(call.call_id)
        self._finished.add(call.call_id)
        self._advance()

    def _advance(self) -> None:
        """Go through what has come again, and release the end whose turn it is."""
        while self._position < len(self._events):
            number, is_end = self._events[self._position]
            if is_end and number in self._started:
                self._released[number].set()
            if number not in (self._finished if is_end else self._started):
                return
            self._position += 1


def format_recorded_call(target: str, args: str) -> str:
    """Return a call as a message names it."""
    return f"{target}({truncate_text(args, MAX_ARGS_CHARS)[0]})"


def _recorded_reply(call: Call, recorded: RecordedCall, entry: LedgerEntry) -> Reply:
    entry.duration_ms = recorded.duration_ms
    if recorded.error is None:
        entry.status = "ok"
        return Reply(call.call_id, recorded.value)
    entry.status = STATUS_BY_ERROR_KIND.get(str(recorded.error.get("kind")), "error")
    entry.error = str(recorded.error.get("message", ""))
    return Reply(call.call_id, None, dict(recorded.error))
