"""Follow a session: its recorded events, then new ones, without a gap and without repeats.

New events are passed on in memory as they are appended. A tail that falls behind keeps only its
position and reads what it missed from the journal, so that a slow reader costs no memory and
delays nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import anyio

from .events import RunFinished
from .rows import StoredEvent

MAX_BUFFERED_EVENTS = 256  # a tail that is further behind reads from the journal

ReadEvents = Callable[[int, int], Awaitable[list[StoredEvent]]]  # after this sequence, this many


class EventTail:
    """The events of one session after `last_sequence`, in order; ends when it is closed.

    The end of a run is passed on when `sync_ends` has returned. `is_behind` says that recorded
    events have to be read first.
    """

    def __init__(
        self,
        read: ReadEvents,
        sync_ends: Callable[[], Awaitable[None]],
        last_sequence: int,
        *,
        is_behind: bool,
    ) -> None:
        self._read = read
        self._sync_ends = sync_ends
        self._last_sequence = last_sequence
        self._is_behind = is_behind
        self._buffer: deque[StoredEvent] = deque()
        self._updated = anyio.Event()
        self._is_closed = False

    def push(self, stored: StoredEvent) -> None:
        """Buffer a new event, or note that it has to be read."""
        if len(self._buffer) < MAX_BUFFERED_EVENTS and not self._is_behind:
            self._buffer.append(stored)
        else:
            self._buffer.clear()
            self._is_behind = True
        self._updated.set()

    def close(self) -> None:
        """End the iteration after the buffered events."""
        self._is_closed = True
        self._updated.set()

    def __aiter__(self) -> EventTail:
        """Return the tail itself."""
        return self

    async def __anext__(self) -> StoredEvent:
        """Return the next event, waiting for it if necessary.

        Raises `JournalFailed` if it cannot be read, or is an end that cannot be made durable.
        """
        while True:
            while self._buffer:
                if isinstance(self._buffer[0].event, RunFinished):
                    await self._sync_ends()
                    if not self._buffer:  # meanwhile it has fallen behind
                        break
                stored = self._buffer.popleft()
                if stored.sequence > self._last_sequence:
                    self._last_sequence = stored.sequence
                    return stored
            if self._is_behind:
                await self._catch_up()
            elif self._is_closed:
                raise StopAsyncIteration
            else:
                self._updated = anyio.Event()
                await self._updated.wait()

    async def _catch_up(self) -> None:
        self._is_behind = False  # first, so that events appended during the read are buffered
        missed = await self._read(self._last_sequence, MAX_BUFFERED_EVENTS)
        if len(missed) == MAX_BUFFERED_EVENTS or self._is_behind:
            self._is_behind = True
            self._buffer = deque(missed)
        else:
            self._buffer.extendleft(reversed(missed))


def push_to_all(tails: Iterable[EventTail], stored: StoredEvent) -> None:
    """Give `stored` to every tail."""
    for tail in tails:
        tail.push(stored)
