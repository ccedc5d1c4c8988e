"""When the end state of a run is parked: after a pause, or at once if it is worth the time."""

from __future__ import annotations

import time

import pytest

from mcpruntime_server.sandboxed.kernel.checkpoints import (
    MAX_UNPARKED_RUNS,
    PARK_IDLE_S,
    ParkSchedule,
)


def finish(schedule: ParkSchedule, run: int, duration_s: float = 0.0, **options: bool) -> bool:
    options.setdefault("was_interrupted", False)
    return schedule.finish_run(run, duration_s, was_interrupted=options["was_interrupted"])


def test_a_small_run_is_due_after_a_pause() -> None:
    schedule = ParkSchedule()
    assert not finish(schedule, 1)
    assert not schedule.is_due()
    time.sleep(PARK_IDLE_S)
    assert schedule.is_due()
    assert schedule.order() == 1
    assert not schedule.is_due()
    assert schedule.order() == 0


def test_a_run_that_follows_at_once_takes_the_place_of_the_last_one() -> None:
    schedule = ParkSchedule()
    finish(schedule, 1)
    assert schedule.start_run() == 1
    finish(schedule, 2)
    assert schedule.order() == 2
    assert schedule.start_run() == 0


def test_a_run_that_takes_long_is_parked_at_once() -> None:
    assert finish(ParkSchedule(), 1, duration_s=10.0)


def test_an_interrupted_run_is_parked_at_once_because_it_cannot_be_repeated() -> None:
    assert finish(ParkSchedule(), 1, was_interrupted=True)


@pytest.mark.parametrize("cost_s", [0.0, 0.005, 10.0])
def test_in_a_burst_parking_takes_a_bounded_time_and_few_runs_stay_unparked(cost_s: float) -> None:
    schedule = ParkSchedule()
    schedule._cost_s = cost_s
    unparked = 1
    while not finish(schedule, unparked):
        assert schedule.start_run() == unparked
        unparked += 1
    assert unparked <= MAX_UNPARKED_RUNS
    assert cost_s / unparked <= 0.0003 or unparked == MAX_UNPARKED_RUNS
    assert schedule.order() == unparked


def test_the_death_of_the_worker_gives_up_what_is_due_and_what_is_ordered() -> None:
    schedule = ParkSchedule()
    finish(schedule, 1)
    schedule.order()
    finish(schedule, 2)
    assert schedule.cancel() == [1, 2]
    assert schedule.cancel() == []
    assert not schedule.is_due()


def test_the_cost_of_parking_is_measured() -> None:
    schedule = ParkSchedule()
    finish(schedule, 1)
    schedule.order()
    time.sleep(0.02)
    schedule.finish_parking()
    assert not finish(schedule, 2, duration_s=0.1)
    assert finish(schedule, 3, duration_s=100.0)
