"""The statistics of the bench: intervals for shares, and significance by bootstrap."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959964
RESAMPLES = 2_000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def as_percent(self) -> str:
        """Return the value and its interval as percentages."""
        value, low, high = map(format_percent, (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def format_percent(share: float) -> str:
    """Return a share in percent; what is almost all or nothing is not rounded to it."""
    text = f"{share:.0%}"
    is_exact = round(share, 6) in (0.0, 1.0)
    return f"{share:.1%}" if text in ("0%", "100%") and not is_exact else text


def wilson_interval(successes: int, total: int) -> Interval:
    """Return a share with its Wilson interval."""
    if not total:
        return Interval(0.0, 0.0, 1.0)
    share, z2 = successes / total, Z_95**2
    center = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = share * (1 - share) / total + z2 / (4 * total**2)
    half = Z_95 * math.sqrt(spread) / (1 + z2 / total)
    return Interval(share, max(0.0, center - half), min(1.0, center + half))


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; `share` is between 0 and 1."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1 if share else 0)]


def bootstrap_paired_difference(
    before: Sequence[float], after: Sequence[float], seed: int
) -> Interval:
    """Return the mean of `after - before` over pairs, with a bootstrap interval."""
    differences = [new - old for old, new in zip(before, after, strict=True)]
    draw = random.Random(seed)
    means = sorted(
        statistics.fmean(draw.choices(differences, k=len(differences))) for _ in range(RESAMPLES)
    )
    return _interval(statistics.fmean(differences), means)


def normalized_gain(before: float, after: float) -> float | None:
    """Return the share of what was missing that was gained; None if nothing was missing."""
    return (after - before) / (1 - before) if before < 1 else None


def bootstrap_median_ratio(before: Sequence[float], after: Sequence[float], seed: int) -> Interval:
    """Return the ratio of the medians, `after / before`, with a bootstrap interval."""
    draw = random.Random(seed)
    ratios = sorted(
        _ratio(draw.choices(before, k=len(before)), draw.choices(after, k=len(after)))
        for _ in range(RESAMPLES)
    )
    return _interval(_ratio(before, after), ratios)


def _ratio(before: Sequence[float], after: Sequence[float]) -> float:
    old, new = statistics.median(before), statistics.median(after)
    if old:
        return new / old
    return 1.0 if new == old else math.inf


def _interval(value: float, ordered: Sequence[float]) -> Interval:
    return Interval(value, percentile(ordered, 0.025), percentile(ordered, 0.975))
