"""A kill comes exactly where the suite says, and only a naive client repeats effects."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.kill_anywhere import Boundary, KillLog, Outcome, Target, kill_at, plan_boundaries
from tests.helpers.sizes import ONLY_LONG, choose_cases

KILLS: list[tuple[Target, list[Boundary]]] = [
    ("worker", [Boundary(2, "before"), Boundary(4, "after")]),
    ("container", [Boundary(2, "after")]),
    ("server", [Boundary(3, "after")]),
]


@pytest.mark.parametrize(("target", "boundaries"), choose_cases(KILLS))
async def test_a_careful_client_neither_doubles_nor_loses_an_effect(
    target: Target, boundaries: list[Boundary]
) -> None:
    found: list[Outcome] = []
    await kill_at(target, boundaries, found.append, is_careful=True, lanes=1)
    assert [(each.call, each.point) for each in found] == [
        (each.call, each.point) for each in boundaries
    ]
    assert [(each.doubled, each.lost) for each in found] == [(0, 0)] * len(boundaries)


@ONLY_LONG  # it is the control: what the careful client does right
async def test_a_naive_client_repeats_what_was_done() -> None:
    found: list[Outcome] = []
    await kill_at("worker", [Boundary(2, "after")], found.append, is_careful=False)
    assert [(each.doubled, each.lost) for each in found] == [(3, 0)]


def test_a_stopped_suite_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "kills.jsonl"
    planned = plan_boundaries(rounds=2, limit=1)
    log = KillLog(file, "one", resume=False)
    log.add(Outcome("worker", "recovered", 0, "before", 0, 0, 0.1))
    log.add(Outcome("worker", "retried", 0, "after", 1, 0, 0.1))
    again = KillLog(file, "one", resume=True)
    assert again.outcomes == log.outcomes
    open_ones = again.open_boundaries("worker", "recovered", planned)
    assert sorted(each.point for each in open_ones) == ["after", "after", "before"]
    with pytest.raises(ValueError, match="another server"):
        KillLog(file, "other", resume=True)
    assert KillLog(file, "other", resume=False).outcomes == []
