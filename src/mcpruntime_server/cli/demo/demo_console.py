"""How the demo looks in a terminal: colour only where one is looking, and nothing that a log could not keep."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import TextIO

from ..terminal import apply_style, highlight_python

MAX_COLUMNS = 100  # columns, or what the terminal has if that is less
MARGIN = "  "


class DemoConsole:
    """Writes to `out`, in colour if that is a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._coloured = out.isatty()
        self._width = min(MAX_COLUMNS, shutil.get_terminal_size((MAX_COLUMNS, 24)).columns)
        self._began = time.monotonic()

    def write_line(self, text: str = "") -> None:
        """Write one line, at once."""
        print(f"{MARGIN}{text}".rstrip(), file=self._out, flush=True)

    def style_text(self, text: str, style: str) -> str:
        """Return `text` in a style."""
        return apply_style(text, style) if self._coloured else text

    def write_heading(self, text: str) -> None:
        """Write a line that begins something new."""
        rule = "─" * max(3, self._width - len(text) - 8)
        self.write_line()
        self.write_line(
            f"{self.style_text('──', 'dim')} {self.style_text(text, 'bold')} {self.style_text(rule, 'dim')}"
        )
        self.write_line()

    def write_fact(self, name: str, text: str) -> None:
        """Write a name and what there is to say about it."""
        lines = textwrap.wrap(text, self._width - 16) or [""]
        self.write_line(f"{self.style_text(f'{name:<12}', 'dim')}{lines[0]}")
        for more in lines[1:]:
            self.write_line(f"{'':<12}{more}")

    def write_program(self, code: str) -> None:
        """Write Python with line numbers, its parts told apart."""
        plain = code.splitlines()
        for number, text in enumerate(
            highlight_python(plain, self.style_text) if self._coloured else plain, 1
        ):
            self.write_line(f"{self.style_text(f'{number:3}', 'dim')}  {text}")
        self.write_line()

    def start_clock(self) -> None:
        """Count the seconds that `streamed` shows from now on."""
        self._began = time.monotonic()

    def write_streamed(self, text: str) -> None:
        """Write output that has just arrived, with the time it took to."""
        for line in text.splitlines():
            clock = f"{time.monotonic() - self._began:6.2f} s"
            self.write_line(
                f"{self.style_text(clock, 'dim')} {self.style_text('│', 'cyan')} {line}"
            )

    def write_block(self, text: str, style: str = "green") -> None:
        """Write a text of several lines with a bar beside it."""
        for line in text.splitlines():
            self.write_line(f"{self.style_text('┃', style)} {line}")

    def write_table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a table whose first column is text and whose other columns are figures."""
        body = list(rows)
        widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
        for row in [head, *body]:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            text = "   ".join(cells)
            self.write_line(self.style_text(text, "dim") if row is head else text)
