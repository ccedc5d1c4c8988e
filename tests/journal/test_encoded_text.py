"""Long texts are measured and cut as they lie in blobs."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpruntime_server.journal import encoded_text
from mcpruntime_server.journal.encoded_text import (
    iter_text_pieces,
    measure_encoded_text,
    measure_text,
)
from mcpruntime_server.journal.events import encode_json

PARTS = (
    "\\",
    "n",
    "\n",
    '"',
    "\x1b[0m",
    "\x1b[31m",
    "u001b[0m",
    "\\n",
    "\u00e9",
    "\U0001f600",
    "a",
)
TEXTS = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)


@given(TEXTS)
@example("")
@example("\\\n")
@example("\\u001b[0m\x1b[1m")
def test_an_encoded_text_is_measured_like_the_text(text: str) -> None:
    assert measure_encoded_text(encode_json(text).encode()) == measure_text(text)


def test_escapes_of_other_writers_are_understood() -> None:
    encoded = b'"one\\u000Atwo\\u001B[1m\\u000a"'
    assert measure_encoded_text(encoded) == measure_text("one\ntwo\x1b[1m\n")


@pytest.mark.parametrize("encoded", [b"", b'"', b"[1]", b'{"a": 1}'])
def test_what_is_no_text_is_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="not a text"):
        measure_encoded_text(encoded)


@given(TEXTS, st.integers(7, 30), st.integers(0, 12))
@example('\\n\\"\x1b[0m', 7, 10)
def test_pieces_are_cut_between_escapes_and_overlap(text: str, size: int, overlap: int) -> None:
    encoded = json.dumps(text).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_text, "PIECE_BYTES", size)
        pieces = list(iter_text_pieces(io.BytesIO(encoded), overlap))
    end = 1
    for piece in pieces:
        json.loads(b'"' + piece + b'"')
        shared = range(overlap, overlap + encoded_text.MAX_ESCAPE_BYTES)
        starts = [end - each for each in shared] if end - 1 > overlap else [1]
        found = [each for each in starts if encoded[each : each + len(piece)] == piece]
        assert found
        end = found[0] + len(piece)
    assert end == len(encoded) - 1
