"""Decides whether a quick measurement shows that a row got worse.

Noise must not raise an alarm, so a row that is far over its bound, or that could not be measured,
is measured again, each time after the processors have become idle. Its best measurement counts.
If they do not become idle, other programs are as likely a reason, and nothing is decided.

Ratios compare two sides on one machine. Bounds that are times hold for the machine of the budget;
on a slower one they are as much longer as a call of a bare server takes longer there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from .harness import BenchmarkRow

GATE_FACTOR = 2.0  # a shared machine may be that much slower
BUDGET_CALL_MS = 1.15  # of a tool that does nothing, where the bounds were set
ATTEMPTS = 5  # some rows are near the limit, and a quick measurement has few samples
CALM_SHARE = 0.7  # of the processors' time that is idle
CALM_LOOK_S = 1.0
CALM_TIMEOUT_S = 45.0  # for other programs to end


@dataclass
class RowGroup:
    """The rows that one function measures, or why it could not.

    The machine is `slowness` times slower than that of the budget.
    """

    name: str
    measure: Callable[[], Awaitable[RowGroup]]
    slowness: float = 1.0
    rows: list[BenchmarkRow] = field(default_factory=list)
    failure: str = ""

    @property
    def far_over(self) -> list[str]:
        """The names of the rows that are worse than `GATE_FACTOR` times their bound."""
        return [row.name for row in self.rows if is_far_over(row, self.slowness)]

    @property
    def is_suspect(self) -> bool:
        """Whether something got worse, or fails."""
        return bool(self.failure or self.far_over)

    def keep_better(self, other: RowGroup) -> None:
        """Take the rows of another measurement that are better."""
        if other.failure:
            return
        before = {} if self.failure else {row.name: row for row in self.rows}
        self.rows = [min(before.get(row.name, row), row, key=_figure) for row in other.rows]
        self.failure = ""


@dataclass(frozen=True)
class GateResult:
    """The rows that stay far over their bounds, and groups that fail; `is_decided` if it counts."""

    far_over: list[str]
    failed: list[str]
    is_decided: bool

    @property
    def has_passed(self) -> bool:
        """Whether nothing is known to have become worse."""
        return not self.is_decided or not (self.far_over or self.failed)

    def describe(self) -> str:
        """Return the result as one line."""
        names = ", ".join([*self.far_over, *(f"{name} (failed)" for name in self.failed)])
        line = f"worse than {GATE_FACTOR:g} times the bound: {names or 'none'}"
        if self.is_decided:
            return line
        return f"{line}; other programs keep the processors busy, so this decides nothing"


async def settle_groups(
    groups: list[RowGroup], wait_until_calm: Callable[[], Awaitable[bool]]
) -> GateResult:
    """Measure suspect groups again, and return what remains of the suspicion."""
    is_calm = True
    for _ in range(1, ATTEMPTS):
        for group in [each for each in groups if each.is_suspect]:
            is_calm = await wait_until_calm()
            group.keep_better(await group.measure())
    suspects = [each for each in groups if each.is_suspect]
    return GateResult(
        [name for group in suspects for name in group.far_over],
        [group.name for group in suspects if group.failure],
        is_calm or not suspects,
    )


def is_far_over(row: BenchmarkRow, slowness: float = 1.0) -> bool:
    """Return whether a row is worse than `GATE_FACTOR` times its bound."""
    if row.bound is None:
        return False
    is_time = row.kind != "ratio" and row.unit == "ms"
    return row.figure > GATE_FACTOR * row.bound * (slowness if is_time else 1.0)


def compare_speed(call_ms: float) -> float:
    """Return how many times slower a machine is on which a call of a bare server takes `call_ms`.

    A faster machine counts as equal.
    """
    return max(1.0, call_ms / BUDGET_CALL_MS)


def _figure(row: BenchmarkRow) -> float:
    return row.figure


async def wait_until_calm() -> bool:
    """Wait until the processors are idle; return False if they do not become so."""
    with anyio.move_on_after(CALM_TIMEOUT_S):
        while await _measure_idle_share() < CALM_SHARE:
            pass
        return True
    return False


async def _measure_idle_share() -> float:
    """Return the idle share of all processors in the next second."""
    before = _read_processor_times()
    await anyio.sleep(CALM_LOOK_S)
    idle, total = (b - a for a, b in zip(before, _read_processor_times(), strict=True))
    return idle / max(1, total)


def _read_processor_times() -> tuple[int, int]:
    """Return the ticks that the processors were idle, and all ticks."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return ticks[3] + ticks[4], sum(ticks[:8])  # idle and waiting for disks; guests count twice
