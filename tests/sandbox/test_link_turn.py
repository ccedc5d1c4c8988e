"""Links that have much to do leave most passes of the event loop to others."""

from __future__ import annotations

from itertools import pairwise

import anyio
from anyio.lowlevel import checkpoint

from mcpruntime_server.sandbox.link_turn import LinkPace

LINKS, TURNS = 5, 20


async def test_in_each_pass_of_the_event_loop_one_link_works_at_most() -> None:
    pace = LinkPace()
    passes: list[str] = []  # who worked, in the order of the work

    async def receive(name: str) -> None:
        for _ in range(TURNS):
            passes.append(name)
            await pace.wait_for_turn()

    async def answer() -> None:
        while True:
            passes.append("other")
            await checkpoint()

    async with anyio.create_task_group() as others:
        others.start_soon(answer)
        async with anyio.create_task_group() as tasks:
            for number in range(LINKS):
                tasks.start_soon(receive, f"link {number}")
        others.cancel_scope.cancel()
    started = passes.index("link 0") + LINKS  # all of them start at once
    assert not [pair for pair in pairwise(passes[started:]) if "other" not in pair]
    turns = [name for name in passes if name != "other"]
    assert turns == [f"link {number}" for _ in range(TURNS) for number in range(LINKS)]
