"""Who may execute now: so many runs at once, so many of one principal, and the others in a fair order.

Principals are served in turn, whoever waits with many runs not before whoever waits with one; the runs of a principal
first come, first served. A principal at its own limit is passed over while others can go.
"""

from __future__ import annotations

from collections import Counter, deque

import anyio


class RunScheduler:
    """The places to execute in: `total` of them, `each` for one principal at most."""

    def __init__(self, total: int, max_per_principal: int) -> None:
        self._free_slots = total
        self._max_per_principal = max_per_principal
        self._held_slots: Counter[str] = Counter()
        self._queues: dict[
            str, deque[RunSlot]
        ] = {}  # of principals with runs that wait; whose turn it is comes first

    def create_slot(self, principal: str) -> RunSlot:
        """Return what a run of `principal` takes before it executes."""
        return RunSlot(self, principal)

    def _can_admit(self, principal: str) -> bool:
        return self._free_slots > 0 and self._held_slots[principal] < self._max_per_principal

    def _grant_slot(self, slot: RunSlot) -> None:
        self._free_slots -= 1
        self._held_slots[slot.principal] += 1
        slot.is_held = True

    def _release_slot(self, slot: RunSlot) -> None:
        slot.is_held = False
        self._free_slots += 1
        self._held_slots[slot.principal] -= 1
        if not self._held_slots[slot.principal]:
            del self._held_slots[slot.principal]
        self._admit_waiting()

    def _enqueue_slot(self, slot: RunSlot) -> None:
        self._queues.setdefault(slot.principal, deque()).append(slot)

    def _dequeue_slot(self, slot: RunSlot) -> None:
        queue = self._queues[slot.principal]
        queue.remove(slot)
        if not queue:
            del self._queues[slot.principal]

    def _admit_waiting(self) -> None:
        """Give free places to those who wait."""
        while (principal := next(filter(self._can_admit, self._queues), None)) is not None:
            queue = self._queues.pop(principal)
            turn = queue.popleft()
            if queue:
                self._queues[principal] = queue  # behind the others
            self._grant_slot(turn)
            turn.admitted.set()

    def _count_ahead(self, slot: RunSlot) -> int:
        """Return how many runs go before `turn`, if nobody else comes: one of each principal a round."""
        own = self._queues[slot.principal].index(slot)
        names = list(self._queues)
        before = names.index(slot.principal)
        return own + sum(
            min(len(queue), own + (place < before))
            for place, queue in enumerate(self._queues.values())
            if place != before
        )


class RunSlot:
    """One run's place to execute in, while it has one."""

    def __init__(self, scheduler: RunScheduler, principal: str) -> None:
        self.principal = principal
        self.is_held = False
        self.admitted = anyio.Event()
        self._scheduler = scheduler
        self._is_queued = False

    @property
    def is_waiting(self) -> bool:
        """Whether it stands in the queue."""
        return self._is_queued and not self.is_held

    @property
    def slots_ahead(self) -> int:
        """How many runs are before it; 0 if it is not waiting."""
        return self._scheduler._count_ahead(self) if self.is_waiting else 0

    async def acquire(self) -> None:
        """Wait until it may execute; not to be called while it is taken, or twice at once."""
        assert not self.is_held
        assert not self._is_queued
        turns = self._scheduler
        if turns._can_admit(
            self.principal
        ):  # nobody waits who could: a free place has been given away already
            turns._grant_slot(self)
            return
        self._is_queued, self.admitted = True, anyio.Event()
        turns._enqueue_slot(self)
        try:
            await self.admitted.wait()
        except BaseException:
            if self.is_held:  # it was admitted in the moment in which it gave up
                turns._release_slot(self)
            else:
                turns._dequeue_slot(self)
            raise
        finally:
            self._is_queued = False

    def release(self) -> None:
        """Let others execute, if it is taken."""
        if self.is_held:
            self._scheduler._release_slot(self)
