"""How the demo looks in a terminal: colour only where one is looking, and nothing that a log could not keep."""

from __future__ import annotations

import io
import keyword
import shutil
import textwrap
import time
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

WIDTH = 100  # columns, or what the terminal has if that is less
MARGIN = "  "
STYLES: Mapping[str, str] = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
TOKEN_STYLES: Mapping[str, str] = {
    "STRING": "green",
    "NUMBER": "yellow",
    "COMMENT": "dim",
    **dict.fromkeys(("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"), "green"),  # Python >= 3.12 takes them apart
}


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
        return f"\033[{STYLES[style]}m{text}\033[0m" if self._coloured and text else text

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
        for number, text in enumerate(self.marked(code).splitlines(), 1):
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

    def marked(self, code: str) -> str:
        """Return Python source with keywords, strings, numbers and comments coloured."""
        if not self._coloured:
            return code
        lines = code.splitlines(keepends=True)
        pieces: list[str] = []
        row, column = 1, 0
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            style = style_of(token)
            if style is None or token.start < (row, column):
                continue
            text = between(lines, token.start, token.end)
            pieces += [between(lines, (row, column), token.start), self._each_line(text, style)]
            row, column = token.end
        return "".join([*pieces, between(lines, (row, column), (len(lines) + 1, 0))])

    def _each_line(self, text: str, style: str) -> str:
        return "\n".join(self.paint(line, style) for line in text.split("\n"))


def style_of(token: tokenize.TokenInfo) -> str | None:
    """Return how a token is shown, None for plainly."""
    if token.type == tokenize.NAME and keyword.iskeyword(token.string):
        return "magenta"
    return TOKEN_STYLES.get(tokenize.tok_name[token.type])


def between(lines: Sequence[str], begin: tuple[int, int], end: tuple[int, int]) -> str:
    """Return the source from one (row, column) to another, rows counted from 1."""
    (first, left), (last, right) = begin, end
    if first == last:
        return lines[first - 1][left:right] if first <= len(lines) else ""
    tail = lines[last - 1][:right] if last <= len(lines) else ""
    head = lines[first - 1][left:] if first <= len(lines) else ""
    return head + "".join(lines[first : last - 1]) + tail
