"""Text of strangers on its way to a terminal: every character that does not print is escaped.

Control characters can clear a screen, set its title or move the cursor; others hide text or change
its direction. `escape_text` spells all of them out. Everything that the command line and the
server's log write passes through it, here or in `console`.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import traceback
from types import TracebackType
from typing import Any, TextIO

TAB_SPACES = "    "


def escape_text(text: str) -> str:
    """Return a stranger's text on one line; characters that do not print are spelled out."""
    if text.isprintable():
        return text
    spaced = text.replace("\t", TAB_SPACES)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in spaced)


def escape_lines(text: str) -> list[str]:
    """Return the lines of a stranger's text, escaped."""
    lines = text.replace("\r\n", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    return [escape_text(line) for line in lines]


def print_text(text: str, out: TextIO | None = None) -> None:
    """Print a text whose words may be a stranger's, to stdout by default."""
    out = open_stdout() if out is None else out
    for line in escape_lines(text):
        print(line, file=out)
    out.flush()


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON for programs: ASCII without control characters."""
    text = json.dumps(value, indent=indent, default=str)
    print(text.replace("\x7f", "\\u007f"))  # the only one that `dumps` leaves as it is


def open_stdout() -> TextIO:
    """Return stdout, set up to accept any text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return sys.stdout


def print_traceback(
    kind: type[BaseException], error: BaseException, frames: TracebackType | None
) -> None:
    """Print an exception that nothing has caught; its message may quote a stranger."""
    print_text("".join(traceback.format_exception(kind, error, frames)), sys.stderr)


class EscapingFormatter(logging.Formatter):
    """Formats log records, which may quote strangers."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text without control characters."""
        return "\n".join(escape_lines(super().format(record)))
