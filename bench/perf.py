"""Measures the server against its performance budget and prints a table.

Run `python -m bench perf --help`. Each row is measured in turns with its baseline. Figures are
reported, not asserted: the exit code says whether everything could be measured. With `--quick`, it
says whether a row is far beyond its bound (`perf_gate`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import anyio

from .durability_rows import DURABILITY_ROWS
from .harness import BenchmarkRow, start_bare_server, start_server
from .llm_rows import LLM_ROWS
from .perf_gate import (
    GATE_FACTOR,
    GateResult,
    RowGroup,
    compare_speed,
    settle_groups,
    wait_until_calm,
)
from .restart_rows import RESTART_ROWS
from .results import RESULTS_FOLDER, ResultRecorder, record_result
from .rows import SERVER_ROWS, BenchContext, measure_bare_call
from .skill_rows import SKILL_ROWS
from .time_rows import TIME_ROWS
from .web_rows import WEB_ROWS

MeasureRow = Callable[[BenchContext], Awaitable[BenchmarkRow | list[BenchmarkRow]]]

ALL_ROWS: Sequence[MeasureRow] = (
    *SERVER_ROWS,
    *DURABILITY_ROWS,
    *RESTART_ROWS,
    *TIME_ROWS,
    *SKILL_ROWS,
    *LLM_ROWS,
    *WEB_ROWS,
)
DEFAULT_RESULTS = RESULTS_FOLDER / "perf.json"
TABLE_LAYOUT = "{:<42} {:>11} {:>11} {:>9} {:>9}  {:<4} {}"
ROW_TIMEOUT_S = 120.0  # a row that takes longer hangs


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected rows; return 1 if a row failed and 2 if no row matches.

    With `--quick`, return 1 if a row stays far over its bound.
    """
    options = build_parser().parse_args(arguments)
    wanted = [
        row
        for row in ALL_ROWS
        if not options.only or any(word in row.__name__ for word in options.only)
    ]
    if not wanted:
        print(
            f"no row is called {' or '.join(options.only)}; there are {', '.join(row_names())}",
            file=sys.stderr,
        )
        return 2
    with record_result("perf", options.json, is_quick=options.quick) as recorder:
        groups, gate = anyio.run(measure_rows, wanted, options.quick)
        rows = [row for group in groups for row in group.rows]
        record_rows(recorder, rows)
        recorder.failures |= {group.name: group.failure for group in groups if group.failure}
    took_s = recorder.result().took_s
    print(
        f"\n{len(rows)} rows in {took_s:.0f} s, on {os.cpu_count()} processors, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    if gate is None:
        return int(any(group.failure for group in groups))
    print(gate.describe())
    slowness = groups[0].slowness
    if slowness > 1:
        print(
            f"This machine is {slowness:.1f} times slower than that of the budget, "
            "so bounds that are times are as much longer."
        )
    return int(not gate.has_passed)


def record_rows(recorder: ResultRecorder, rows: Iterable[BenchmarkRow]) -> None:
    """Add the samples of both sides of each row to a result, and its figures to the details."""
    for row in rows:
        recorder.add(row.name, row.unit, row.ours)
    recorder.details["rows"] = {row.name: row.as_json() for row in rows}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(description="Measure the server against its performance budget.")
    top.add_argument(
        "--json", type=Path, default=DEFAULT_RESULTS, metavar="FILE", help="where the figures go"
    )
    top.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help=f"one of {', '.join(row_names())}; may be repeated",
    )
    top.add_argument(
        "--quick",
        action="store_true",
        help=f"fewer samples; fail only if a row is worse than {GATE_FACTOR:g} times its bound",
    )
    return top


def row_names() -> Iterable[str]:
    """Return the names that `--only` takes."""
    return (row.__name__ for row in ALL_ROWS)


async def measure_rows(
    wanted: Sequence[MeasureRow], quick: bool
) -> tuple[list[RowGroup], GateResult | None]:
    """Return the measured rows by the functions that measure them.

    Each row is printed as soon as it is measured. With `quick`, what seems to be worse is measured
    again.
    """
    print(
        TABLE_LAYOUT.format(
            "p50 of each", "ours", "baseline", "figure", "bound", "met", "baseline is"
        )
    )
    async with start_server() as ours, start_bare_server() as bare:
        bench = BenchContext(ours, bare, quick)
        slowness = compare_speed(await measure_bare_call(bench)) if quick else 1.0
        groups = [await measure_group(bench, measure_row, slowness) for measure_row in wanted]
        gate = await settle_groups(groups, wait_until_calm) if quick else None
    return groups, gate


async def measure_group(bench: BenchContext, measure_row: MeasureRow, slowness: float) -> RowGroup:
    """Return the rows that a function measures, or its failure, and print them."""
    measure_again = partial(measure_group, bench, measure_row, slowness)
    group = RowGroup(measure_row.__name__, measure_again, slowness)
    try:
        with anyio.fail_after(ROW_TIMEOUT_S):
            measured = await measure_row(bench)
    except Exception as exc:  # noqa: BLE001 - the other rows are measured after any failure
        group.failure = repr(exc)
        print(f"{group.name}: could not be measured: {exc!r}", file=sys.stderr)
        return group
    group.rows = measured if isinstance(measured, list) else [measured]
    for row in group.rows:
        print(format_row(row), flush=True)
    return group


def format_row(row: BenchmarkRow) -> str:
    """Return `row` as one line of the table."""
    data = row.as_json()
    baseline = data["baseline"]
    met = {None: "-", True: "yes", False: "NO"}[row.is_met]
    return TABLE_LAYOUT.format(
        row.title,
        format_amount(data["ours"]["p50"], row.unit),
        format_amount(baseline["p50"], row.unit) if baseline else "-",
        format_figure(row.figure, row) if row.kind != "value" else "",
        "-" if row.bound is None else format_figure(row.bound, row),
        met,
        row.baseline_title,
    ).rstrip()


def format_figure(value: float, row: BenchmarkRow) -> str:
    """Return a figure or its bound as text."""
    return (
        f"{value:.2f}x"
        if row.kind == "ratio"
        else f"{value:{'+' * (row.kind == 'difference')}.4g} {row.unit[:3]}"
    )


def format_amount(value: float, unit: str) -> str:
    """Return a measured value as text, with three significant digits."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit[:3]}"
