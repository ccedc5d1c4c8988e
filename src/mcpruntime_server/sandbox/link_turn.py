"""How long one link works on what it has received before others have their turn."""

from __future__ import annotations

import time

import anyio

from ..fair_turns import FairTurns
from ..protocol import wire

MAX_CALLS_PER_TURN = 8  # that a link starts before others do something
MAX_TURN_S = 0.002  # that a link works on what it has received before others do
LONG_TURN_S = 0.005  # one message took longer than a link may work at once
REST_FACTOR = 3  # of the time of a long turn
MAX_REST_S = 0.5


class LinkTurn:
    """What a link does before others take their turn: it reads for 2 ms, or starts some calls.

    A message that takes much longer costs the link a rest, so that others have most of the time.
    """

    def __init__(self, turns: FairTurns) -> None:
        self._turns = turns
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
        await self._turns.wait()

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._started_at
