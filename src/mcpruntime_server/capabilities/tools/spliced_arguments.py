"""Large arguments over HTTP: the SDK sends a name in their place, which the client replaces.

So the SDK neither copies nor encodes them. Nobody can guess the name.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from ...journal.events import find_encoded
from ...protocol.payloads import JsonObject

PREFIX = "mcpruntime/arguments/"
NAME_BYTES = 16  # in hexadecimal digits
WRITE_BYTES = 128 * 1024  # sent at once, before others have their turn


class SplicedArguments:
    """The large arguments of the calls under way on one connection."""

    def __init__(self) -> None:
        self._data: dict[bytes, bytes] = {}  # by what stands for them in a request

    @contextmanager
    def stand_in(self, arguments: Mapping[str, Any]) -> Iterator[JsonObject]:
        """Yield what the SDK sends for arguments: a name for large ones."""
        encoded = find_encoded(arguments)
        if encoded is None:
            yield dict(arguments)
            return
        name = PREFIX + secrets.token_hex(NAME_BYTES)
        mark = f'{{"{name}":0}}'.encode()
        self._data[mark] = encoded.data
        try:
            yield {name: 0}
        finally:
            del self._data[mark]

    def fill_in(self, request: httpx2.Request) -> httpx2.Request:
        """Return a request with the arguments that a name in it stands for."""
        for mark, data in self._data.items():
            head, found, tail = request.content.partition(mark)
            if not found:
                continue
            size = len(head) + len(data) + len(tail)
            headers = {**request.headers, "content-length": str(size)}
            stream = PieceStream((head, data, tail))
            return httpx2.Request(
                request.method,
                request.url,
                headers=headers,
                stream=stream,
                extensions=request.extensions,
            )
        return request


class PieceStream(httpx2.AsyncByteStream):
    """A body that is sent in pieces."""

    def __init__(self, parts: tuple[bytes, ...]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            for start in range(0, len(part), WRITE_BYTES):
                yield part[start : start + WRITE_BYTES]
