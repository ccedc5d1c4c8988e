"""Compares two results of a suite: what got worse, and whether that is more than noise.

Measurements of both results with the same name are compared. Those with one sample each, such as
the success of a task, are pairs: their mean difference is tested over all of a unit. The others are
compared by the ratio of their medians. A change is significant if the 95 % bootstrap interval
excludes no change.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .results import Measurement, SuiteResult, read_result
from .statistics import Interval, bootstrap_median_ratio, bootstrap_paired_difference


@dataclass(frozen=True)
class Change:
    """One compared quantity: a difference of means, or a ratio of medians."""

    name: str
    unit: str
    is_ratio: bool
    interval: Interval
    is_higher_better: bool

    @property
    def verdict(self) -> str:
        """One of "worse", "better" and "same"."""
        neutral = 1.0 if self.is_ratio else 0.0
        if self.interval.low <= neutral <= self.interval.high:
            return "same"
        return "better" if (self.interval.value > neutral) is self.is_higher_better else "worse"

    def format_line(self) -> str:
        """Return the change as one line of the table."""
        value = self.interval
        sign = "" if self.is_ratio else "+"
        figures = f"{value.value:{sign}.3f} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"
        kind = "x" if self.is_ratio else self.unit
        return f"{self.verdict:7}{self.name:44} {figures} {kind}"


def compare_results(before: SuiteResult, after: SuiteResult, seed: int) -> Iterator[Change]:
    """Yield the changes of everything that both results have."""
    old = {each.name: each for each in before.measurements}
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for new in after.measurements:
        found = old.get(new.name)
        if found is None or not found.samples or not new.samples:
            continue
        if len(found.samples) == len(new.samples) == 1:
            key = (new.unit, new.better)
            pairs.setdefault(key, []).append((found.samples[0], new.samples[0]))
        else:
            yield _compare_medians(found, new, seed)
    for (unit, better), values in pairs.items():
        old_values, new_values = ([pair[side] for pair in values] for side in (0, 1))
        interval = bootstrap_paired_difference(old_values, new_values, seed)
        name = f"mean over {len(values)} pairs"
        yield Change(name, unit, False, interval, better == "higher")


def _compare_medians(before: Measurement, after: Measurement, seed: int) -> Change:
    interval = bootstrap_median_ratio(before.samples, after.samples, seed)
    return Change(after.name, after.unit, True, interval, after.better == "higher")


def compare_files(before: Path, after: Path, seed: int) -> int:
    """Print the changes; return 1 if something is significantly worse, 2 if nothing compares."""
    try:
        results = read_result(before), read_result(after)
    except (OSError, ValueError) as exc:
        print(f"A result cannot be read: {exc}", file=sys.stderr)
        return 2
    if results[0].suite != results[1].suite:
        suites = f"{results[0].suite} and {results[1].suite}"
        print(f"These are results of different suites, {suites}.", file=sys.stderr)
        return 2
    changes = sorted(compare_results(*results, seed), key=lambda each: each.verdict != "worse")
    for change in changes:
        print(change.format_line())
    if not changes:
        print("The results have no measurement in common.", file=sys.stderr)
        return 2
    return int(any(change.verdict == "worse" for change in changes))
