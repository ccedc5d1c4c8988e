"""Connections to web servers, kept for the requests that follow.

Rule 1: requests of different principals, or with different credentials, never share a connection. A
server may take who logged in on a connection for the author of all that comes over it.
Rule 2: a connection is kept only if the answer was read to its end and nothing followed.
Rule 3: a server can send thousands of chunks at once. They are read in steps, and the event loop
serves others in between.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

import anyio

from .addresses import AddressPolicy, find_addresses
from .http_messages import (
    BODILESS_STATUSES,
    AnswerHead,
    BrokenAnswer,
    Request,
    parse_chunk_size,
    parse_head,
)

MAX_IN_USE = 256  # of one principal with one credential; other requests wait
MAX_IDLE = 64  # of all
MAX_IDLE_S = 5.0
SWEEP_INTERVAL_S = 2.5
MAX_BUFFER_BYTES = 64 * 1024  # that wait for a reader, before the server has to stop
MAX_HEAD_BYTES = 64 * 1024
MAX_LINE_BYTES = 8 * 1024  # of the size of a chunk, or of a trailer
MAX_TRAILERS = 100
MAX_HINTS = 32  # provisional answers before the answer
STEP_CHUNKS = 500  # that are read before others are served
SMALL_CHUNK_BYTES = 64  # on average in a step; after smaller ones, the server has to wait
PAUSE_S = 0.01

HEAD_END = re.compile(rb"\n\r?\n")
TLS_PROBLEM = re.compile(r"certificate verify failed: ([^(]{1,120})")


class ConnectionFailed(Exception):
    """No connection to a server was made."""


@dataclass(frozen=True)
class Destination:
    """A server, and for whom it is asked; `credential` is the digest of one, or nothing."""

    principal: str
    credential: bytes
    is_secure: bool
    host: str
    port: int


class Connection(asyncio.Protocol):
    """A connection, which serves one request at a time."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.is_silent = True  # nothing has arrived since the last request
        self._buffer = bytearray()
        self._is_paused = False  # reading
        self._has_ended = False
        self._problem: Exception | None = None  # with which it has ended
        self._update = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()

    # what the event loop calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep what has arrived."""
        self._buffer += data
        self.is_silent = False
        if len(self._buffer) > MAX_BUFFER_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._update.set()

    def eof_received(self) -> None:
        """Note that no more will arrive."""
        self._has_ended = True
        self._update.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        self._has_ended, self._problem = True, exc
        self._update.set()
        self._can_write.set()

    def pause_writing(self) -> None:
        """Let the writer wait."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """Let the writer go on."""
        self._can_write.set()

    # requests and answers -------------------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection can be used: the server has not ended or sent anything."""
        return not self._buffer and not self._has_ended and not self._transport.is_closing()

    def is_older(self, seconds: float) -> bool:
        """Return whether nobody has used the connection for so long."""
        return self.idle_since < time.monotonic() - seconds

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    async def send(self, request: Request, timeout_s: float) -> None:
        """Send a request. A server that stops reading may still answer: that is no failure here."""
        self.is_silent = True
        if isinstance(request.body, bytes):
            await self._write(request.encode_head() + request.body, timeout_s)
            return
        await self._write(request.encode_head(), timeout_s)
        async for part in request.body:
            if part:
                await self._write(b"%x\r\n%s\r\n" % (len(part), part), timeout_s)
        await self._write(b"0\r\n\r\n", timeout_s)

    async def _write(self, data: bytes, timeout_s: float) -> None:
        if self._has_ended:
            return
        self._transport.write(data)
        if not self._can_write.is_set():
            async with asyncio.timeout(timeout_s):
                await self._can_write.wait()

    async def read_head(self, timeout_s: float) -> AnswerHead:
        """Return the head of the answer; raises `BrokenAnswer` or `TimeoutError`."""
        for _ in range(MAX_HINTS):
            searched = 0
            while (end := HEAD_END.search(self._buffer, searched)) is None:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    raise BrokenAnswer(f"its headers have more than {MAX_HEAD_BYTES:,} bytes")
                searched = max(0, len(self._buffer) - 2)
                await self._read_more(timeout_s)
            head = parse_head(self._cut(end.start(), end.end()).removesuffix(b"\r"))
            if head.status == 101:
                raise BrokenAnswer("it wants to speak another protocol")
            if head.status >= 200:
                return head
        raise BrokenAnswer(f"{MAX_HINTS} provisional answers came before the answer")

    async def iter_sized(self, size: int, timeout_s: float) -> AsyncIterator[bytes]:
        """Yield so many bytes as they arrive; raises `BrokenAnswer` or `TimeoutError`."""
        while size:
            if not self._buffer:
                await self._read_more(timeout_s)
            data = self._cut(min(size, len(self._buffer)))
            size -= len(data)
            yield data

    async def iter_chunks(self, timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the content of chunks as it arrives; raises `BrokenAnswer` or `TimeoutError`."""
        count = step_bytes = 0
        while size := parse_chunk_size(await self._read_line(timeout_s)):
            async for data in self.iter_sized(size, timeout_s):
                yield data
            if await self._read_line(timeout_s):
                raise BrokenAnswer("a chunk is longer than it says")
            count, step_bytes = count + 1, step_bytes + size
            if count == STEP_CHUNKS:
                are_small = step_bytes < STEP_CHUNKS * SMALL_CHUNK_BYTES
                await anyio.sleep(PAUSE_S if are_small else 0)
                count = step_bytes = 0
        for _ in range(MAX_TRAILERS):
            if not await self._read_line(timeout_s):
                return
        raise BrokenAnswer(f"it has more than {MAX_TRAILERS} trailers")

    async def iter_all(self, timeout_s: float) -> AsyncIterator[bytes]:
        """Yield what arrives until the server ends the connection; raises `TimeoutError`."""
        while True:
            if not self._buffer:
                if self._problem is not None:
                    raise BrokenAnswer("the connection broke")
                if self._has_ended:
                    return
                with suppress(BrokenAnswer):
                    await self._read_more(timeout_s)
            if self._buffer:
                yield self._cut(len(self._buffer))

    async def _read_line(self, timeout_s: float) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise BrokenAnswer(f"a line of it has more than {MAX_LINE_BYTES:,} bytes")
            await self._read_more(timeout_s)
        return self._cut(end, end + 1).removesuffix(b"\r")

    def _cut(self, size: int, removed: int = 0) -> bytes:
        """Return the first bytes that have arrived, and remove them, or more."""
        with memoryview(self._buffer) as view:
            data = bytes(view[:size])
        del self._buffer[: removed or size]
        return data

    async def _read_more(self, timeout_s: float) -> None:
        """Wait until more has arrived."""
        if self._has_ended:
            raise BrokenAnswer("the connection ended before the answer did")
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        self._update.clear()
        async with asyncio.timeout(timeout_s):
            await self._update.wait()
        if self._has_ended and not self._buffer:
            raise BrokenAnswer("the connection ended before the answer did")


class Answer:
    """An answer whose body is read as it arrives; its reader has to close it."""

    def __init__(
        self, head: AnswerHead, connection: Connection, *, has_body: bool, timeout_s: float
    ) -> None:
        self.head = head
        self._connection = connection
        self._is_complete = not has_body
        self._timeout_s = timeout_s
        self._on_close: Callable[[], None] | None = None

    @property
    def leaves_connection(self) -> bool:
        """Whether another request may follow on the connection."""
        return self._is_complete and self.head.keeps_connection and self._connection.is_usable

    def call_when_closed(self, on_close: Callable[[], None]) -> None:
        """Let the pool take the connection back."""
        self._on_close = on_close

    def close(self) -> None:
        """Give the connection back."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    async def iter_body(self) -> AsyncIterator[bytes]:
        """Yield the body; raises `BrokenAnswer` or `TimeoutError`."""
        if self._is_complete:
            return
        if self.head.is_chunked:
            parts = self._connection.iter_chunks(self._timeout_s)
        elif (size := self.head.length) is not None:
            parts = self._connection.iter_sized(size, self._timeout_s)
        else:
            parts = self._connection.iter_all(self._timeout_s)
        async for data in parts:
            yield data
        self._is_complete = True


class ConnectionPool:
    """All connections to web servers."""

    def __init__(self, policy: AddressPolicy, context: ssl.SSLContext) -> None:
        self._policy = policy
        self._context = context
        self._idle: list[tuple[Destination, Connection]] = []  # the last used one last
        self._rooms = WeakValueDictionary[tuple[str, bytes], asyncio.Semaphore]()

    async def send(
        self, destination: Destination, request: Request, *, may_repeat: bool, timeout_s: float
    ) -> Answer:
        """Send a request and return the answer, which is to be closed.

        One that `may_repeat` is sent again if the connection that was kept for it has ended.
        Raises `ConnectionFailed`, `BrokenAnswer`, `TimeoutError`, or `CallFailed`.
        """
        room = self._rooms.setdefault(
            (destination.principal, destination.credential), asyncio.Semaphore(MAX_IN_USE)
        )
        await room.acquire()
        try:
            return await self._exchange(destination, request, room, may_repeat, timeout_s)
        except BaseException:
            room.release()
            raise

    async def _exchange(
        self,
        destination: Destination,
        request: Request,
        room: asyncio.Semaphore,
        may_repeat: bool,
        timeout_s: float,
    ) -> Answer:
        kept = self._take_idle(destination)
        connection = kept or await self._connect(destination, timeout_s)
        try:
            await connection.send(request, timeout_s)
            head = await connection.read_head(timeout_s)
        except BaseException as exc:
            connection.close()
            if not (may_repeat and kept and kept.is_silent and isinstance(exc, BrokenAnswer)):
                raise
            self._close_idle_to(destination)
            return await self._exchange(destination, request, room, False, timeout_s)
        has_body = request.method != "HEAD" and head.status not in BODILESS_STATUSES
        answer = Answer(head, connection, has_body=has_body, timeout_s=timeout_s)

        def take_back() -> None:
            room.release()
            self._keep_or_close(destination, connection, keeps=answer.leaves_connection)

        answer.call_when_closed(take_back)
        return answer

    async def _connect(self, destination: Destination, timeout_s: float) -> Connection:
        """Connect to the first address that answers."""
        host, port = destination.host, destination.port
        problem: OSError | None = None
        for address in await find_addresses(self._policy, host, port):
            try:
                async with asyncio.timeout(timeout_s):
                    _, connection = await asyncio.get_running_loop().create_connection(
                        Connection,
                        address,
                        port,
                        ssl=self._context if destination.is_secure else None,
                        server_hostname=host if destination.is_secure else None,
                    )
                return connection
            except OSError as exc:  # TimeoutError is one
                problem = exc
        if isinstance(problem, TimeoutError):
            raise problem
        assert problem is not None
        raise ConnectionFailed(describe_failure(problem)) from None

    # connections that are kept --------------------------------------------------------------------

    def _take_idle(self, destination: Destination) -> Connection | None:
        for at in reversed(range(len(self._idle))):
            if self._idle[at][0] == destination:
                connection = self._idle.pop(at)[1]
                if connection.is_usable and not connection.is_older(MAX_IDLE_S):
                    return connection
                connection.close()
        return None

    def _keep_or_close(
        self, destination: Destination, connection: Connection, *, keeps: bool
    ) -> None:
        if keeps:
            connection.idle_since = time.monotonic()
            self._idle.append((destination, connection))
            for _, oldest in self._idle[:-MAX_IDLE]:
                oldest.close()
            del self._idle[:-MAX_IDLE]
        else:
            connection.close()

    def _close_idle_to(self, destination: Destination) -> None:
        """Close what is kept to a server that has just ended another one."""
        for each, connection in self._idle:
            if each == destination:
                connection.close()
        self._idle = [each for each in self._idle if each[0] != destination]

    async def close_idle(self) -> None:
        """Close connections that nobody uses, for as long as the server runs."""
        try:
            while True:
                await anyio.sleep(SWEEP_INTERVAL_S)
                while self._idle and self._idle[0][1].is_older(MAX_IDLE_S):
                    self._idle.pop(0)[1].close()
        finally:
            for _, connection in self._idle:
                connection.close()


def describe_failure(problem: OSError) -> str:
    """Return why there is no connection."""
    if found := TLS_PROBLEM.search(str(problem)):
        return f"its certificate is not trusted: {found[1].strip()}"
    if isinstance(problem, ssl.SSLError) or problem.errno is None:
        return str(problem)[:200]
    return os.strerror(problem.errno)
