"""Requests to web servers and the heads of their answers, as HTTP/1.1 writes them.

Rule: an answer whose end could be read in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

MAX_HEADERS = 1_000

STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\0\r\n]*))?")
HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\0\r\n]*)")
LENGTH = re.compile(rb"[0-9]{1,15}")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\0\r\n]*)?")
BODILESS_STATUSES = (204, 304)

Headers = list[tuple[bytes, bytes]]


class BrokenAnswer(Exception):
    """A server ended the connection too early, or what it sent is no HTTP answer."""


@dataclass(frozen=True)
class Request:
    """A request; a body of parts is sent in chunks."""

    method: str
    target: str
    headers: Headers
    body: bytes | AsyncIterator[bytes]

    def encode_head(self) -> bytes:
        """Return the request line and the headers."""
        lines = [f"{self.method} {self.target} HTTP/1.1".encode("ascii")]
        lines += [name + b": " + value for name, value in self.headers]
        return b"\r\n".join([*lines, b"", b""])


@dataclass(frozen=True)
class AnswerHead:
    """The status line and the headers of an answer."""

    version: int  # 0 for HTTP/1.0, 1 for HTTP/1.1
    status: int
    reason: bytes
    headers: Headers

    def find_values(self, name: bytes) -> list[bytes]:
        """Return the parts of all headers with a name, both in lower case."""
        values = [value for each, value in self.headers if each.lower() == name]
        return [part.strip().lower() for value in values for part in value.split(b",")]

    @property
    def keeps_connection(self) -> bool:
        """Whether the server takes another request on the connection."""
        return self.version == 1 and b"close" not in self.find_values(b"connection")

    @property
    def is_chunked(self) -> bool:
        """Whether the body has chunks; raises `BrokenAnswer` if it has a coding that is unknown."""
        codings = self.find_values(b"transfer-encoding")
        if codings not in ([], [b"chunked"]):
            raise BrokenAnswer(f"its transfer coding {codings[0][:80]!r} is not known")
        return bool(codings)

    @property
    def length(self) -> int | None:
        """The length of the body; None if the server does not say. Raises `BrokenAnswer`."""
        values = set(self.find_values(b"content-length"))
        if not values:
            return None
        value = values.pop()
        if values or not LENGTH.fullmatch(value):
            raise BrokenAnswer("it does not say in one way how long it is")
        return int(value)


def parse_head(data: bytes) -> AnswerHead:
    """Return the head of an answer; raises `BrokenAnswer` if it is not one."""
    first, *lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    found = STATUS_LINE.fullmatch(first)
    if found is None:
        raise BrokenAnswer("its first line is not that of an HTTP/1.1 answer")
    if len(lines) > MAX_HEADERS:
        raise BrokenAnswer(f"it has more than {MAX_HEADERS:,} headers")
    headers: Headers = []
    for line in lines:
        if line.startswith((b" ", b"\t")) and headers:  # an old form: the value goes on
            name, value = headers[-1]
            headers[-1] = name, value + b" " + line.strip(b" \t")
            continue
        header = HEADER_LINE.fullmatch(line)
        if header is None:
            raise BrokenAnswer(f"this is not a header: {line[:80]!r}")
        headers.append((header[1], header[2].strip(b" \t")))
    return AnswerHead(int(found[1]), int(found[2]), found[3] or b"", headers)


def parse_chunk_size(line: bytes) -> int:
    """Return the size of a chunk; raises `BrokenAnswer`."""
    found = CHUNK_SIZE.fullmatch(line)
    if found is None:
        raise BrokenAnswer("the size of a chunk is not a number")
    return int(found[1], 16)
