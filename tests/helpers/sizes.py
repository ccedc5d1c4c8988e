"""How much a run of the tests tries: short by default, all with LONG_TESTS=1 (`make test-all`)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import pytest

Case = TypeVar("Case")
IS_LONG = os.environ.get("LONG_TESTS", "0") not in ("", "0")
ONLY_LONG = pytest.mark.skipif(not IS_LONG, reason="a long form, which `make test-all` runs")


def choose_size(name: str, *, short: int, long: int) -> int:
    """Return how often a test repeats something; the environment variable `name` overrides it."""
    return int(os.environ.get(name, long if IS_LONG else short))


def choose_cases(
    cases: Iterable[Case], *, short: int = 1, class_of: Callable[[Case], Hashable] | None = None
) -> list[Case]:
    """Return all cases in a long run, and `short` of each class in a short one.

    Cases of a class are those that `class_of` maps to the same value, or all of them. The choice is
    spread evenly over the class and is the same in every run.
    """
    listed = list(cases)
    if IS_LONG:
        return listed
    places = defaultdict(list)
    for place, case in enumerate(listed):
        places[class_of(case) if class_of else None].append(place)
    chosen = [
        members[number * len(members) // short]
        for members in places.values()
        for number in range(short)
    ]
    return [listed[place] for place in sorted(set(chosen))]
