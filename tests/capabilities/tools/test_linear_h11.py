"""What h11 reads is the same with other patterns, and takes linear time."""

from __future__ import annotations

import re

import h11
import pytest
from h11 import _abnf
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.tools.linear_h11 import (
    CHUNK_SIZE,
    HEADER_LINE,
    make_h11_linear,
)

HEADER_LINE_OF_H11 = re.compile(_abnf.header_field.encode())
CHUNK_SIZE_OF_H11 = re.compile(_abnf.chunk_header.encode())
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BLANKS = b" " * 2_000_000  # for which the patterns of h11 would need hours


def match(pattern: re.Pattern[bytes], line: bytes) -> dict[str, bytes] | None:
    found = pattern.fullmatch(line)
    return found and found.groupdict()


def read_events(connection: h11.Connection) -> None:
    """Read all that has arrived."""
    while connection.next_event() is not h11.NEED_DATA:
        pass


@given(st.text(alphabet="aZ9-: \t\0\r\n\x0b\x1f\x7f\xe9", max_size=30))
def test_the_same_header_lines_match(text: str) -> None:
    for line in (text.encode("latin-1"), b"X:" + text.encode("latin-1")):
        assert match(HEADER_LINE, line) == match(HEADER_LINE_OF_H11, line)


@given(st.text(alphabet="aF90; \t\n=\xe9", max_size=30))
def test_the_same_chunk_sizes_match(text: str) -> None:
    line = text.encode("latin-1") + b"\r\n"
    found, expected = match(CHUNK_SIZE, line), match(CHUNK_SIZE_OF_H11, line)
    assert (found and found["chunk_size"]) == (expected and expected["chunk_size"])


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"X:" + BLANKS + b"\0\r\n\r\n",
        HEAD + b"X: a" + BLANKS + b"\0\r\n\r\n",
        CHUNKED + b"5;" + BLANKS + b"\nx\r\n",
        CHUNKED + b"5" + BLANKS + b"\nx\r\n",
        CHUNKED + b"0\r\nX:" + BLANKS + b"\0\r\n\r\n",
    ],
)
def test_blanks_are_read_in_linear_time(answer: bytes) -> None:
    make_h11_linear()
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(answer)
    with pytest.raises(h11.RemoteProtocolError, match="illegal"):
        read_events(connection)
