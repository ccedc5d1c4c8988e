"""Following a session: what is recorded, then what happens, without a gap and without repeats.

New events are handed over in memory as they are appended. A watcher that falls behind keeps only its place and reads
what it missed from the journal, so a slow reader costs no memory and slows nobody down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import anyio

from .rows import Stored

HELD = 256  # events a watcher may be behind before it has to read them from the journal

Read = Callable[[int, int], Awaitable[list[Stored]]]


class Watch:
    """The events of one session after ordinal `after`, in order; ends when it is closed."""

    def __init__(self, read: Read, after: int, *, behind: bool) -> None:
        self._read = read
        self._after = after
        self._behind = behind
        self._held: deque[Stored] = deque()
        self._news = anyio.Event()
        self._closed = False

    def offer(self, stored: Stored) -> None:
        """Take a new event, or note that there is one to read."""
        if len(self._held) < HELD and not self._behind:
            self._held.append(stored)
        else:
            self._held.clear()
            self._behind = True
        self._news.set()

    def close(self) -> None:
        """End the iteration; what is held is still delivered."""
        self._closed = True
        self._news.set()

    def __aiter__(self) -> Watch:
        """Return the watch itself."""
        return self

    async def __anext__(self) -> Stored:
        """Return the next event, waiting for it if need be; raises `JournalFailed` if it cannot be read."""
        while True:
            while self._held:
                stored = self._held.popleft()
                if stored.n > self._after:
                    self._after = stored.n
                    return stored
            if self._behind:
                await self._catch_up()
            elif self._closed:
                raise StopAsyncIteration
            else:
                self._news = anyio.Event()
                await self._news.wait()

    async def _catch_up(self) -> None:
        self._behind = False  # first, so that what is appended during the read is held
        missed = await self._read(self._after, HELD)
        if len(missed) == HELD or self._behind:
            self._behind = True
            self._held = deque(missed)
        else:
            self._held.extendleft(reversed(missed))


def offer_all(watches: Iterable[Watch], stored: Stored) -> None:
    """Hand `stored` to every watch."""
    for watch in watches:
        watch.offer(stored)
