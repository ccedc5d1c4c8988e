"""Responses to MCP requests for which nothing is sent but the answer.

The SDK runs each request as a task beside two others, because it may have to send notifications
before the answer. A request that asks for none is answered in its own task. An answer that takes
long becomes a stream of events, whose comments keep proxies from closing the connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.types import Message, Scope, Send

PING_INTERVAL_S = 15.0  # as the SDK's
CHECK_INTERVAL_S = 1.0
PING = b": ping\r\n\r\n"
VERSION_HEADER = b"mcp-protocol-version"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
STREAM_START: Message = {"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS}
NOTIFICATION_KEYS = (b"progressToken", b"logLevel")  # with which requests ask for notifications


def asks_for_answer_only(scope: Scope, body: bytes) -> bool:
    """Return whether a request stands for itself and no notification can belong to it."""
    version = next((value for name, value in scope["headers"] if name == VERSION_HEADER), b"")
    if version.decode("latin-1") not in MODERN_PROTOCOL_VERSIONS:
        return False
    return not any(key in body for key in NOTIFICATION_KEYS)


class DeferredStream:
    """A response that becomes a stream of events only if it takes long."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._stream: anyio.Lock | None = None  # held by who sends; None if it is no stream yet
        self._ping: anyio.CancelScope | None = None  # which is being sent
        self._has_answer = False
        self.pinged_at = anyio.current_time()

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        self._has_answer = True
        if self._stream is None:
            await self._send(message)
        elif message["type"] == "http.response.body":  # the status has been sent
            event = b"event: message\r\ndata: " + message["body"] + b"\r\n\r\n"
            async with self._stream:
                await self._send({"type": "http.response.body", "body": event})

    async def ping(self) -> None:
        """Send a comment, unless the answer is there or the client has not read the last one."""
        if self._has_answer or self._ping is not None:
            return
        self.pinged_at = anyio.current_time()
        is_first = self._stream is None
        self._stream = self._stream or anyio.Lock(fast_acquire=True)
        with anyio.CancelScope() as self._ping:
            async with self._stream:
                if is_first:
                    await self._send(STREAM_START)
                await self._send({"type": "http.response.body", "body": PING, "more_body": True})
        self._ping = None

    def end(self) -> None:
        """Send no comment after this."""
        self._has_answer = True
        if self._ping is not None:
            self._ping.cancel()


class DeferredStreams:
    """The responses that have not been answered yet."""

    def __init__(self) -> None:
        self._open: set[DeferredStream] = set()

    @contextmanager
    def defer(self, send: Send) -> Iterator[DeferredStream]:
        """Yield a response, which is pinged until the block ends."""
        response = DeferredStream(send)
        self._open.add(response)
        try:
            yield response
        finally:
            self._open.discard(response)
            response.end()

    async def ping(self) -> None:
        """Ping what takes long; runs until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.sleep(CHECK_INTERVAL_S)
                latest = anyio.current_time() - PING_INTERVAL_S
                for response in self._open:
                    if response.pinged_at <= latest:
                        tasks.start_soon(response.ping)
