"""A kill comes exactly where the suite says, and only a naive client repeats effects."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.kill_anywhere import WRITES, Point, Target, try_once

ONCE_EACH = Counter(dict.fromkeys(range(WRITES), 1))


@pytest.mark.parametrize(
    ("target", "boundary", "point"),
    [
        ("worker", 2, "before"),
        ("container", 2, "after"),
        ("server", 3, "after"),
    ],
)
async def test_a_careful_client_neither_doubles_nor_loses_an_effect(
    target: Target, boundary: int, point: Point
) -> None:
    assert await try_once(target, boundary, point, is_careful=True) == ONCE_EACH


async def test_a_naive_client_repeats_what_was_done() -> None:
    sent = await try_once("container", 2, "after", is_careful=False)
    assert sent == Counter({0: 2, 1: 2, 2: 2, 3: 1, 4: 1})
