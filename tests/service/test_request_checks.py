"""Bodies of requests are bounded, and take their turns."""

from __future__ import annotations

from itertools import pairwise

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.types import Message

from mcpruntime_server.fair_turns import FairTurns
from mcpruntime_server.service.request_checks import BoundedBody

pytestmark = pytest.mark.anyio
COUNT = 10


async def test_of_many_bodies_one_is_worked_on_in_each_pass_of_the_event_loop() -> None:
    turns, worked = FairTurns(), [0]
    order: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def work(number: int) -> None:
        await BoundedBody(receive, 5_000, turns).receive()
        order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(COUNT):
            tasks.start_soon(work, number)
        while worked[-1] < COUNT:
            await checkpoint()
            worked.append(len(order))
    assert order == list(range(COUNT))
    assert {later - earlier for earlier, later in pairwise(worked)} == {0, 1}
