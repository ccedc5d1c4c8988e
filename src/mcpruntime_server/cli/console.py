"""How verbs print: for people, in colour and to the width of their terminal; for programs, as JSON.

Rule 1: recorded text is a stranger's. `safe` and `lines_of` make it harmless, and nothing else of it is printed: no
control character of it reaches a terminal.
Rule 2: what is cut says how much is missing. Where no terminal is looking, there are no colours and nothing is folded.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, TextIO

from .terminal import apply_style, highlight_python

PIPE_COLUMNS = 120  # where there is no terminal to ask
MIN_COLUMNS = 40
HEAD_LINES, TAIL_LINES = 30, 10  # of a long text
MAX_LINE_CHARS = 2_000  # of one line
MAX_AGE_S = 1e10  # told of a time; one that is longer ago comes from an archive that lies
TAB_SPACES = "    "


class ConsoleWriter:
    """Writes to `out`; `full` is whether long things are shown whole."""

    def __init__(self, out: TextIO, *, show_full: bool = False) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._coloured = (
            self._is_terminal
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb"
        )
        columns = shutil.get_terminal_size((0 if self._is_terminal else PIPE_COLUMNS, 24)).columns
        self.width = max(MIN_COLUMNS, columns or 80)
        self.show_full = show_full
        self.is_truncated = False

    def write_line(self, text: str = "") -> None:
        """Write one line."""
        print(text.rstrip(), file=self._out)

    def style_text(self, text: str, style: str) -> str:
        """Return `text` in a style."""
        return apply_style(text, style) if self._coloured else text

    def write_heading(self, text: str, style: str = "bold") -> None:
        """Write a line that begins something new."""
        text = truncate_text(escape_text(text), self.width - 7)
        rule = "─" * max(3, self.width - count_columns(text) - 4)
        self.write_line(
            f"{self.style_text('──', 'dim')} {self.style_text(text, style)} {self.style_text(rule, 'dim')}"
        )

    def write_block(self, title: str, text: str, style: str = "cyan") -> None:
        """Write a recorded text with a bar beside it."""
        self.write_line(f"  {self.style_text(escape_text(title), 'dim')}")
        for line in self.select_excerpt(escape_lines(text)):
            for part in self._wrap_line(line, self.width - 6):
                self.write_line(f"    {self.style_text('│', style)} {part}")

    def write_program(self, code: str) -> None:
        """Write recorded Python with line numbers, its parts told apart."""
        plain = escape_lines(code)
        marked = highlight_python(plain, self.style_text) if self._coloured else plain
        figures = max(3, len(str(len(plain))))
        numbered = [
            (f"{number:{figures}}", line, marked[number - 1])
            for number, line in enumerate(plain, 1)
        ]
        for number, line, shown in self.select_excerpt(numbered, gap=(" " * figures, "", "")):
            parts = list(self._wrap_line(line, self.width - figures - 4))
            for place, part in enumerate([shown] if len(parts) == 1 else parts):
                self.write_line(
                    f"  {self.style_text(number if place == 0 else ' ' * figures, 'dim')}  {part}"
                )

    def write_diff(self, text: str, margin: str = "    ") -> None:
        """Write a recorded unified difference."""
        for line in self.select_excerpt(escape_lines(text)):
            style = {"+": "green", "-": "red", "@": "cyan", "…": "dim"}.get(line[:1], "")
            for part in self._wrap_line(line, self.width - len(margin)):
                self.write_line(f"{margin}{self.style_text(part, style)}")

    def write_note(self, text: str) -> None:
        """Write a line about what is shown."""
        self.write_line(self.style_text(text, "dim"))

    def write_warning(self, text: str) -> None:
        """Write what is wrong with what is shown."""
        self.write_line(f"  {self.style_text('!', 'yellow')} {escape_text(text)}")

    def truncate_line(self, text: str, columns: int) -> str:
        """Return a recorded text on one line, cut to so many columns unless all is shown."""
        return (
            escape_text(text)
            if self.show_full
            else truncate_text(escape_text(text[: 8 * columns]), columns)
        )

    def select_excerpt(self, lines: Sequence[Any], gap: Any = None) -> Iterator[Any]:
        """Yield the lines, of many only the first and last, and in between how many are left out."""
        left_out = len(lines) - HEAD_LINES - TAIL_LINES
        if self.show_full or left_out <= 1:
            yield from lines
            return
        yield from lines[:HEAD_LINES]
        self.is_truncated = True
        told = f"… {left_out:,} more lines …"
        yield told if gap is None else (*gap[:-2], told, told)
        yield from lines[-TAIL_LINES:]

    def write_footer(self) -> None:
        """Say how to see what was cut, if something was."""
        if self.is_truncated:
            self.write_note("… cut; --full shows all")

    def _wrap_line(self, line: str, columns: int) -> Iterator[str]:
        if not self.show_full and len(line) > MAX_LINE_CHARS:
            self.is_truncated = True
            line = f"{line[:MAX_LINE_CHARS]} … {len(line) - MAX_LINE_CHARS:,} more characters"
        if not self._is_terminal:
            yield line
            return
        while count_columns(line) > columns:
            part = truncate_text(line, columns, ellipsis="")
            yield part
            line = line[len(part) :]
        yield line


# recorded text --------------------------------------------------------------------------------------


def escape_text(text: str) -> str:
    """Return a stranger's text on one line, with all that does not print spelled out."""
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else escape_char(char) for char in text)
    )


def escape_char(char: str) -> str:
    """Return a character that does not print as Python spells it."""
    return TAB_SPACES if char == "\t" else ascii(char)[1:-1]


def escape_lines(text: str) -> list[str]:
    """Return the lines of a stranger's text, made safe."""
    lines = text.replace("\r\n", "\n").split("\n")
    return [escape_text(line) for line in (lines if lines[-1] else lines[:-1])]


def count_columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return len(text) if text.isascii() else sum(map(_char_columns, text))


def _char_columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def truncate_text(text: str, columns: int, ellipsis: str = "…") -> str:
    """Return what of a text fits into so many columns, with `mark` at the end if that is not all."""
    if count_columns(text) <= columns:
        return text
    taken, left = [], columns - len(ellipsis)
    for char in text:
        left -= _char_columns(char)
        if left < 0:
            break
        taken.append(char)
    return "".join(taken) + ellipsis


def pad_text(text: str, columns: int) -> str:
    """Return a text in exactly so many columns."""
    shown = truncate_text(text, columns)
    return shown + " " * (columns - count_columns(shown))


# figures --------------------------------------------------------------------------------------------


def format_time(seconds: float) -> str:
    """Return a time as a person reads it."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # an archive may say anything
        return f"{seconds:g}"


def format_age(seconds: float) -> str:
    """Return how long ago a time was, in one unit."""
    passed = min(max(0.0, time.time() - seconds), MAX_AGE_S)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(passed // length)) >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def format_duration(seconds: float | None) -> str:
    """Return a duration."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def format_size(count: int) -> str:
    """Return a number of bytes."""
    figure, units = float(count), ["B", "kB", "MB", "GB"]
    while figure >= 1000 and len(units) > 1:
        figure /= 1000
        units.pop(0)
    return (
        f"{figure:.0f} {units[0]}"
        if units[0] == "B" or figure >= 100
        else f"{figure:.1f} {units[0]}"
    )


def format_count(count: int, what: str) -> str:
    """Return a number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# for programs ---------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """Print for programs."""
    print(json.dumps(value, indent=2, default=str))


def open_stdout() -> TextIO:
    """Return where verbs print to, made to take any text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return sys.stdout
