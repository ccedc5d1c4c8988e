"""The bytes between the host and a sandbox, with few passes through the event loop.

A general stream yields before each read and each write, which takes a third of a call's time. Here
a read waits for readiness, which yields anyway, and a write that fits is made at once.
"""

from __future__ import annotations

import asyncio
import socket

import anyio
from anyio.abc import AsyncResource, ByteStream, SocketAttribute, UNIXSocketStream
from anyio.lowlevel import checkpoint

from ..errors import SandboxFailed

RECEIVE_BYTES = 128 * 1024  # taken at once; a larger buffer would be mapped again each time
SEND_BYTES = 256 * 1024  # written at once, before others have their turn
STREAM_ENDED_ERRORS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class SandboxStream(AsyncResource):
    """A connected stream. A Unix socket is used directly, anything else (TLS) by its own methods.

    anyio 4.16 lets the event loop complete a waiting write of a unix socket that was cancelled in
    the same turn, which fails; `wait_writable` does not.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._received = b""  # and not taken yet
        self._waiter: asyncio.Future[None] | None = None  # of `receive`
        self._is_watching = False
        self._is_at_end = False
        self._socket: socket.socket | None = None
        if isinstance(stream, UNIXSocketStream):
            self._socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's

    def send_nowait(self, data: bytes) -> int:
        """Write as much of `data` as possible without waiting; return the number of bytes."""
        if self._socket is None:
            return 0
        try:
            return self._socket.send(data)
        except OSError:  # it is full, or it is closed, which the next `send` reports
            return 0

    async def send(self, data: bytes | memoryview) -> None:
        """Write all of `data`, by pieces; raises `SandboxFailed` if the other end is gone."""
        try:
            if self._socket is None:
                await self._stream.send(bytes(data))
                return
            rest = memoryview(data)
            while rest:
                await checkpoint()
                try:
                    rest = rest[self._socket.send(rest[:SEND_BYTES]) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._socket)
        except (*STREAM_ENDED_ERRORS, OSError) as exc:
            raise SandboxFailed("The sandbox is gone.") from exc

    async def receive(self) -> bytes:
        """Return the next bytes, or b"" at the end."""
        try:
            if self._socket is None:
                return await self._stream.receive(RECEIVE_BYTES)
            while not self._received and not self._is_at_end:
                self._watch()
                self._waiter = self._loop.create_future()
                await self._waiter
            data, self._received = self._received, b""
            if data:
                return data
        except (*STREAM_ENDED_ERRORS, OSError):
            pass
        # The other end may keep its half open without reading: a sender would wait for ever.
        await anyio.aclose_forcefully(self)
        return b""

    def _watch(self) -> None:
        """Receive what arrives, in a callback that stays registered between the messages."""
        if not self._is_watching and self._socket is not None:
            self._loop.add_reader(self._socket, self._receive_now)
            self._is_watching = True

    def _unwatch(self) -> None:
        if self._is_watching and self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._is_watching = False

    def _receive_now(self) -> None:
        """Receive what has arrived, unless the bytes before it are still to be taken."""
        assert self._socket is not None
        if self._received:
            self._unwatch()  # the sender waits until they are
            return
        try:
            self._received = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:  # a spurious wake-up
            return
        except OSError:
            self._received = b""
        if not self._received:
            self._end()
        self._wake()

    def _end(self) -> None:
        self._is_at_end = True
        self._unwatch()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def aclose(self) -> None:
        """Close it; a waiting receiver is woken and returns b""."""
        if self._socket is not None and self._socket.fileno() >= 0:
            self._end()
            self._wake()
            anyio.notify_closing(self._socket)
        await self._stream.aclose()
