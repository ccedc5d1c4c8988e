"""Requests to web servers as HTTP/1.1 writes them, and the parser of their answers.

llhttp, which Node.js has, reads the answers: in linear time, and only if they can be read in one
way. Pure Python parsers search headers with patterns, and one header of spaces holds the event loop
of some of them for seconds. The lengths are limited here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpResponseParser,
)

MAX_HEADERS = 1_000  # and trailers
MAX_HINTS = 32  # provisional answers before the answer
MAX_BODILESS_BYTES = 64 * 1024  # that arrive without a part of the body: a head, a line, trailers
HTTP_VERSIONS = ("1.0", "1.1")

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

    status: int
    reason: bytes
    headers: Headers
    keeps_connection: bool  # the server takes another request on it

    def find_value(self, name: bytes) -> bytes | None:
        """Return the value of a header by its name in lower case."""
        return next((value for each, value in self.headers if each.lower() == name), None)

    @property
    def is_chunked(self) -> bool:
        """Whether the body has chunks."""
        return self.find_value(b"transfer-encoding") is not None

    @property
    def length(self) -> int | None:
        """The length of the body; None if the server does not say."""
        value = self.find_value(b"content-length")
        return None if value is None else int(value)


class AnswerParser:
    """Parses the answer to one request as it arrives."""

    def __init__(self, method: str) -> None:
        self.head: AnswerHead | None = None
        self.is_complete = False
        self.has_begun = False  # something has arrived
        self.has_excess = False  # something followed the answer
        self.body = bytearray()  # what nobody has taken yet
        self._has_body = method != "HEAD"
        self._bodiless_bytes = 0
        self._hints = 0
        self._header_count = 0
        self._reason = b""
        self._headers: Headers = []
        self._parser = HttpResponseParser(self)

    @property
    def ends_with_connection(self) -> bool:
        """Whether the end of the connection is the end of the body."""
        head = self.head
        return head is not None and not head.is_chunked and head.length is None

    def feed(self, data: bytes) -> None:
        """Parse what has arrived; raises `BrokenAnswer`."""
        self.has_begun = True
        if self.is_complete:
            self.has_excess = True
            return
        self._bodiless_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            raise BrokenAnswer("it wants to speak another protocol") from None
        except HttpParserError as exc:
            if not self.is_complete:
                raise find_problem(exc) from None
            self.has_excess = True
        if self._bodiless_bytes > MAX_BODILESS_BYTES and not self.is_complete:
            raise BrokenAnswer(
                f"more than {MAX_BODILESS_BYTES:,} bytes brought nothing of its body"
            )

    def take_body(self) -> bytes:
        """Return what has arrived of the body, and forget it."""
        data = bytes(self.body)
        self.body.clear()
        return data

    # what llhttp calls ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note that another answer follows, if there is one already."""
        if self.is_complete:
            self.has_excess = True

    def on_status(self, reason: bytes) -> None:
        """Keep a part of the reason phrase."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; forget a trailer."""
        self._header_count += 1
        if self._header_count > MAX_HEADERS:
            raise BrokenAnswer(f"it has more than {MAX_HEADERS:,} headers")
        if self.head is None:
            self._headers.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Keep the head, unless it is that of a provisional answer."""
        if self.is_complete:
            return
        status, version = self._parser.get_status_code(), self._parser.get_http_version()
        if status < 100 or version not in HTTP_VERSIONS:
            raise BrokenAnswer(f"it is an answer of HTTP {version} with the status {status}")
        if status < 200:
            return
        keeps_connection = self._parser.should_keep_alive()
        head = AnswerHead(status, self._reason, self._headers, keeps_connection)
        coding = head.find_value(b"transfer-encoding")
        if coding is not None and coding.lower() != b"chunked":
            raise BrokenAnswer(f"its transfer coding {coding[:80]!r} is not known")
        self.head = head
        self.is_complete = not self._has_body

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        if self.is_complete:
            self.has_excess = True
        else:
            self.body += data
            self._bodiless_bytes = 0

    def on_message_complete(self) -> None:
        """Note that the answer has ended, or expect the next one after a provisional one."""
        self.is_complete = self.is_complete or self.head is not None
        if not self.is_complete:
            self._hints += 1
            if self._hints > MAX_HINTS:
                raise BrokenAnswer(f"{MAX_HINTS} provisional answers came before the answer")
            self._reason, self._headers = b"", []


def find_problem(exc: HttpParserError) -> BaseException:
    """Return what llhttp found, or what one of the functions that it called has raised."""
    if isinstance(exc, HttpParserCallbackError) and exc.__context__ is not None:
        return exc.__context__
    return BrokenAnswer(str(exc))
