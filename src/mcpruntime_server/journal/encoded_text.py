"""Look into long texts as blobs hold them, without decoding more than is wanted.

Such a text is one JSON string in ASCII, as `encode_json` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, NamedTuple

from .events import decode_json

PIECE_BYTES = 64 * 1024
MAX_ESCAPE_BYTES = 6  # \u and four digits
# As `encode_json` writes neither: a line feed or an escape that only decoding finds.
UNUSUAL_ESCAPE = re.compile(rb"\\u00(?:0[aA]|1B)")
STYLE_RESETS = ("\x1b[0m", "\x1b[m")  # whatever comes before one of them has no effect behind it
ENCODED_RESETS = tuple(each.replace("\x1b", "\\u001b").encode() for each in STYLE_RESETS)


class TextExtent(NamedTuple):
    """How much text there is; `styled` is its end from the last reset of styles on.

    That is "" without sequences that a terminal would act on.
    """

    newline_count: int
    is_empty: bool
    ends_line: bool
    styled: str


def measure_text(text: str) -> TextExtent:
    """Return how much text there is."""
    styled = ""
    if "\x1b" in text:
        styled = text[max(0, *(text.rfind(each) for each in STYLE_RESETS)) :]
    return TextExtent(text.count("\n"), not text, text.endswith("\n"), styled)


def measure_encoded_text(encoded: bytes) -> TextExtent:
    """Return how much text there is; raises `ValueError` if it is no encoded text."""
    if len(encoded) < 2 or encoded[:1] + encoded[-1:] != b'""':
        raise ValueError("This is not a text in JSON.")
    hidden = hide_backslashes(encoded)
    if UNUSUAL_ESCAPE.search(hidden):
        return measure_text(decode_json(encoded.decode("ascii")))
    styled = ""
    if b"\\u001b" in hidden:
        start = max(1, *(hidden.rfind(each) for each in ENCODED_RESETS))
        styled = decode_json('"' + encoded[start:].decode("ascii"))
    ends_line = hidden.endswith(b'\\n"')
    return TextExtent(hidden.count(b"\\n"), len(encoded) == 2, ends_line, styled)


def iter_text_pieces(file: IO[bytes], overlap_bytes: int) -> Iterator[bytes]:
    """Yield an encoded text in pieces, without quotation marks; each repeats the end of the last.

    They are cut between characters. Raises `ValueError` if it is no encoded text.
    """
    if file.read(1) != b'"':
        raise ValueError("This is not a text in JSON.")
    kept = b""
    while chunk := file.read(PIECE_BYTES):
        encoded = kept + chunk
        hidden = hide_backslashes(encoded)
        end = find_cut(hidden, len(hidden))
        if hidden.endswith(b'"') and not hidden.endswith(b'\\"'):
            end -= 1
        yield encoded[:end]
        kept = encoded[find_cut(hidden, max(end - overlap_bytes, 0)) :]


def hide_backslashes(encoded: bytes) -> bytes:
    """Change the escapes of backslashes, so that each backslash begins an escape; same length."""
    return encoded.replace(b"\\\\", b"\\_")


def find_cut(hidden: bytes, end: int) -> int:
    """Return the last place up to `end` where no escape is cut."""
    start = hidden.rfind(b"\\", max(end - MAX_ESCAPE_BYTES + 1, 0), end)
    if start < 0:
        return end
    length = MAX_ESCAPE_BYTES if hidden[start + 1 : start + 2] == b"u" else 2
    return end if start + length <= end else start
