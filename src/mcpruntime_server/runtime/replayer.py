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
from ..journal.replay import RecordedCall, Recording
from ..kernel.present import shorten
from ..kernel.wire import ABANDON, Call, Reply
from .calls import STATUS_OF, CallLog, LedgerEntry, Router, abandoned_by, is_abandoned
from .plan import is_planned
from .request import Request

PATIENCE_S = 1.0  # for what came before an answer to happen again; threads may do it in another order, or never
CATCH_UP_S = 10.0  # for another thread to make a call again, on a loaded machine; then the code has gone another way
LITTLE_PATIENCE_S = 0.05  # the same, once something has not come: the code goes its own way
ARGS_CHARS = 300  # of a call's arguments in a message


class Replayer:
    """Stands where the router stands; `halt` is called with the reason when the run must not go on.

    `request` is the run's, if it is more than to execute again what is recorded. A dry run's, to commit it, has what
    was planned go to the router, and all that follows from it. One that `looks_up` has the router answer what is on no
    ledger, if the recording does not have it.
    """

    def __init__(self, recording: Recording, router: Router, request: Request | None = None) -> None:
        self.divergence: ReplayDiverged | None = None
        self.halt: Callable[[McpRuntimeError], None] = lambda _: None
        self._recording = recording
        self._router = router
        self._live = request.live if request else frozenset()
        self._resumes = request is not None and request.resumes
        self._commits = commits = request is not None and request.dry_run and not request.resumes
        self._looks_up = request is not None and request.looks_up
        self._known = {
            (call.target, call.args, call.nth): call
            for call in recording.calls
            if not self._is_live(call.target, {}) and not (commits and is_planned(call))
        }
        self._asked: Counter[tuple[str, str]] = Counter()
        self._repeated: dict[int, RecordedCall] = {}  # by the sandbox's number of the call
        self._count = 0
        self._sequence = Sequence(list(self._known.values()))
        self._is_halted = False

    async def answer(self, call: Call, log: CallLog | None) -> Reply:
        """Return the recorded reply to `call`; `log`, if there is one, gets it like any other."""
        if self._is_halted:
            await anyio.sleep_forever()  # until the run is over
        if call.target == ABANDON:
            return self._abandon(call, log)
        if self._is_live(call.target, call.args):
            return await self._go_live(call, log)
        self._count += 1
        try:
            args = canonical_json(call.args)
        except ValueError as exc:
            message = f"{call.target}: the arguments are not JSON data: {exc}"
            return Reply(call.id, None, {"kind": "invalid_arguments", "message": message, "data": None})
        recorded = self._known.get((call.target, args, self._asked[call.target, args]))
        self._asked[call.target, args] += 1
        if recorded is None:
            return await self._answer_unknown(call, args, log)
        self._sequence.ask(recorded)
        self._repeated[call.id] = recorded
        return await (self._resume(call, recorded, log) if self._resumes else self._repeat(call, recorded, log))

    def never_asked(self) -> list[RecordedCall]:
        """Return the calls of the recording that the code has not made again, imports aside."""
        return [call for call in self._sequence.unasked() if self._router.is_listed(call.target)]

    def missing(self) -> ReplayDiverged | None:
        """Return the divergence that the code ended without making a recorded call, if it did."""
        left = self.never_asked()
        if not left or self._resumes:
            return None
        return self._diverged(told(left[0].target, left[0].args), "the end of the code")

    def _is_live(self, target: str, args: dict[str, Any]) -> bool:
        prefix, _, rest = target.partition(".")
        server = str(args.get("server")) if prefix == "catalog" else rest.partition(".")[0]
        return server in self._live or rest in self._live

    async def _go_live(self, call: Call, log: CallLog | None) -> Reply:
        assert log is not None, "what is rebuilt has no live calls"
        return await self._router.answer(call, log)

    # one recorded call ----------------------------------------------------------------------------

    async def _repeat(self, call: Call, recorded: RecordedCall, log: CallLog | None) -> Reply:
        """Answer as recorded, journaling it as a call of the run that repeats it."""
        entry = self._entry(call, log)
        listed = self._router.is_listed(call.target)
        number = log.start(call, recorded.effect, listed=listed) if log is not None else 0
        await self._turn(recorded)
        if log is not None:
            log.finish(number, recorded.value, recorded.error, 0.0)
        return _told_again(call, recorded, entry)

    async def _resume(self, call: Call, recorded: RecordedCall, log: CallLog | None) -> Reply:
        """Answer as recorded in the journal of this very run; what has no end there is made again if it is harmless."""
        assert log is not None
        entry = log.recall(call, recorded)
        if recorded.finished is not None:
            await self._turn(recorded)
            return _told_again(call, recorded, entry)
        in_doubt = recorded.effect == "write" and not self._is_unmade(recorded, log)
        return await self._router.answer_again(call, recorded.call, entry, log, in_doubt=in_doubt)

    @staticmethod
    def _is_unmade(recorded: RecordedCall, log: CallLog) -> bool:
        """Return whether a call without an end is known not to have been made."""
        if log.questions.is_unmade(recorded):
            return True
        approval = log.plan.approval((recorded.target, recorded.args, recorded.nth)) if log.plan else None
        return log.plan is not None and (approval is None or not approval["sent"])

    def _entry(self, call: Call, log: CallLog | None) -> LedgerEntry:
        if log is not None and self._router.is_listed(call.target):
            return log.list(call)
        return LedgerEntry(call.target, call.args)

    async def _turn(self, recorded: RecordedCall) -> None:
        if recorded.finished is None or is_abandoned(recorded.error):
            await anyio.sleep_forever()  # as it did then
        await self._sequence.turn(recorded)

    def _abandon(self, call: Call, log: CallLog | None) -> Reply:
        """The code waits no more for the answer to a call: what came after that then may come now."""
        recorded = self._repeated.get(abandoned_by(call))
        if recorded is not None and is_abandoned(recorded.error):
            self._sequence.take(recorded)
        if log is not None:
            log.abandon(call)
        return Reply(call.id)

    # a call that the recording does not have --------------------------------------------------------

    async def _answer_unknown(self, call: Call, args: str, log: CallLog | None) -> Reply:
        if self._resumes:
            assert log is not None
            await self._until_caught_up(call, args)
            if self._is_halted:
                await anyio.sleep_forever()
            return await self._router.answer(call, log)
        if self._commits or (self._looks_up and not self._router.is_listed(call.target)):
            assert log is not None
            return await self._router.answer(call, log)
        left = self.never_asked()
        expected = told(left[0].target, left[0].args) if left else "no further call"
        divergence = self._diverged(expected, told(call.target, args))
        self.divergence = self.divergence or divergence
        return Reply(call.id, None, {"kind": "diverged", "message": str(divergence), "data": None})

    async def _until_caught_up(self, call: Call, args: str) -> None:
        """Before a resumed run changes anything anew, it must have made all the changes that it had made before."""
        if self._router.effect(call.target) == "read":
            return
        waited_from = time.monotonic()
        while left := [each for each in self._sequence.unasked() if each.effect == "write"]:
            if time.monotonic() - waited_from > CATCH_UP_S:
                divergence = self._diverged(told(left[0].target, left[0].args), told(call.target, args))
                await self._stop(divergence)
            await self._sequence.news(CATCH_UP_S)

    def _diverged(self, expected: str, got: str) -> ReplayDiverged:
        return ReplayDiverged(self._recording.start.step, self._count, expected, got)

    async def _stop(self, reason: McpRuntimeError) -> None:
        """Have the run end for `reason`; nothing that its code does from here on reaches anybody."""
        self._is_halted = True
        self.halt(reason)
        await anyio.sleep_forever()


class Sequence:
    """The recorded order in which calls began and ended, and how far it has been gone through again.

    Ends are handed out one at a time: whoever takes its turn lets the next one go on, after its own answer.
    """

    def __init__(self, calls: list[RecordedCall]) -> None:
        moments = [(call.started, call.call, False) for call in calls]
        moments += [(call.finished, call.call, True) for call in calls if call.finished is not None]
        self._moments = [(number, is_end) for _, number, is_end in sorted(moments)]
        self._place = {number: place for place, (number, is_end) in enumerate(self._moments) if is_end}
        self._calls = {call.call: call for call in calls}
        self._asked: set[int] = set()
        self._waiting: set[int] = set()
        self._taken: set[int] = set()
        self._released = {call.call: anyio.Event() for call in calls}
        self._next = 0
        self._has_left = False  # something has not come again in its time
        self._news = anyio.Event()

    def ask(self, call: RecordedCall) -> None:
        """Note that the code has made this call again."""
        self._asked.add(call.call)
        self._advance()
        self._news.set()
        self._news = anyio.Event()

    def unasked(self) -> list[RecordedCall]:
        """Return the calls that the code has not made again, in their order."""
        return [call for number, call in self._calls.items() if number not in self._asked]

    async def news(self, timeout_s: float) -> None:
        """Wait until another call has been made again, so long at most."""
        with anyio.move_on_after(timeout_s):
            await self._news.wait()

    async def turn(self, call: RecordedCall) -> None:
        """Wait until all that came before the end of `call` has come again; what does not come is passed over."""
        released = self._released[call.call]
        self._waiting.add(call.call)
        while not released.is_set() and self._place[call.call] >= self._next:
            before = self._next
            with anyio.move_on_after(LITTLE_PATIENCE_S if self._has_left else max(PATIENCE_S, 2 * call.ms / 1e3)):
                await released.wait()
            if self._next == before and not released.is_set():
                self._pass_over()
        self.take(call)

    def _pass_over(self) -> None:
        """Go on to the first end that can come: what was to be before it seems not to come again."""
        self._has_left = True
        places = (self._place[number] for number in self._waiting)
        self._next = min(place for place in places if place >= self._next)
        self._advance()

    def take(self, call: RecordedCall) -> None:
        """Note that the end of `call` has come again."""
        self._waiting.discard(call.call)
        self._taken.add(call.call)
        self._advance()

    def _advance(self) -> None:
        """Go through what has come again, and release the end whose turn it is."""
        while self._next < len(self._moments):
            number, is_end = self._moments[self._next]
            if is_end and number in self._asked:
                self._released[number].set()
            if number not in (self._taken if is_end else self._asked):
                return
            self._next += 1


def told(target: str, args: str) -> str:
    """Return a call as a message names it."""
    return f"{target}({shorten(args, ARGS_CHARS)[0]})"


def _told_again(call: Call, recorded: RecordedCall, entry: LedgerEntry) -> Reply:
    entry.ms = recorded.ms
    if recorded.error is None:
        entry.status = "ok"
        return Reply(call.id, recorded.value)
    entry.status = STATUS_OF.get(str(recorded.error.get("kind")), "error")
    entry.error = str(recorded.error.get("message", ""))
    return Reply(call.id, None, dict(recorded.error))
