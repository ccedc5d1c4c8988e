"""Decides which runs execute now: a number of slots, a maximum for each principal, and fair queues.

Principals are served in rotation, so that one with many waiting runs is not preferred to one with
a single run. The runs of one principal are served in the order in which they came. A principal that
is at its maximum is skipped.
"""

from __future__ import annotations

from collections import Counter, deque

import anyio


class RunScheduler:
    """The slots to execute in: `total` of them, `max_per_principal` for one principal."""

    def __init__(self, total: int, max_per_principal: int) -> None:
        self._free_slots = total
        self._max_per_principal = max_per_principal
        self._held_slots: Counter[str] = Counter()
        self._queues: dict[str, deque[RunSlot]] = {}  # by principal; the next one to serve first

    def create_slot(self, principal: str) -> RunSlot:
        """Return the slot of a run of `principal`, which it acquires before it executes."""
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
        """Grant free slots to runs that wait."""
        while (principal := next(filter(self._can_admit, self._queues), None)) is not None:
            queue = self._queues.pop(principal)
            slot = queue.popleft()
            if queue:
                self._queues[principal] = queue  # behind the others
            self._grant_slot(slot)
            slot.admitted.set()

    def _count_ahead(self, slot: RunSlot) -> int:
        """Return how many runs are served before `slot`: one per principal and round."""
        rounds = self._queues[slot.principal].index(slot)
        principals = list(self._queues)
        own_place = principals.index(slot.principal)
        ahead = rounds
        for place, queue in enumerate(self._queues.values()):
            if place < own_place:
                ahead += min(len(queue), rounds + 1)
            elif place > own_place:
                ahead += min(len(queue), rounds)
        return ahead


class RunSlot:
    """One run's permission to execute, while it holds it."""

    def __init__(self, scheduler: RunScheduler, principal: str) -> None:
        self.principal = principal
        self.is_held = False
        self.admitted = anyio.Event()
        self._scheduler = scheduler
        self._is_queued = False

    @property
    def is_waiting(self) -> bool:
        """Whether the run is in a queue."""
        return self._is_queued and not self.is_held

    @property
    def slots_ahead(self) -> int:
        """How many runs are served first; 0 if this one is not waiting."""
        return self._scheduler._count_ahead(self) if self.is_waiting else 0

    async def acquire(self) -> None:
        """Wait until the run may execute; not while it holds the slot, and not twice at once."""
        assert not self.is_held
        assert not self._is_queued
        scheduler = self._scheduler
        if scheduler._can_admit(self.principal):  # then no queued run could be admitted either
            scheduler._grant_slot(self)
            return
        self._is_queued, self.admitted = True, anyio.Event()
        scheduler._enqueue_slot(self)
        try:
            await self.admitted.wait()
        except BaseException:
            if self.is_held:  # it was admitted at the moment when it gave up
                scheduler._release_slot(self)
            else:
                scheduler._dequeue_slot(self)
            raise
        finally:
            self._is_queued = False

    def release(self) -> None:
        """Let other runs execute, if the slot is held."""
        if self.is_held:
            self._scheduler._release_slot(self)
