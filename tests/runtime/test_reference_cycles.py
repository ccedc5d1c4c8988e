"""Garbage in cycles is collected without examining everything again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import anyio
import pytest

from mcpruntime_server.runtime.reference_cycles import MIN_GROWTH, collect_cycles

SOON_S = 20.0
INTERVAL_S = 0.01


class Node:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


async def run_beside(is_quiet: bool, nodes: list[Node]) -> bool:
    """Drop objects that have survived a collection; return whether they are gone in time."""
    last = weakref.ref(nodes[-1])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect_cycles, lambda: is_quiet, INTERVAL_S)
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        nodes.clear()
        gc.collect()
        assert last() is not None
        with anyio.move_on_after(SOON_S if is_quiet else 20 * INTERVAL_S):
            while last() is not None:  # noqa: ASYNC110 - nobody announces it
                await anyio.sleep(INTERVAL_S)
        tasks.cancel_scope.cancel()
    return last() is None


async def test_what_survives_is_examined_again_when_nothing_runs() -> None:
    assert await run_beside(True, [Node() for _ in range(2 * MIN_GROWTH)])


async def test_it_is_not_examined_while_something_runs() -> None:
    gc.freeze()  # so many objects that the new ones do not double them
    assert not await run_beside(False, [Node() for _ in range(2 * MIN_GROWTH)])


async def test_it_is_examined_at_the_latest_when_the_objects_have_doubled() -> None:
    nodes = [Node() for _ in range(2 * MIN_GROWTH)]
    last = weakref.ref(nodes[-1])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect_cycles, lambda: False, INTERVAL_S)
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        nodes.clear()
        with anyio.fail_after(SOON_S):
            while last() is not None:  # noqa: ASYNC110 - nobody announces it
                await anyio.sleep(INTERVAL_S)
        tasks.cancel_scope.cancel()
