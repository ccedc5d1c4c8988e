"""Noise raises no alarm: a row that is far over its bound is measured again on a calm machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.harness import BenchmarkRow, FigureKind
from bench.perf_gate import (
    BUDGET_CALL_MS,
    RowGroup,
    compare_speed,
    is_far_over,
    settle_groups,
)


def make_group(figures: Iterator[float | None]) -> RowGroup:
    """Return a group that measures one row, with the bound 10; None is a failure."""

    async def measure() -> RowGroup:
        group = RowGroup("group", measure)
        figure = next(figures)
        if figure is None:
            group.failure = "TimeoutError()"
        else:
            group.rows = [BenchmarkRow("row", "a row", "", "value", 10.0, ours=[figure])]
        return group

    return RowGroup("group", measure)


@pytest.mark.parametrize(
    ("figures", "is_calm", "has_passed"),
    [
        ([5.0], True, True),
        ([19.0], True, True),
        ([90.0, 5.0], True, True),
        ([90.0, 70.0, 19.0], True, True),
        ([None, 5.0], True, True),
        ([90.0, 70.0, 80.0, 90.0, 70.0], True, False),
        ([None] * 5, True, False),
        ([30.0, None, 30.0, None, 30.0], True, False),
        ([90.0, 70.0, 80.0, 90.0, 70.0], False, True),
    ],
)
async def test_a_row_fails_only_if_it_stays_far_over_its_bound_on_a_calm_machine(
    figures: list[float | None], is_calm: bool, has_passed: bool
) -> None:
    values = iter(figures)
    group = await make_group(values).measure()

    async def wait() -> bool:
        return is_calm

    result = await settle_groups([group], wait)
    assert result.has_passed is has_passed
    assert result.is_decided is (is_calm or not (result.far_over or result.failed))
    assert not list(values), "it is measured no oftener than necessary"
    if not has_passed:
        assert "row" in result.describe() or "group" in result.describe()


@pytest.mark.parametrize(
    ("kind", "unit", "is_over"),
    [
        ("value", "ms", False),
        ("difference", "ms", False),
        ("ratio", "ms", True),
        ("value", "MB", True),
    ],
)
def test_only_bounds_that_are_times_are_longer_on_a_slower_machine(
    kind: FigureKind, unit: str, is_over: bool
) -> None:
    row = BenchmarkRow("row", "a row", "", kind, 10.0, unit, ours=[30.0])
    assert is_far_over(row)
    assert is_far_over(row, compare_speed(2 * BUDGET_CALL_MS)) is is_over
    assert is_far_over(row, compare_speed(BUDGET_CALL_MS / 2))


async def test_the_best_of_several_measurements_counts() -> None:
    group = await make_group(iter([90.0, 25.0, 40.0, 30.0, 40.0])).measure()

    async def wait() -> bool:
        return True

    result = await settle_groups([group], wait)
    assert result.far_over == ["row"]
    assert group.rows[0].figure == 25.0
