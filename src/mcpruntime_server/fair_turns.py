"""Tasks that have much to do work one after the other, so that nobody waits for all of them.

What everybody waits for is the work that is done in one pass of the event loop. So of the tasks
that share turns, one works in each pass, whatever their number.
"""

from __future__ import annotations

import anyio
from anyio.lowlevel import checkpoint


class FairTurns:
    """Lets the tasks that have more to do work in turn."""

    def __init__(self) -> None:
        self._next = anyio.Lock(fast_acquire=True)

    async def wait(self) -> None:
        """Wait until everybody else has had a turn, and the tasks that waited before."""
        async with self._next:
            await checkpoint()
