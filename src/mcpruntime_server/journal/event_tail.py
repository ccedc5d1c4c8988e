"""Following a session: what is recorded, then what happens, without a gap and without repeats.

New events are handed over in memory as they are appended. A watcher that falls behind keeps only its place and reads
what it missed from the journal, so a slow reader costs no memory and slows nobody down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import anyio

from .rows import StoredEvent

MAX_BUFFERED_EVENTS = (
    256  # events a watcher may be behind before it has to read them from the journal
)

ReadEvents = Callable[[int, int], Awaitable[list[StoredEvent]]]


class EventTail:
    """The events of one session after ordinal `after`, in order; ends when it is closed."""

    def __init__(self, read: ReadEvents, after: int, *, behind: bool) -> None:
        self._read = read
        self._last_sequence = after
        self._is_behind = behind
        self._buffer: deque[StoredEvent] = deque()
        self._updated = anyio.Event()
        self._is_closed = False

    def push(self, stored: StoredEvent) -> None:
        """Take a new event, or note that there is one to read."""
        if len(self._buffer) < MAX_BUFFERED_EVENTS and not self._is_behind:
            self._buffer.append(stored)
        else:
            self._buffer.clear()
            self._is_behind = True
        self._updated.set()

    def close(self) -> None:
        """End the iteration; what is held is still delivered."""
        self._is_closed = True
        self._updated.set()

    def __aiter__(self) -> EventTail:
        """Return the watch itself."""
        return self

    async def __anext__(self) -> StoredEvent:
        """Return the next event, waiting for it if need be; raises `JournalFailed` if it cannot be read."""
        while True:
            while self._buffer:
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
        self._is_behind = False  # first, so that what is appended during the read is held
        missed = await self._read(self._last_sequence, MAX_BUFFERED_EVENTS)
        if len(missed) == MAX_BUFFERED_EVENTS or self._is_behind:
            self._is_behind = True
            self._buffer = deque(missed)
        else:
            self._buffer.extendleft(reversed(missed))


def push_to_all(watches: Iterable[EventTail], stored: StoredEvent) -> None:
    """Hand `stored` to every watch."""
    for watch in watches:
        watch.push(stored)
