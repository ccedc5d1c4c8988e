"""How the demo looks in a terminal: colour only where one is looking, and nothing that a log could not keep."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import TextIO

from ..terminal import painted, styled

WIDTH = 100  # columns, or what the terminal has if that is less
MARGIN = "  "


class Screen:
    """Writes to `out`, in colour if that is a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._coloured = out.isatty()
        self._width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        self._began = time.monotonic()

    def line(self, text: str = "") -> None:
        """Write one line, at once."""
        print(f"{MARGIN}{text}".rstrip(), file=self._out, flush=True)

    def paint(self, text: str, style: str) -> str:
        """Return `text` in a style."""
        return styled(text, style) if self._coloured else text

    def heading(self, text: str) -> None:
        """Write a line that begins something new."""
        rule = "─" * max(3, self._width - len(text) - 8)
        self.line()
        self.line(f"{self.paint('──', 'dim')} {self.paint(text, 'bold')} {self.paint(rule, 'dim')}")
        self.line()

    def fact(self, name: str, text: str) -> None:
        """Write a name and what there is to say about it."""
        lines = textwrap.wrap(text, self._width - 16) or [""]
        self.line(f"{self.paint(f'{name:<12}', 'dim')}{lines[0]}")
        for more in lines[1:]:
            self.line(f"{'':<12}{more}")

    def program(self, code: str) -> None:
        """Write Python with line numbers, its parts told apart."""
        plain = code.splitlines()
        for number, text in enumerate(painted(plain, self.paint) if self._coloured else plain, 1):
            self.line(f"{self.paint(f'{number:3}', 'dim')}  {text}")
        self.line()

    def start_clock(self) -> None:
        """Count the seconds that `streamed` shows from now on."""
        self._began = time.monotonic()

    def streamed(self, text: str) -> None:
        """Write output that has just arrived, with the time it took to."""
        for line in text.splitlines():
            clock = f"{time.monotonic() - self._began:6.2f} s"
            self.line(f"{self.paint(clock, 'dim')} {self.paint('│', 'cyan')} {line}")

    def block(self, text: str, style: str = "green") -> None:
        """Write a text of several lines with a bar beside it."""
        for line in text.splitlines():
            self.line(f"{self.paint('┃', style)} {line}")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a table whose first column is text and whose other columns are figures."""
        body = list(rows)
        widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
        for row in [head, *body]:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            text = "   ".join(cells)
            self.line(self.paint(text, "dim") if row is head else text)
