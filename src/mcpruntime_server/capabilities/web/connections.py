"""Connections to web servers, kept for the requests that follow.

Rule 1: requests of different principals, or with different credentials, never share a connection. A
server may take who logged in on a connection for the author of all that comes over it.
Rule 2: a connection is kept only if the answer was read to its end and nothing followed.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import anyio

from .addresses import AddressPolicy, find_addresses
from .http_messages import AnswerHead, AnswerParser, BrokenAnswer, Request

MAX_IN_USE = 256  # of one principal with one credential; other requests wait
MAX_IDLE = 64  # of all
MAX_IDLE_S = 5.0
SWEEP_INTERVAL_S = 2.5
MAX_BUFFER_BYTES = 64 * 1024  # that wait for a reader, before the server has to stop

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
        self._answer: AnswerParser | None = None  # to the last request
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
        """Parse what has arrived; data that is not an answer ends the connection."""
        if self._answer is None or self._has_ended:
            self._end(BrokenAnswer("it answered before it was asked"))
            return
        try:
            self._answer.feed(data)
        except BrokenAnswer as exc:
            self._end(exc)
        if len(self._answer.body) > MAX_BUFFER_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._update.set()

    def eof_received(self) -> None:
        """Note that no more will arrive."""
        self._has_ended = True
        self._update.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        if not self._has_ended and exc is not None:
            self._problem = BrokenAnswer("the connection broke")
        self._has_ended = True
        self._update.set()
        self._can_write.set()

    def pause_writing(self) -> None:
        """Let the writer wait."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """Let the writer go on."""
        self._can_write.set()

    def _end(self, problem: Exception) -> None:
        self._problem = self._problem or problem
        self._has_ended = True
        self._transport.abort()

    # requests and answers -------------------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether another request may follow: the answer was read, and the server waits."""
        answer = self._answer
        if self._has_ended or self._transport.is_closing() or answer is None:
            return False
        was_read = answer.is_complete and not answer.body and not answer.has_excess
        return was_read and answer.head is not None and answer.head.keeps_connection

    @property
    def is_silent(self) -> bool:
        """Whether nothing has arrived since the last request."""
        return self._answer is None or not self._answer.has_begun

    def is_older(self, seconds: float) -> bool:
        """Return whether nobody has used the connection for so long."""
        return self.idle_since < time.monotonic() - seconds

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    async def send(self, request: Request, timeout_s: float) -> None:
        """Send a request. A server that stops reading may still answer: that is no failure here."""
        self._answer = AnswerParser(request.method)
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
        assert self._answer is not None
        while self._answer.head is None:
            await self._read_more(timeout_s)
        return self._answer.head

    async def iter_body(self, timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the body as it arrives; raises `BrokenAnswer` or `TimeoutError`."""
        answer = self._answer
        assert answer is not None
        while answer.body or not answer.is_complete:
            if answer.body:
                data = answer.take_body()
                if self._is_paused:
                    self._is_paused = False
                    self._transport.resume_reading()
                yield data
            elif self._has_ended and self._problem is None and answer.ends_with_connection:
                return
            else:
                await self._read_more(timeout_s)

    async def _read_more(self, timeout_s: float) -> None:
        """Wait until more has arrived."""
        if self._has_ended:
            raise self._problem or BrokenAnswer("the connection ended before the answer did")
        self._update.clear()
        async with asyncio.timeout(timeout_s):
            await self._update.wait()


class Answer:
    """An answer whose body is read as it arrives; its reader has to close it."""

    def __init__(
        self,
        head: AnswerHead,
        connection: Connection,
        timeout_s: float,
        take_back: Callable[[Connection], None],
    ) -> None:
        self.head = head
        self._connection = connection
        self._timeout_s = timeout_s
        self._take_back: Callable[[Connection], None] | None = take_back

    def close(self) -> None:
        """Give the connection back."""
        take_back, self._take_back = self._take_back, None
        if take_back is not None:
            take_back(self._connection)

    def iter_body(self) -> AsyncIterator[bytes]:
        """Yield the body; raises `BrokenAnswer` or `TimeoutError`."""
        return self._connection.iter_body(self._timeout_s)


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

        def take_back(used: Connection) -> None:
            room.release()
            self._keep_or_close(destination, used)

        return Answer(head, connection, timeout_s, take_back)

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

    def _keep_or_close(self, destination: Destination, connection: Connection) -> None:
        if connection.is_usable:
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
