"""How the demo looks in a terminal.

Only a spinner is redrawn while something takes long; without a terminal there is none, so a log of
the demo stays readable.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.cells import cell_len
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..console import (
    MIN_RULE_COLUMNS,
    PlainTable,
    StyledPart,
    assemble_line,
    create_console,
    highlight_for_terminal,
)

MAX_COLUMNS = 100
MARGIN_COLUMNS = 2
FACT_COLUMNS = 12  # of the name of a fact


class DemoConsole:
    """Writes to `out`, each line at once, with styles if it is a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._console = create_console(out)
        self._columns = min(MAX_COLUMNS, self._console.width)
        self._clock_start = time.monotonic()

    def write_line(self, *parts: StyledPart, style: str = "") -> None:
        """Write one line made of strings, each of them plain or with a style of its own."""
        self._console.print(assemble_line(" " * MARGIN_COLUMNS, *parts, style=style))
        self._out.flush()

    def write_heading(self, text: str) -> None:
        """Write a line that opens a section."""
        rule = "─" * max(MIN_RULE_COLUMNS, self._columns - cell_len(text) - 8)
        self.write_line()
        self.write_line(("── ", "dim"), (text, "bold"), (f" {rule}", "dim"))
        self.write_line()

    def write_paragraph(self, text: str) -> None:
        """Write a text in italics."""
        for line in textwrap.wrap(text, self._columns - MARGIN_COLUMNS):
            self.write_line((line, "italic"))
        self.write_line()

    @contextmanager
    def show_wait(self, text: str) -> Iterator[None]:
        """Show in a terminal that something is under way, and since when."""
        if not self._console.is_terminal:
            yield
            return
        margin = TextColumn(" " * (MARGIN_COLUMNS - 1))
        columns = (margin, SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            progress.add_task(text, total=None)
            yield

    def write_fact(self, name: str, text: str) -> None:
        """Write a name and a text about it."""
        lines = textwrap.wrap(text, self._columns - FACT_COLUMNS - 4) or [""]
        self.write_line((f"{name:<{FACT_COLUMNS}}", "dim"), lines[0])
        for line in lines[1:]:
            self.write_line(" " * FACT_COLUMNS, line)

    def write_program(self, code: str) -> None:
        """Write Python with line numbers and, in a terminal, with syntax highlighting."""
        for number, line in enumerate(highlight_for_terminal(self._console, code.splitlines()), 1):
            self.write_line((f"{number:3}  ", "dim"), line)
        self.write_line()

    def start_clock(self) -> None:
        """Start to count the seconds that `write_streamed` shows."""
        self._clock_start = time.monotonic()

    def write_streamed(self, text: str) -> None:
        """Write output as it arrives, with the seconds since the clock was started."""
        for line in text.splitlines():
            seconds = f"{time.monotonic() - self._clock_start:6.2f} s "
            self.write_line((seconds, "dim"), ("│", "cyan"), f" {line}")

    def write_block(self, text: str, style: str = "green") -> None:
        """Write a text of several lines with a bar at its left."""
        for line in text.splitlines():
            self.write_line(("┃", style), f" {line}")

    def write_table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a table whose first column is text and whose other columns are figures."""
        table = PlainTable(gap=3)
        table.add_column(head[0])
        for name in head[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_cells(*row)
        self._console.print(Padding(table, (0, 0, 0, MARGIN_COLUMNS), expand=False))
        self._out.flush()
