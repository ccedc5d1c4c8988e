"""Connections of HTTP clients: many may be open, and none of them keeps others out.

llhttp reads the requests, in linear time. Parsers in pure Python search headers with patterns: one
header of blanks holds the event loop of h11 for seconds.

uvicorn lets a client take any time to send a request and to read a response, and counts connections
that do nothing. Here a request has to arrive in `RECEIVE_TIMEOUT_S`, and a response is read within
`UNREAD_TIMEOUT_S` of its last part. A new connection takes the place of the one that has been
waiting for its client longest. A request can close its connection (`abort_connection`), and be
cancelled when its client closes it (`cancel_when_closed`).
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from starlette.types import Receive, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .request_checks import MAX_HEADER_BYTES

MAX_CONNECTIONS = 1_000
SPARE_CONNECTIONS = 100  # when all others are busy with requests; the next ones get 503
MAX_UNACCEPTED = 2_048  # connections that wait in the kernel
MAX_ACCEPTED_PER_TURN = 4  # of the event loop; to accept one takes a quarter of a millisecond
RECEIVE_TIMEOUT_S = 60.0  # for all of a request, the body included
UNREAD_TIMEOUT_S = 300.0  # in which a slow client reads what the kernel has buffered: megabytes
LINGER_S = 2.0  # for a client to read why its request was refused
KEEP_ALIVE_S = 60  # of a connection between two requests
MAX_FILES = 65_536  # that the process opens, connections included
MAX_UNSENT_BYTES = 32 * 1024  # that wait for a client to read, before more of a response does
MAX_JOINED_BYTES = 64 * 1024  # that wait for the rest of what is written in the same turn
ABORT_KEY = "abort_connection"  # in the state of a request
TOO_LONG_TEXT = "The headers of the request, or the lines between parts of its body, are too long."
CANCEL_KEY = "cancel_when_closed"  # in the state of a request


class JoinedWrites(asyncio.Transport):
    """Sends what is written in one turn of the event loop in one piece."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` at the end of this turn, or with `flush`."""
        if not data:
            return
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(bytes(data))
        self._waiting_bytes += len(data)
        if self._waiting_bytes > MAX_JOINED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if self._waiting:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._transport.write(b"".join(waiting))

    def close(self) -> None:
        """Send what waits, then close the connection."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._waiting.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is closed, or soon will be."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the socket."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Receive nothing until `resume_reading`."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()


class HttpConnection(HttpToolsProtocol):
    """One connection; its client must send requests in time."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._cancel_when_closed: set[anyio.CancelScope] = set()
        self.app_state = {
            **self.app_state,
            ABORT_KEY: self.abort,
            CANCEL_KEY: self._cancel_when_closed,
        }
        self.waits_since = self.loop.time()  # for its client
        self._bodiless_bytes = 0  # that arrived since the last headers, or part of a body
        self._deadline: asyncio.TimerHandle | None = None
        self._unread_deadline: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the client has to send something, not the server."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        transport.set_write_buffer_limits(MAX_UNSENT_BYTES)
        self._writes = JoinedWrites(transport, self.loop)
        super().connection_made(self._writes)
        self._start_deadline()
        if len(self.connections) > MAX_CONNECTIONS:
            close_longest_waiting(self.connections)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the requests that nobody waits for, and forget the connection."""
        for cancel_scope in self._cancel_when_closed:
            cancel_scope.cancel()
        self._stop_deadline()
        self._stop_unread_deadline()
        self.app_state = {}  # it refers to the connection
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what the client has sent, and refuse headers that are too long."""
        self._bodiless_bytes += len(data)
        super().data_received(data)
        if self._bodiless_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(TOO_LONG_TEXT)
        if not self.is_waiting:
            self._stop_deadline()
        elif self._deadline is None and not self.transport.is_closing():
            self._start_deadline()

    def on_headers_complete(self) -> None:
        """Start to answer a request."""
        self._bodiless_bytes = 0
        # llhttp keeps the blanks after the value of a header.
        self.headers[:] = [(name, value.rstrip(b" \t")) for name, value in self.headers]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._bodiless_bytes = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        """Wait for the client to read; it has `UNREAD_TIMEOUT_S`."""
        super().pause_writing()
        self._unread_deadline = self.loop.call_later(UNREAD_TIMEOUT_S, self.abort)

    def resume_writing(self) -> None:
        """Write again what the client reads."""
        self._stop_unread_deadline()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Wait for the next request; a client that still sends a refused one has `LINGER_S`."""
        self._writes.flush()
        self.waits_since = self.loop.time()
        super().on_response_complete()
        if self.cycle.more_body:
            self._stop_deadline()
            self._start_deadline(LINGER_S)

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def _stop_unread_deadline(self) -> None:
        if self._unread_deadline is not None:
            self._unread_deadline.cancel()
            self._unread_deadline = None

    def _start_deadline(self, timeout_s: float = RECEIVE_TIMEOUT_S) -> None:
        self._deadline = self.loop.call_later(timeout_s, self.abort)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


async def abort_connection(scope: Scope, receive: Receive) -> None:
    """Close the connection of a request, whose response then has no end."""
    scope["state"][ABORT_KEY]()
    while (await receive())["type"] != "http.disconnect":
        pass  # else uvicorn would log that the response has no end


@contextmanager
def cancel_when_closed(scope: Scope, cancel_scope: anyio.CancelScope) -> Iterator[None]:
    """Cancel `cancel_scope` if the client of a request closes its connection meanwhile."""
    to_cancel: set[anyio.CancelScope] = scope["state"][CANCEL_KEY]
    to_cancel.add(cancel_scope)
    try:
        yield
    finally:
        to_cancel.discard(cancel_scope)


def close_longest_waiting(connections: Iterable[Any]) -> None:
    """Close the connection that has been waiting for its client longest, if any does."""
    waiting = [
        each
        for each in connections
        if isinstance(each, HttpConnection) and each.is_waiting and not each.transport.is_closing()
    ]
    if waiting:
        min(waiting, key=lambda each: each.waits_since).abort()


def allow_many_files() -> None:
    """Raise the process's own limit on open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
