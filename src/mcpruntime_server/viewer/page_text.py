"""How pages write figures: durations, sizes, times and amounts of money."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

SIZE_UNITS = ("B", "kB", "MB", "GB", "TB")


def write_duration(ms: float | None) -> str:
    """Return a duration in the unit that suits it."""
    if ms is None:
        return "\N{EN DASH}"
    if ms < 1_000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1_000:.2f} s" if ms < 10_000 else f"{ms / 1_000:.1f} s"
    minutes, seconds = divmod(round(ms / 1_000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def write_size(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in SIZE_UNITS[:-1]:
        if count < 1_000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1_000
    return f"{count:.1f} {SIZE_UNITS[-1]}"


def write_money(usd: float) -> str:
    """Return an amount of money."""
    return f"${usd:.2f}" if usd >= 0.995 else f"${usd:.4f}"


def write_time(seconds: float) -> str:
    """Return a time as the standard format, for the attribute of an element."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def show_time(seconds: float) -> str:
    """Return a time as a person reads it, in UTC; scripts show it in the browser's zone."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def write_count(count: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun."""
    noun = singular if count == 1 else plural or f"{singular}s"
    return f"{count:,} {noun}"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "duration": write_duration,
    "size": write_size,
    "money": write_money,
    "isotime": write_time,
    "showtime": show_time,
    "count_of": write_count,
}
