"""Measures the server against its performance budget and prints the table: `python bench/perf.py --help`.

Each row is measured next to what it is compared with, sample by sample. Figures are reported and never asserted: the
exit code says only whether everything could be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio

from harness import Row, bare_server, our_server
from llm_rows import LLM_ROWS
from rows import ROWS, Bench
from skill_rows import SKILL_ROWS
from time_rows import TIME_ROWS

Measure = Callable[[Bench], Awaitable[Row | list[Row]]]

EVERY: Sequence[Measure] = (*ROWS, *TIME_ROWS, *SKILL_ROWS, *LLM_ROWS)
DEFAULT = Path(__file__).parent / "results" / "perf.json"
LAYOUT = "{:<42} {:>11} {:>11} {:>9} {:>9}  {:<4} {}"
ROW_S = 120.0  # no row takes so long; one that does has hung


def main() -> int:
    """Measure what was asked for; return 0 unless a row could not be measured."""
    options = parser().parse_args()
    wanted = [row for row in EVERY if not options.only or any(word in row.__name__ for word in options.only)]
    if not wanted:
        print(f"no row is called {' or '.join(options.only)}; there are {', '.join(names())}", file=sys.stderr)
        return 2
    started = time.monotonic()
    rows, failures = anyio.run(measure, wanted, options.quick)
    took = time.monotonic() - started
    print(f"\n{len(rows)} rows in {took:.0f} s, on {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report(rows, failures, took, options.quick), indent=2) + "\n", encoding="utf-8")
    return 1 if failures else 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(description="Measure the server against its performance budget.")
    top.add_argument("--json", type=Path, default=DEFAULT, metavar="FILE", help="where the figures go")
    top.add_argument("--only", action="append", metavar="NAME", help=f"one of {', '.join(names())}; may be repeated")
    top.add_argument("--quick", action="store_true", help="fewer samples")
    return top


def names() -> Iterable[str]:
    """Return the names that `--only` takes."""
    return (row.__name__ for row in EVERY)


async def measure(wanted: Sequence[Measure], quick: bool) -> tuple[list[Row], dict[str, str]]:
    """Return the rows that could be measured, and why others could not; each is printed when it is done."""
    rows: list[Row] = []
    failures: dict[str, str] = {}
    print(LAYOUT.format("p50 of each", "ours", "baseline", "figure", "bound", "met", "baseline is"))
    async with our_server() as ours, bare_server() as bare:
        bench = Bench(ours, bare, quick)
        for measure_row in wanted:
            try:
                with anyio.fail_after(ROW_S):
                    measured = await measure_row(bench)
            except Exception as exc:  # noqa: BLE001 - whatever went wrong, the other rows are measured
                failures[measure_row.__name__] = repr(exc)
                print(f"{measure_row.__name__}: could not be measured: {exc!r}", file=sys.stderr)
                continue
            for row in measured if isinstance(measured, list) else [measured]:
                rows.append(row)
                print(line(row), flush=True)
    return rows, failures


def line(row: Row) -> str:
    """Return `row` as one line of the table."""
    data = row.as_json()
    baseline = data["baseline"]
    met = {None: "-", True: "yes", False: "NO"}[row.met]
    return LAYOUT.format(
        row.title,
        amount(data["ours"]["p50"], row.unit),
        amount(baseline["p50"], row.unit) if baseline else "-",
        figure(row.figure, row) if row.kind != "value" else "",
        "-" if row.bound is None else figure(row.bound, row),
        met,
        row.baseline_is,
    ).rstrip()


def figure(value: float, row: Row) -> str:
    """Return what is compared with the bound, and the bound, as text."""
    return f"{value:.2f}x" if row.kind == "ratio" else f"{'+' * (row.kind == 'difference')}{value:.4g} {row.unit[:3]}"


def amount(value: float, unit: str) -> str:
    """Return a measured value as text, with three significant digits."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit[:3]}"


def report(rows: Sequence[Row], failures: dict[str, str], took_s: float, quick: bool) -> dict[str, Any]:
    """Return everything as JSON data, with what a reader needs to judge it."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "took_s": round(took_s, 1),
        "machine": {
            "processors": os.cpu_count(),
            "load_1m": round(os.getloadavg()[0], 2),
            "system": platform.platform(),
            "python": platform.python_version(),
            "mcp": version("mcp"),
        },
        "rows": {row.name: row.as_json() for row in rows},
        "failures": failures,
    }


if __name__ == "__main__":
    sys.exit(main())
