"""The bytes between the host and a sandbox, with few passes through the event loop.

A general stream yields before each read and each write, which takes a third of a call's time. Here
a read waits for readiness, which yields anyway, and a write that fits is made at once.
"""

from __future__ import annotations

import socket
from contextlib import suppress

import anyio
from anyio.abc import AsyncResource, ByteStream, SocketAttribute, UNIXSocketStream
from anyio.lowlevel import checkpoint

from ..errors import SandboxFailed

RECEIVE_BYTES = 256 * 1024  # bytes taken at once
STREAM_ENDED_ERRORS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class SandboxStream(AsyncResource):
    """A connected stream. A Unix socket is used directly, anything else (TLS) by its own methods.

    anyio 4.16 lets the event loop complete a waiting write of a unix socket that was cancelled in
    the same turn, which fails; `wait_readable` and `wait_writable` do not.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
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

    async def send(self, data: bytes) -> None:
        """Write all of `data`; raises `SandboxFailed` if the other end is gone."""
        try:
            if self._socket is None:
                await self._stream.send(data)
                return
            await checkpoint()
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._socket)
        except (*STREAM_ENDED_ERRORS, OSError) as exc:
            raise SandboxFailed("The sandbox is gone.") from exc

    async def receive(self) -> bytes:
        """Return the next bytes, or b"" at the end."""
        try:
            if self._socket is None:
                return await self._stream.receive(RECEIVE_BYTES)
            while True:
                await anyio.wait_readable(self._socket)
                with suppress(BlockingIOError):  # a spurious wake-up
                    if data := self._socket.recv(RECEIVE_BYTES):
                        return data
                    break
        except (*STREAM_ENDED_ERRORS, OSError):
            pass
        # The other end may keep its half open without reading: a sender would wait for ever.
        await anyio.aclose_forcefully(self)
        return b""

    async def aclose(self) -> None:
        """Close it; a waiting receiver is woken and returns b""."""
        if self._socket is not None and self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
        await self._stream.aclose()
