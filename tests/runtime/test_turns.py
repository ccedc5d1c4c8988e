"""Runs take turns: never more at once than may be, never a free place while somebody could have it, and fairly."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpruntime_server.runtime.turns import Turn, Turns

NAMES = "abc"
steps = st.lists(st.tuples(st.sampled_from(["take", "give", "cancel"]), st.sampled_from(NAMES), st.integers(0, 5)))


async def settle() -> None:
    for _ in range(5):
        await checkpoint()


async def test_turns_are_given_in_a_circle_of_principals_and_in_order_within_one() -> None:
    turns = Turns(1, 1)
    first = turns.turn("x")
    await first.take()
    order: list[str] = []

    async def queue(name: str, turn: Turn) -> None:
        await turn.take()
        order.append(name)
        turn.give_back()

    async with anyio.create_task_group() as tasks:
        waiting = {}
        for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
            waiting[name] = turns.turn(name[0])
            tasks.start_soon(queue, name, waiting[name])
        await settle()
        assert {name: turn.ahead for name, turn in waiting.items()} == {
            "a1": 0, "b1": 1, "c1": 2, "a2": 3, "b2": 4, "a3": 5
        }  # fmt: skip
        first.give_back()
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_principal_at_its_limit_is_passed_over() -> None:
    turns = Turns(3, 2)
    mine = [turns.turn("a") for _ in range(3)]
    other = turns.turn("b")
    for turn in mine[:2]:
        await turn.take()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mine[2].take)
        await settle()
        assert mine[2].is_waiting
        await other.take()
        mine[0].give_back()
        mine[0].give_back()
        await settle()
        assert mine[2].is_taken
    assert not mine[2].is_waiting


async def test_who_gives_up_in_the_moment_of_its_turn_passes_it_on() -> None:
    turns = Turns(1, 1)
    first, second, third = (turns.turn("a") for _ in range(3))
    await first.take()
    scope = anyio.CancelScope()

    async def wait() -> None:
        with scope:
            await second.take()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(third.take)
        await settle()
        scope.cancel()
        first.give_back()
        assert second.is_taken
        await settle()
        assert (second.is_taken, third.is_taken) == (False, True)


@pytest.mark.parametrize("limits", [(1, 1), (2, 1), (3, 2), (4, 4)])
@given(steps=steps)
@settings(max_examples=60, deadline=None)
def test_the_limits_hold_and_no_place_is_left_free(limits: tuple[int, int], steps: list[tuple[str, str, int]]) -> None:
    anyio.run(play, limits, steps)


async def play(limits: tuple[int, int], steps: list[tuple[str, str, int]]) -> None:
    total, each = limits
    turns = Turns(total, each)
    waiting: dict[Turn, anyio.CancelScope] = {}
    taken: list[Turn] = []

    def check() -> None:
        count = Counter(turn.principal for turn in taken)
        assert len(taken) <= total
        assert max(count.values(), default=0) <= each
        could = [turn for turn in waiting if count[turn.principal] < each]
        assert len(taken) == total or not could

    async def take(turn: Turn) -> None:
        with anyio.CancelScope() as scope:
            waiting[turn] = scope
            await turn.take()
            taken.append(turn)
        del waiting[turn]

    async with anyio.create_task_group() as tasks:
        for action, name, number in steps:
            mine = [turn for turn in (taken if action == "give" else waiting) if turn.principal == name]
            if action == "take":
                tasks.start_soon(take, turns.turn(name))
            elif mine and action == "give":
                turn = mine[number % len(mine)]
                taken.remove(turn)
                turn.give_back()
            elif mine:
                waiting[mine[number % len(mine)]].cancel()
            await settle()
            check()
        tasks.cancel_scope.cancel()
