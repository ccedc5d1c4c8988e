"""Tasks that have much to do leave most passes of the event loop to others."""

from __future__ import annotations

from itertools import pairwise

import anyio
from anyio.lowlevel import checkpoint

from mcpruntime_server.fair_turns import FairTurns

TASKS, TURNS = 5, 20


async def test_in_each_pass_of_the_event_loop_one_task_works_at_most() -> None:
    turns = FairTurns()
    passes: list[str] = []  # who worked, in the order of the work

    async def work(name: str) -> None:
        for _ in range(TURNS):
            passes.append(name)
            await turns.wait()

    async def answer() -> None:
        while True:
            passes.append("other")
            await checkpoint()

    async with anyio.create_task_group() as others:
        others.start_soon(answer)
        async with anyio.create_task_group() as tasks:
            for number in range(TASKS):
                tasks.start_soon(work, f"task {number}")
        others.cancel_scope.cancel()
    started = passes.index("task 0") + TASKS  # all of them start at once
    assert not [pair for pair in pairwise(passes[started:]) if "other" not in pair]
    order = [name for name in passes if name != "other"]
    assert order == [f"task {number}" for _ in range(TURNS) for number in range(TASKS)]
