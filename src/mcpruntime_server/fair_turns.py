"""Tasks that have much to do work one after the other, so that nobody waits for all of them.

What everybody waits for is the work that is done in one pass of the event loop. So of the tasks
that share turns, one works in each pass, whatever their number. After a long pass they rest as long
as it took: an answer to anybody else needs several passes.
"""

from __future__ import annotations

import asyncio
import time

import anyio
from anyio.lowlevel import checkpoint

LONG_PASS_S = 0.005
MAX_REST_S = 0.1


class FairTurns:
    """Lets the tasks that have more to do work in turn."""

    def __init__(self) -> None:
        self._next = anyio.Lock(fast_acquire=True)
        self._rests_until = 0.0

    async def wait(self) -> None:
        """Wait until everybody else has had a turn, and the tasks that waited before."""
        async with self._next:
            await checkpoint()
            rest_s = self._rests_until - time.perf_counter()
            if rest_s > 0:
                await anyio.sleep(rest_s)
            asyncio.get_running_loop().call_soon(self._end_pass, time.perf_counter())

    def _end_pass(self, begun_at: float) -> None:
        """Note how long the pass took that began with a task's turn."""
        now = time.perf_counter()
        if now - begun_at >= LONG_PASS_S:
            self._rests_until = now + min(now - begun_at, MAX_REST_S)
