"""Terminal output of the commands for people: styled text.

Rule 1: recorded text comes from strangers. Every character that does not print is spelled out, so
none reaches a terminal: the writers do it themselves, and so does `terminal_text`; nothing else in
the command line writes to stdout or stderr.
Rule 2: output that is cut says how much is missing. Output to a pipe has no styles, and its lines
are not wrapped.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import TextIO, TypeVar

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .terminal_text import escape_lines, escape_text, open_stdout

PIPE_COLUMNS = 120  # assumed where the output is not a terminal
MIN_COLUMNS = 40
UNLIMITED_COLUMNS = 1_000_000
HEAD_LINES, TAIL_LINES = 30, 10  # of a long text that is cut
MAX_LINE_CHARS = 2_000
MAX_AGE_S = 1e10  # an archive may claim that something is older than the calendar
DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan", "…": "dim"}  # by a line's first character
MIN_RULE_COLUMNS = 3

T = TypeVar("T")
StyledPart = str | Text | tuple[str, str]  # (text, style)


@dataclass(frozen=True)
class Omission:
    """Stands for the lines that an excerpt leaves out."""

    count: int

    def __str__(self) -> str:
        return f"… {self.count:,} more lines …"


def create_console(out: TextIO) -> Console:
    """Return a console that styles its output only where `out` is a terminal that allows it."""
    is_terminal = out.isatty()
    width = None if is_terminal else shutil.get_terminal_size((PIPE_COLUMNS, 24)).columns
    is_plain = not is_terminal or os.environ.get("NO_COLOR")
    return Console(
        file=out,
        width=width,
        color_system=None if is_plain else "auto",
        force_terminal=is_terminal,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def highlight_for_terminal(console: Console, lines: list[str]) -> list[Text]:
    """Return lines of Python, highlighted if the console shows styles."""
    if console.color_system is None:
        return [Text(line) for line in lines]
    from rich.syntax import Syntax

    highlighted = Syntax("", "python", theme="ansi_dark").highlight("\n".join(lines))
    return list(highlighted.split("\n", allow_blank=True))[: len(lines)]


class ConsoleWriter:
    """Writes to `out`, by default stdout; `show_full` turns all cutting off."""

    def __init__(self, out: TextIO | None = None, *, show_full: bool = False) -> None:
        self._console = create_console(open_stdout() if out is None else out)
        self.width = max(MIN_COLUMNS, self._console.width)
        self.show_full = show_full
        self.is_truncated = False

    def write_line(self, *parts: StyledPart, style: str = "") -> None:
        """Write one line made of strings, each of them plain or with a style of its own."""
        self._console.print(assemble_line(*parts, style=style))

    def write_heading(self, text: str, style: str = "bold") -> None:
        """Write a line that opens a section."""
        title = truncate_to_columns(escape_text(text), self.width - 7)
        rule = "─" * max(MIN_RULE_COLUMNS, self.width - cell_len(title) - 4)
        self.write_line(("── ", "dim"), (title, style), (f" {rule}", "dim"))

    def write_block(self, title: str, text: str, style: str = "cyan") -> None:
        """Write a recorded text with a bar at its left."""
        self.write_line((f"  {title}", "dim"))
        for line in self.select_excerpt(escape_lines(text)):
            for part in self._wrap_line(Text(str(line)), self.width - 6):
                self.write_line("    ", ("│", style), " ", part)

    def write_program(self, code: str) -> None:
        """Write recorded Python with line numbers and, in a terminal, with syntax highlighting."""
        lines = highlight_for_terminal(self._console, escape_lines(code))
        digits = max(3, len(str(len(lines))))
        for line in self.select_excerpt(list(enumerate(lines, 1))):
            number, text = ("", Text(str(line))) if isinstance(line, Omission) else line
            for part in self._wrap_line(text, self.width - digits - 4):
                self.write_line((f"  {number:>{digits}}  ", "dim"), part)
                number = ""

    def write_diff(self, text: str, margin: str = "    ") -> None:
        """Write a recorded unified diff."""
        for line in map(str, self.select_excerpt(escape_lines(text))):
            style = DIFF_STYLES.get(line[:1], "")
            for part in self._wrap_line(Text(line, style), self.width - len(margin)):
                self.write_line(margin, part)

    def write_table(self, table: Table, min_columns: int) -> None:
        """Write a table in the width of the terminal, but never in fewer than `min_columns`."""
        self._console.width = max(self.width, min_columns)
        if self.show_full:
            self._console.width = UNLIMITED_COLUMNS
        self._console.print(table, soft_wrap=False, crop=False)
        self._console.width = self.width

    def write_note(self, text: str) -> None:
        """Write a line about what is shown."""
        self.write_line(text, style="dim")

    def write_warning(self, text: str) -> None:
        """Write what is wrong with what is shown."""
        self.write_line("  ", ("!", "yellow"), f" {text}")

    def write_footer(self) -> None:
        """If something was cut, say how to see all of it."""
        if self.is_truncated:
            self.write_note("… cut; --full shows all")

    def truncate_line(self, text: str, columns: int) -> str:
        """Return a recorded text on one line, cut to so many columns unless all is shown."""
        if self.show_full:
            return escape_text(text)
        return truncate_to_columns(escape_text(text[: 8 * columns]), columns)

    def select_excerpt(self, lines: Sequence[T]) -> Iterator[T | Omission]:
        """Yield the lines; of many only the first and the last, with an `Omission` in between."""
        omitted = len(lines) - HEAD_LINES - TAIL_LINES
        if self.show_full or omitted <= 1:
            yield from lines
            return
        self.is_truncated = True
        yield from lines[:HEAD_LINES]
        yield Omission(omitted)
        yield from lines[-TAIL_LINES:]

    def _wrap_line(self, line: Text, columns: int) -> Iterator[Text]:
        """Yield a line in parts of so many columns; where no terminal shows it, as one part."""
        if not self.show_full and len(line) > MAX_LINE_CHARS:
            self.is_truncated = True
            omitted = len(line) - MAX_LINE_CHARS
            line = line[:MAX_LINE_CHARS].append(f" … {omitted:,} more characters")
        if not self._console.is_terminal or line.cell_len <= columns:
            yield line
            return
        ends = accumulate(map(len, chop_cells(line.plain, columns)))
        yield from line.divide(list(ends)[:-1])


# recorded text ------------------------------------------------------------------------------------


def assemble_line(*parts: StyledPart, style: str = "") -> Text:
    """Return one line made of strings, each of them plain or with a style, all of them escaped."""
    line = Text(style=style)
    for part in parts:
        if isinstance(part, tuple):
            line.append(escape_text(part[0]), part[1])
        else:
            line.append(escape_cell(part))
    line.rstrip()
    return line


def escape_cell(text: str | Text) -> str | Text:
    """Return a text, escaped; a styled one that has something to escape loses its styles."""
    if isinstance(text, str):
        return escape_text(text)
    return text if text.plain.isprintable() else Text(escape_text(text.plain), text.style)


class PlainTable(Table):
    """A table without borders and with `gap` spaces between columns, whose cells are escaped."""

    def __init__(self, gap: int = 2) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")

    def add_cells(self, *cells: str | Text) -> None:
        """Add a row."""
        self.add_row(*map(escape_cell, cells))


def truncate_to_columns(text: str, columns: int) -> str:
    """Return the part of a text that fits into so many columns, with "…" at its end if cut."""
    shown = Text(text)
    shown.truncate(columns, overflow="ellipsis")
    return shown.plain


def pad_text(text: str, columns: int) -> str:
    """Return a text in exactly so many columns."""
    shown = Text(text)
    shown.truncate(columns, overflow="ellipsis", pad=True)
    return shown.plain


# figures ------------------------------------------------------------------------------------------


def format_time(seconds: float) -> str:
    """Return a Unix time as a local date and time."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # an archive may claim any time
        return f"{seconds:g}"


def format_age(seconds: float) -> str:
    """Return how long ago a Unix time was, in one unit."""
    age_s = min(max(0.0, time.time() - seconds), MAX_AGE_S)
    for unit, length_s in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(age_s // length_s)) >= 1:
            return f"{format_count(count, unit)} ago"
    return "just now"


def format_duration(seconds: float | None) -> str:
    """Return a duration in one unit; "" if there is none."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def format_size(count: int) -> str:
    """Return a number of bytes with its unit."""
    amount, units = float(count), ["B", "kB", "MB", "GB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    digits = 0 if units[0] == "B" or amount >= 100 else 1
    return f"{amount:.{digits}f} {units[0]}"


def format_count(count: int, noun: str) -> str:
    """Return a number and what it counts: "1 step", "2,000 steps"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
