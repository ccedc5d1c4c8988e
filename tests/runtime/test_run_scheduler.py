"""Runs execute within limits, in a fair order, and no slot stays free while a run could use it."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.runtime.run_scheduler import RunScheduler, RunSlot

NAMES = "abc"
steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "give", "cancel"]), st.sampled_from(NAMES), st.integers(0, 5)
    )
)


async def settle() -> None:
    for _ in range(5):
        await checkpoint()


async def test_principals_are_served_in_rotation_and_their_runs_in_order() -> None:
    turns = RunScheduler(1, 1)
    first = turns.create_slot("x")
    await first.acquire()
    order: list[str] = []

    async def queue(name: str, turn: RunSlot) -> None:
        await turn.acquire()
        order.append(name)
        turn.release()

    async with anyio.create_task_group() as tasks:
        waiting = {}
        for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
            waiting[name] = turns.create_slot(name[0])
            tasks.start_soon(queue, name, waiting[name])
        await settle()
        assert {name: turn.slots_ahead for name, turn in waiting.items()} == {
            "a1": 0, "b1": 1, "c1": 2, "a2": 3, "b2": 4, "a3": 5
        }  # fmt: skip
        first.release()
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_principal_at_its_limit_is_skipped() -> None:
    turns = RunScheduler(3, 2)
    mine = [turns.create_slot("a") for _ in range(3)]
    other = turns.create_slot("b")
    for turn in mine[:2]:
        await turn.acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mine[2].acquire)
        await settle()
        assert mine[2].is_waiting
        await other.acquire()
        mine[0].release()
        mine[0].release()
        await settle()
        assert mine[2].is_held
    assert not mine[2].is_waiting


async def test_a_slot_that_is_given_up_when_it_is_granted_goes_to_the_next_run() -> None:
    turns = RunScheduler(1, 1)
    first, second, third = (turns.create_slot("a") for _ in range(3))
    await first.acquire()
    scope = anyio.CancelScope()

    async def wait() -> None:
        with scope:
            await second.acquire()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(third.acquire)
        await settle()
        scope.cancel()
        first.release()
        assert second.is_held
        await settle()
        assert (second.is_held, third.is_held) == (False, True)


@pytest.mark.parametrize("limits", [(1, 1), (2, 1), (3, 2), (4, 4)])
@given(steps=steps)
def test_limits_hold_and_no_slot_stays_free_while_a_run_waits(
    limits: tuple[int, int], steps: list[tuple[str, str, int]]
) -> None:
    anyio.run(play, limits, steps)


async def play(limits: tuple[int, int], steps: list[tuple[str, str, int]]) -> None:
    total, each = limits
    turns = RunScheduler(total, each)
    waiting: dict[RunSlot, anyio.CancelScope] = {}
    taken: list[RunSlot] = []

    def check() -> None:
        count = Counter(turn.principal for turn in taken)
        assert len(taken) <= total
        assert max(count.values(), default=0) <= each
        could = [turn for turn in waiting if count[turn.principal] < each]
        assert len(taken) == total or not could

    async def take(turn: RunSlot) -> None:
        with anyio.CancelScope() as scope:
            waiting[turn] = scope
            await turn.acquire()
            taken.append(turn)
        del waiting[turn]

    async with anyio.create_task_group() as tasks:
        for action, name, number in steps:
            mine = [
                turn for turn in (taken if action == "give" else waiting) if turn.principal == name
            ]
            if action == "take":
                tasks.start_soon(take, turns.create_slot(name))
            elif mine and action == "give":
                turn = mine[number % len(mine)]
                taken.remove(turn)
                turn.release()
            elif mine:
                waiting[mine[number % len(mine)]].cancel()
            await settle()
            check()
        tasks.cancel_scope.cancel()
