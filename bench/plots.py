"""The plots of the report, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

from .statistics import Interval

BLUE, ORANGE, GRAY, GREEN = "#2f6fb2", "#e08a2e", "#8a8f98", "#3d9970"
COLOURS = {"programs": BLUE, "function calls": ORANGE}
STRATEGY_COLOURS = {"one call": ORANGE, "chunks": GRAY, "recursion": BLUE}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.hashsalt": "bench",  # equal figures give equal files
    "savefig.bbox": "tight",
}


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure as PNG and SVG; return the Markdown that shows it."""
    figure.savefig(folder / f"{name}.png", dpi=144, metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    return f"![{name.replace('-', ' ')}](benchmarks/{name}.png)\n"


def plot_crossover(
    points: Mapping[int, Mapping[str, Sequence[tuple[int, float]]]],
    crossovers: Mapping[int, int],
    folder: Path,
) -> str:
    """Plot (calls, tokens) of each task, in a panel for each size of the catalogue.

    A line marks the most calls of a task that needs fewer tokens with function calls.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(points),
            figsize=(2.6 * len(points), 3.2),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for panel, (catalogue, ways) in zip(axes[0], points.items(), strict=True):
            draw_panel(panel, f"{catalogue:,} tools", ways)
            if crossovers[catalogue]:
                panel.axvline(crossovers[catalogue], color=GRAY, linestyle="--", linewidth=1)
        axes[0][0].set_ylabel("tokens of a task")
        axes[0][0].legend(frameon=False, loc="upper left")
        return save_figure(figure, folder, "context-cost")


def draw_panel(panel: Axes, title: str, ways: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Draw the tasks of one size of the catalogue."""
    for way, found in ways.items():
        calls, tokens = zip(*sorted(found), strict=True)
        panel.scatter(calls, tokens, s=22, color=COLOURS[way], label=way, alpha=0.85, linewidth=0)
    panel.set(title=title, xlabel="calls", xscale="log", yscale="log")
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(EngFormatter(sep=""))


def plot_bars(
    title: str, unit: str, bars: Mapping[str, float], folder: Path, name: str, log: bool = False
) -> str:
    """Plot a horizontal bar for each value."""
    with plt.rc_context(STYLE):
        figure, panel = plt.subplots(figsize=(7.2, 0.8 + 0.34 * len(bars)))
        names = list(bars)[::-1]
        colours = [BLUE if is_ours(each) else GRAY for each in names]
        drawn = panel.barh(names, [bars[each] for each in names], color=colours, height=0.62)
        panel.bar_label(drawn, fmt=format_bar, padding=4, color="#444")
        panel.set(title=title, xlabel=unit)
        panel.margins(x=0.12)
        panel.grid(axis="y", visible=False)
        if log:
            panel.set_xscale("log")
            panel.set_xlim(left=1)  # else the length of a bar says nothing
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        return save_figure(figure, folder, name)


def plot_shares(title: str, shares: Mapping[str, Interval], folder: Path, name: str) -> str:
    """Plot shares with their intervals, the first on top."""
    with plt.rc_context(STYLE):
        figure, panel = plt.subplots(figsize=(6.4, 0.9 + 0.36 * len(shares)))
        for place, (label, share) in enumerate(list(shares.items())[::-1]):
            colour = GRAY if label == "none" else BLUE
            panel.plot([share.low, share.high], [place, place], color=colour, linewidth=2.2)
            panel.plot(share.value, place, "o", color=colour, markersize=8, clip_on=False)
        panel.set_yticks(range(len(shares)), list(shares)[::-1])
        panel.set(title=title, xlim=(0, 1.02), ylim=(-0.6, len(shares) - 0.4))
        panel.xaxis.set_major_formatter(PercentFormatter(1.0))
        panel.grid(axis="y", visible=False)
        return save_figure(figure, folder, name)


def plot_scores(
    panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], folder: Path
) -> str:
    """Plot (power of 2 of the length, score) for each strategy, in a panel for each kind."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(4.2 * len(panels), 3.0), sharey=True, squeeze=False
        )
        for panel, (title, strategies) in zip(axes[0], panels.items(), strict=True):
            for strategy, found in strategies.items():
                sizes, scores = zip(*found, strict=True)
                colour = STRATEGY_COLOURS[strategy]
                panel.plot(sizes, scores, marker="o", color=colour, label=strategy, linewidth=2)
            panel.set(title=title, xlabel="characters", ylim=(-0.03, 1.05))
            panel.xaxis.set_major_formatter(StrMethodFormatter("$2^{{{x:.0f}}}$"))
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0][0].set_ylabel("mean score")
        lines, names = axes[0][0].get_legend_handles_labels()  # the same in all panels
        figure.legend(lines, names, frameon=False, loc="lower center", ncols=len(names))
        figure.subplots_adjust(bottom=0.27)
        return save_figure(figure, folder, "long-texts")


def format_bar(value: float) -> str:
    """Return the value of a bar with three digits, or whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def is_ours(name: str) -> bool:
    """Return whether a bar is of what is measured, and not of an alternative."""
    return name.startswith(("rewind", "fork", "resumed", "programs"))
