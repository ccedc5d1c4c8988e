"""How long one link works on what it has received, and which link works next.

What everybody else waits for at each step is the work that links do in one pass of the event loop.
So of the links that have more to do, one works in each pass, whatever their number.
"""

from __future__ import annotations

import time

import anyio
from anyio.lowlevel import checkpoint

from ..protocol import wire

MAX_CALLS_PER_TURN = 8  # that a link starts before others do something
MAX_TURN_S = 0.002  # that a link works on what it has received before others do
LONG_TURN_S = 0.005  # one message took longer than a link may work at once
REST_FACTOR = 3  # of the time of a long turn
MAX_REST_S = 0.5


class LinkPace:
    """Lets the links of a server, as far as they have more to do, work one after the other."""

    def __init__(self) -> None:
        self._next = anyio.Lock(fast_acquire=True)

    async def wait_for_turn(self) -> None:
        """Wait until everybody else has had a turn, and the links that waited before."""
        async with self._next:
            await checkpoint()


class LinkTurn:
    """What a link does before others take their turn: it reads for 2 ms, or starts some calls.

    A message that takes much longer costs the link a rest, so that others have most of the time.
    """

    def __init__(self, pace: LinkPace) -> None:
        self._pace = pace
        self._started_at = time.perf_counter()
        self._call_count = 0

    def count_message(self, message: wire.Message) -> None:
        """Count a message that has been routed; the task of a call does its work later."""
        self._call_count += type(message) is wire.Call

    @property
    def is_over(self) -> bool:
        """Whether others are to take their turn."""
        return self._call_count >= MAX_CALLS_PER_TURN or self._elapsed_s() > MAX_TURN_S

    async def let_others_work(self) -> None:
        """Wait until all others have had their turn, or longer after a long one."""
        elapsed_s = self._elapsed_s()
        if elapsed_s >= LONG_TURN_S:
            await anyio.sleep(min(elapsed_s * REST_FACTOR, MAX_REST_S))
        await self._pace.wait_for_turn()

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._started_at
