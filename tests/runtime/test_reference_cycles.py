"""Garbage in cycles is collected among old objects when nothing runs, or when it may be much."""

from __future__ import annotations

import gc
import weakref

import anyio

from mcpruntime_server.runtime.reference_cycles import (
    MAX_GROWTH,
    MIN_GROWTH,
    OLDEST_GENERATION,
    collect_cycles,
)

SOON_S = 20.0
INTERVAL_S = 0.01


class Node:
    """An object that refers to itself."""

    __slots__ = ("__weakref__", "itself")

    def __init__(self) -> None:
        self.itself = self


async def drop_old_objects(count: int, *, is_quiet: bool, wait_s: float) -> bool:
    """Drop so many objects that are new, but old for the collector; return whether they go."""
    gc.collect()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect_cycles, lambda: is_quiet, INTERVAL_S)
        await anyio.wait_all_tasks_blocked()
        nodes = [Node() for _ in range(count)]
        last = weakref.ref(nodes[-1])
        for _ in range(OLDEST_GENERATION):
            gc.collect(OLDEST_GENERATION - 1)
        nodes.clear()
        gc.collect(OLDEST_GENERATION - 1)
        assert last() is not None
        with anyio.move_on_after(wait_s):
            while last() is not None:  # noqa: ASYNC110 - nobody announces it
                await anyio.sleep(INTERVAL_S)
        tasks.cancel_scope.cancel()
    return last() is None


async def test_old_objects_are_examined_when_nothing_runs() -> None:
    assert await drop_old_objects(2 * MIN_GROWTH, is_quiet=True, wait_s=SOON_S)


async def test_they_are_not_examined_while_something_runs() -> None:
    assert not await drop_old_objects(2 * MIN_GROWTH, is_quiet=False, wait_s=20 * INTERVAL_S)


async def test_they_are_examined_at_the_latest_when_very_many_are_new() -> None:
    assert await drop_old_objects(MAX_GROWTH + MIN_GROWTH, is_quiet=False, wait_s=SOON_S)


async def test_young_garbage_is_collected_as_ever() -> None:
    before = gc.get_threshold()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect_cycles, lambda: False, INTERVAL_S)
        await anyio.wait_all_tasks_blocked()
        assert gc.get_threshold()[:OLDEST_GENERATION] == before[:OLDEST_GENERATION]
        tasks.cancel_scope.cancel()
    assert gc.get_threshold() == before
