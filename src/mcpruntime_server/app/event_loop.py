"""The event loop of a server: what many clients do at once, it handles a few at a time.

asyncio works on everything that is ready before it looks at timers, or at what has become ready
meanwhile. When hundreds of clients send or leave at once, that takes a tenth of a second.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from bisect import bisect_right
from selectors import SelectorKey

MAX_READY = 16  # descriptors that are worked on before others have their turn


class FairSelector(selectors.DefaultSelector):
    """Reports at most `MAX_READY` descriptors at once, and the others next time."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -1  # that was reported

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Return descriptors that are ready, in turns."""
        ready = super().select(timeout)
        if len(ready) <= MAX_READY:
            return ready
        ready.sort(key=lambda each: each[0].fd)
        start = bisect_right(ready, self._last, key=lambda each: each[0].fd)
        chosen = [*ready[start:], *ready[:start]][:MAX_READY]
        self._last = chosen[-1][0].fd
        return chosen


def create_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop for a server."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(FairSelector())
