"""The states of a run are a table: legal events lead somewhere, others are refused."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.runtime.run_state import (
    FINAL_STATES,
    TRANSITIONS,
    IllegalTransition,
    LifecycleEvent,
    RunLifecycle,
    RunState,
)


def test_every_state_has_a_row_and_only_two_states_are_final() -> None:
    assert set(TRANSITIONS) == set(RunState)
    assert {RunState.FINISHED, RunState.SUSPENDED} == FINAL_STATES


def test_every_state_that_is_not_final_can_be_stopped_suspended_and_left() -> None:
    for state in set(RunState) - FINAL_STATES:
        assert LifecycleEvent.STOP_REQUESTED in TRANSITIONS[state]
        assert TRANSITIONS[state][LifecycleEvent.SUSPEND_REQUESTED] is RunState.SUSPENDING
        assert reachable(state) & FINAL_STATES


def test_every_state_can_be_reached_from_the_queue() -> None:
    assert reachable(RunState.QUEUED) == set(RunState)


def reachable(start: RunState) -> set[RunState]:
    found, new = {start}, [start]
    while new:
        for state in TRANSITIONS[new.pop()].values():
            if state not in found:
                found.add(state)
                new.append(state)
    return found


def test_a_suspended_run_is_never_finished_here() -> None:
    assert RunState.FINISHED not in reachable(RunState.SUSPENDING)


def test_a_run_that_stops_never_executes_again() -> None:
    assert reachable(RunState.STOPPING).isdisjoint({RunState.RUNNING, RunState.PAUSED})


@given(st.lists(st.sampled_from(LifecycleEvent)))
def test_events_move_a_run_as_the_table_says_or_are_refused(events: list[LifecycleEvent]) -> None:
    lifecycle = RunLifecycle()
    for event in events:
        before = lifecycle.state
        if event in TRANSITIONS[before]:
            lifecycle.apply(event)
            assert lifecycle.state is TRANSITIONS[before][event]
        else:
            with pytest.raises(IllegalTransition, match=event.name):
                lifecycle.apply(event)
            assert lifecycle.state is before
        assert (
            lifecycle.finished.is_set() == lifecycle.is_final == (lifecycle.state in FINAL_STATES)
        )


async def test_each_change_wakes_everybody_who_waits_for_an_update() -> None:
    lifecycle = RunLifecycle()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await lifecycle.wait_for_update()
        woken.append(number)

    with anyio.fail_after(5):
        changes: list[Callable[[], None]] = [
            lambda: lifecycle.apply(LifecycleEvent.HEAD_REACHED),
            lambda: lifecycle.set_stage("copying"),
            lifecycle.notify_watchers,
        ]
        for change in changes:
            async with anyio.create_task_group() as tasks:
                for number in range(3):
                    tasks.start_soon(wait, number)
                await anyio.wait_all_tasks_blocked()
                change()
    assert sorted(woken) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


async def test_nobody_waits_for_an_update_of_a_finished_run() -> None:
    lifecycle = RunLifecycle()
    lifecycle.apply(LifecycleEvent.STOP_REQUESTED)
    lifecycle.apply(LifecycleEvent.ENDED)
    with anyio.fail_after(5):
        await lifecycle.wait_for_update()


def test_a_run_stays_at_the_head_of_its_queue_when_it_is_stopped() -> None:
    lifecycle = RunLifecycle()
    assert lifecycle.is_queued
    lifecycle.apply(LifecycleEvent.HEAD_REACHED)
    assert lifecycle.is_queued
    lifecycle.apply(LifecycleEvent.STOP_REQUESTED)
    assert (lifecycle.has_reached_head, lifecycle.is_queued) == (True, False)
