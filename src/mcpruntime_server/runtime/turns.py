"""Who may execute now: so many runs at once, so many of one principal, and the others in a fair order.

Principals are served in turn, whoever waits with many runs not before whoever waits with one; the runs of a principal
first come, first served. A principal at its own limit is passed over while others can go.
"""

from __future__ import annotations

from collections import Counter, deque

import anyio


class Turns:
    """The places to execute in: `total` of them, `each` for one principal at most."""

    def __init__(self, total: int, each: int) -> None:
        self._free = total
        self._each = each
        self._taken: Counter[str] = Counter()
        self._queues: dict[str, deque[Turn]] = {}  # of principals with runs that wait; whose turn it is comes first

    def turn(self, principal: str) -> Turn:
        """Return what a run of `principal` takes before it executes."""
        return Turn(self, principal)

    def _can_go(self, principal: str) -> bool:
        return self._free > 0 and self._taken[principal] < self._each

    def _enter(self, turn: Turn) -> None:
        self._free -= 1
        self._taken[turn.principal] += 1
        turn.is_taken = True

    def _leave(self, turn: Turn) -> None:
        turn.is_taken = False
        self._free += 1
        self._taken[turn.principal] -= 1
        if not self._taken[turn.principal]:
            del self._taken[turn.principal]
        self._admit()

    def _join(self, turn: Turn) -> None:
        self._queues.setdefault(turn.principal, deque()).append(turn)

    def _quit(self, turn: Turn) -> None:
        queue = self._queues[turn.principal]
        queue.remove(turn)
        if not queue:
            del self._queues[turn.principal]

    def _admit(self) -> None:
        """Give free places to those who wait."""
        while (principal := next(filter(self._can_go, self._queues), None)) is not None:
            queue = self._queues.pop(principal)
            turn = queue.popleft()
            if queue:
                self._queues[principal] = queue  # behind the others
            self._enter(turn)
            turn.admitted.set()

    def _ahead_of(self, turn: Turn) -> int:
        """Return how many runs go before `turn`, if nobody else comes: one of each principal a round."""
        own = self._queues[turn.principal].index(turn)
        names = list(self._queues)
        before = names.index(turn.principal)
        return own + sum(
            min(len(queue), own + (place < before))
            for place, queue in enumerate(self._queues.values())
            if place != before
        )


class Turn:
    """One run's place to execute in, while it has one."""

    def __init__(self, turns: Turns, principal: str) -> None:
        self.principal = principal
        self.is_taken = False
        self.admitted = anyio.Event()
        self._turns = turns
        self._waits = False

    @property
    def is_waiting(self) -> bool:
        """Whether it stands in the queue."""
        return self._waits and not self.is_taken

    @property
    def ahead(self) -> int:
        """How many runs are before it; 0 if it is not waiting."""
        return self._turns._ahead_of(self) if self.is_waiting else 0

    async def take(self) -> None:
        """Wait until it may execute; not to be called while it is taken, or twice at once."""
        assert not self.is_taken
        assert not self._waits
        turns = self._turns
        if turns._can_go(self.principal):  # nobody waits who could: a free place has been given away already
            turns._enter(self)
            return
        self._waits, self.admitted = True, anyio.Event()
        turns._join(self)
        try:
            await self.admitted.wait()
        except BaseException:
            if self.is_taken:  # it was admitted in the moment in which it gave up
                turns._leave(self)
            else:
                turns._quit(self)
            raise
        finally:
            self._waits = False

    def give_back(self) -> None:
        """Let others execute, if it is taken."""
        if self.is_taken:
            self._turns._leave(self)
