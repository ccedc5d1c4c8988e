"""Connections to web servers whose answers are read in parts that are parsed quickly.

A server can send thousands of chunks, or of provisional answers, in one part, and all of them are
parsed before anybody else is served. So a part is small at first, and larger while that is quick;
where even the smallest takes long, a pause follows it.
"""

from __future__ import annotations

import ssl
import time
from typing import Any

import anyio
from httpcore2 import AsyncNetworkStream

FIRST_READ_BYTES = 4 * 1024
MIN_READ_BYTES = 1024
LONG_PARSING_S = 0.002  # of the event loop's processor time, others' included
PAUSE_S = 0.01  # after the smallest part has taken that long


class PacedStream(AsyncNetworkStream):
    """A connection that reads less at once where its parts take long, and lets others work."""

    def __init__(self, stream: AsyncNetworkStream) -> None:
        self._stream = stream
        self._read_bytes = FIRST_READ_BYTES
        self._worked_at = time.thread_time()
        self._was_full = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next part."""
        pause_s = 0.0
        if time.thread_time() - self._worked_at > LONG_PARSING_S:
            pause_s = PAUSE_S if self._read_bytes == MIN_READ_BYTES else 0.0
            self._read_bytes = max(MIN_READ_BYTES, self._read_bytes // 2)
        elif self._was_full:
            self._read_bytes *= 2
        await anyio.sleep(pause_s)
        self._read_bytes = min(self._read_bytes, max_bytes)
        data = await self._stream.read(self._read_bytes, timeout)
        self._was_full = len(data) == self._read_bytes
        self._worked_at = time.thread_time()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send a part of a request."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> AsyncNetworkStream:
        """Return the encrypted connection."""
        return PacedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Return what is known of the connection below."""
        return self._stream.get_extra_info(info)
