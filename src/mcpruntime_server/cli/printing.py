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

from ..terminal import painted, styled

PIPE_COLUMNS = 120  # where there is no terminal to ask
MIN_COLUMNS = 40
HEAD_LINES, TAIL_LINES = 30, 10  # of a long text
FOLDED_CHARS = 2_000  # of one line
MAX_PASSED_S = 1e10  # told of a time; one that is longer ago comes from an archive that lies
TAB = "    "


class Screen:
    """Writes to `out`; `full` is whether long things are shown whole."""

    def __init__(self, out: TextIO, *, full: bool = False) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._coloured = self._is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        columns = shutil.get_terminal_size((0 if self._is_terminal else PIPE_COLUMNS, 24)).columns
        self.width = max(MIN_COLUMNS, columns or 80)
        self.full = full
        self.has_cut = False

    def line(self, text: str = "") -> None:
        """Write one line."""
        print(text.rstrip(), file=self._out)

    def paint(self, text: str, style: str) -> str:
        """Return `text` in a style."""
        return styled(text, style) if self._coloured else text

    def heading(self, text: str, style: str = "bold") -> None:
        """Write a line that begins something new."""
        text = fit(safe(text), self.width - 7)
        rule = "─" * max(3, self.width - columns_of(text) - 4)
        self.line(f"{self.paint('──', 'dim')} {self.paint(text, style)} {self.paint(rule, 'dim')}")

    def block(self, title: str, text: str, style: str = "cyan") -> None:
        """Write a recorded text with a bar beside it."""
        self.line(f"  {self.paint(safe(title), 'dim')}")
        for line in self.excerpt(lines_of(text)):
            for part in self._folded(line, self.width - 6):
                self.line(f"    {self.paint('│', style)} {part}")

    def program(self, code: str) -> None:
        """Write recorded Python with line numbers, its parts told apart."""
        plain = lines_of(code)
        marked = painted(plain, self.paint) if self._coloured else plain
        figures = max(3, len(str(len(plain))))
        numbered = [(f"{number:{figures}}", line, marked[number - 1]) for number, line in enumerate(plain, 1)]
        for number, line, shown in self.excerpt(numbered, gap=(" " * figures, "", "")):
            parts = list(self._folded(line, self.width - figures - 4))
            for place, part in enumerate([shown] if len(parts) == 1 else parts):
                self.line(f"  {self.paint(number if place == 0 else ' ' * figures, 'dim')}  {part}")

    def difference(self, text: str, margin: str = "    ") -> None:
        """Write a recorded unified difference."""
        for line in self.excerpt(lines_of(text)):
            style = {"+": "green", "-": "red", "@": "cyan", "…": "dim"}.get(line[:1], "")
            for part in self._folded(line, self.width - len(margin)):
                self.line(f"{margin}{self.paint(part, style)}")

    def note(self, text: str) -> None:
        """Write a line about what is shown."""
        self.line(self.paint(text, "dim"))

    def warn(self, text: str) -> None:
        """Write what is wrong with what is shown."""
        self.line(f"  {self.paint('!', 'yellow')} {safe(text)}")

    def one_line(self, text: str, room: int) -> str:
        """Return a recorded text on one line, cut to so many columns unless all is shown."""
        return safe(text) if self.full else fit(safe(text[: 8 * room]), room)

    def excerpt(self, lines: Sequence[Any], gap: Any = None) -> Iterator[Any]:
        """Yield the lines, of many only the first and last, and in between how many are left out."""
        left_out = len(lines) - HEAD_LINES - TAIL_LINES
        if self.full or left_out <= 1:
            yield from lines
            return
        yield from lines[:HEAD_LINES]
        self.has_cut = True
        told = f"… {left_out:,} more lines …"
        yield told if gap is None else (*gap[:-2], told, told)
        yield from lines[-TAIL_LINES:]

    def end(self) -> None:
        """Say how to see what was cut, if something was."""
        if self.has_cut:
            self.note("… cut; --full shows all")

    def _folded(self, line: str, room: int) -> Iterator[str]:
        if not self.full and len(line) > FOLDED_CHARS:
            self.has_cut = True
            line = f"{line[:FOLDED_CHARS]} … {len(line) - FOLDED_CHARS:,} more characters"
        if not self._is_terminal:
            yield line
            return
        while columns_of(line) > room:
            part = fit(line, room, mark="")
            yield part
            line = line[len(part) :]
        yield line


# recorded text --------------------------------------------------------------------------------------


def safe(text: str) -> str:
    """Return a stranger's text on one line, with all that does not print spelled out."""
    return text if text.isprintable() else "".join(char if char.isprintable() else spelled(char) for char in text)


def spelled(char: str) -> str:
    """Return a character that does not print as Python spells it."""
    return TAB if char == "\t" else ascii(char)[1:-1]


def lines_of(text: str) -> list[str]:
    """Return the lines of a stranger's text, made safe."""
    lines = text.replace("\r\n", "\n").split("\n")
    return [safe(line) for line in (lines if lines[-1] else lines[:-1])]


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, room: int, mark: str = "…") -> str:
    """Return what of a text fits into so many columns, with `mark` at the end if that is not all."""
    if columns_of(text) <= room:
        return text
    taken, left = [], room - len(mark)
    for char in text:
        left -= _columns(char)
        if left < 0:
            break
        taken.append(char)
    return "".join(taken) + mark


def pad(text: str, room: int) -> str:
    """Return a text in exactly so many columns."""
    shown = fit(text, room)
    return shown + " " * (room - columns_of(shown))


# figures --------------------------------------------------------------------------------------------


def when(seconds: float) -> str:
    """Return a time as a person reads it."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # an archive may say anything
        return f"{seconds:g}"


def ago(seconds: float) -> str:
    """Return how long ago a time was, in one unit."""
    passed = min(max(0.0, time.time() - seconds), MAX_PASSED_S)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(passed // length)) >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def took(seconds: float | None) -> str:
    """Return a duration."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def size(count: int) -> str:
    """Return a number of bytes."""
    figure, units = float(count), ["B", "kB", "MB", "GB"]
    while figure >= 1000 and len(units) > 1:
        figure /= 1000
        units.pop(0)
    return f"{figure:.0f} {units[0]}" if units[0] == "B" or figure >= 100 else f"{figure:.1f} {units[0]}"


def many(count: int, what: str) -> str:
    """Return a number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# for programs ---------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """Print for programs."""
    print(json.dumps(value, indent=2, default=str))


def printer() -> TextIO:
    """Return where verbs print to, made to take any text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return sys.stdout
