"""How exports write text: UTF-8, in pieces that hold the interpreter's lock only briefly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import IO, TextIO

PIECE_CHARS = 64 * 1024


def split_text(text: str) -> list[str]:
    """Return a text in pieces of at most `PIECE_CHARS` characters; none of an empty text."""
    return [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]


@contextmanager
def open_text(file: IO[bytes]) -> Iterator[TextIO]:
    """Yield what writes text into `file`, which stays open; half characters are escaped."""
    out = TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    try:
        yield out
    finally:
        out.detach()
