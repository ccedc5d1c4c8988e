"""The sections of the report, in their order: one function for each suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .report import WriteSection, describe_run, markdown_table
from .results import SuiteResult


def write_rows(title: str, command: str) -> WriteSection:
    """Return the writer of a section that is a table of rows with bounds."""

    def write(results: Sequence[SuiteResult], plots: Path) -> str:
        result = results[-1]
        rows = [format_row(row) for row in result.details["rows"].values()]
        header = ("what (median)", "measured", "baseline", "baseline is", "figure", "bound", "met")
        failures = "".join(f"\n{name} failed: {text}\n" for name, text in result.failures.items())
        table = markdown_table(header, rows)
        return f"## {title}\n{describe_run(result, command)}\n{table}{failures}"

    return write


def format_row(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one row of the performance budget."""
    baseline, unit = row["baseline"], row["unit"]

    def format_figure(value: float | None) -> str:
        if value is None or row["kind"] == "value":
            return "-" if value is None else f"{value:.4g} {unit}"
        return f"{value:.2f}x" if row["kind"] == "ratio" else f"{value:+.3g} {unit}"

    return [
        row["title"],
        f"{row['ours']['p50']:.4g} {unit}",
        f"{baseline['p50']:.4g} {unit}" if baseline else "-",
        row["baseline_is"],
        format_figure(row["figure"]),
        format_figure(row["bound"]),
        {None: "-", True: "yes", False: "**no**"}[row["met"]],
    ]


def readme_figures(results: Mapping[str, Sequence[SuiteResult]]) -> dict[str, str]:
    """Return the figures for the README, by the names of their marks."""
    return {}


SECTIONS: dict[str, WriteSection] = {
    "perf": write_rows("Speed", "python -m bench perf"),
    "load": write_rows("Many clients over HTTP", "python -m bench run load"),
}
