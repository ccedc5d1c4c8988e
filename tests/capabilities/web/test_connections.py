"""Connections to web servers: what is read as an answer, and which connections are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from anyio.abc import SocketStream

from mcpruntime_server.capabilities.web.addresses import (
    AddressPolicy,
    find_addresses,
    make_tls_context,
)
from mcpruntime_server.capabilities.web.connections import ConnectionPool, Destination
from mcpruntime_server.capabilities.web.http_messages import BrokenAnswer, Request
from mcpruntime_server.errors import CallFailed

pytestmark = pytest.mark.anyio

TIMEOUT_S = 5.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class ScriptedServer:
    """A server whose connections answer with `answers`, one each time, and then end."""

    answers: list[bytes]
    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)

    async def serve(self, stream: SocketStream) -> None:
        """Answer the requests of one connection; an answer of nothing ends it."""
        self.connections += 1
        async with stream:
            while self.answers:
                try:
                    self.requests.append(await stream.receive())
                except anyio.EndOfStream:
                    return
                answer = self.answers.pop(0)
                if not answer:
                    return
                await stream.send(answer)


@asynccontextmanager
async def serve(*answers: bytes) -> AsyncIterator[ScriptedServer]:
    """Run a server with these answers."""
    server = ScriptedServer(list(answers))
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()


@pytest.fixture
def pool() -> ConnectionPool:
    """A pool without any connection."""
    return ConnectionPool(AddressPolicy(), make_tls_context(""))


async def ask(
    pool: ConnectionPool, server: ScriptedServer, method: str = "GET", principal: str = "me"
) -> tuple[int, bytes]:
    """Send a request and return the status and the body of the answer."""
    destination = Destination(principal, b"", is_secure=False, host="127.0.0.1", port=server.port)
    request = Request(method, "/", [(b"Host", b"here")], b"")
    answer = await pool.send(destination, request, may_repeat=method == "GET", timeout_s=TIMEOUT_S)
    try:
        return answer.head.status, b"".join([part async for part in answer.iter_body()])
    finally:
        answer.close()


@pytest.mark.parametrize(
    ("answer", "method", "read"),
    [
        (OK, "GET", (200, b"ok")),
        (b"HTTP/1.1 103 Hint\r\nLink: x\r\n\r\n" + OK, "GET", (200, b"ok")),
        (b"HTTP/1.1 200\r\nContent-Length: 2 \r\n\r\nok", "GET", (200, b"ok")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HEAD", (200, b"")),
        (b"HTTP/1.1 204 None\r\nContent-Length: 9\r\n\r\n", "GET", (204, b"")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
            b"1;x=y\r\no\r\n01\r\nk\r\n0\r\nTrailer: z\r\n\r\n",
            "GET",
            (200, b"ok"),
        ),
    ],
)
async def test_an_answer_ends_where_it_says_and_its_connection_is_kept(
    pool: ConnectionPool, answer: bytes, method: str, read: tuple[int, bytes]
) -> None:
    async with serve(answer, OK) as server:
        assert await ask(pool, server, method) == read
        assert await ask(pool, server) == (200, b"ok")
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_on_which_more_follows_or_that_ends_is_not_kept(
    pool: ConnectionPool, answer: bytes
) -> None:
    async with serve(answer, OK) as server:
        assert await ask(pool, server) == (200, b"ok")
        assert await ask(pool, server) == (200, b"ok")
        assert server.connections == 2


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2, 3\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length : 2\r\n",
    ],
)
async def test_an_answer_that_could_end_in_two_places_is_refused(
    pool: ConnectionPool, head: bytes
) -> None:
    async with serve(b"HTTP/1.1 200 OK\r\n" + head + b"\r\nok") as server:
        with pytest.raises(BrokenAnswer):
            await ask(pool, server)


async def test_only_a_read_is_sent_again_when_a_kept_connection_has_ended(
    pool: ConnectionPool,
) -> None:
    async with serve(OK, b"", OK) as server:
        await ask(pool, server)
        assert await ask(pool, server) == (200, b"ok")
        assert (server.connections, len(server.requests)) == (2, 3)
    async with serve(OK, b"", OK) as server:
        await ask(pool, server)
        with pytest.raises(BrokenAnswer):
            await ask(pool, server, "POST")
        assert (server.connections, len(server.requests)) == (1, 2)
    async with serve(b"", OK) as server:
        with pytest.raises(BrokenAnswer):
            await ask(pool, server)


async def test_principals_do_not_share_a_connection(pool: ConnectionPool) -> None:
    async with serve(OK, OK, OK) as server:
        for principal in ("ann", "bob", "ann"):
            await ask(pool, server, principal=principal)
        assert server.connections == 2


async def test_the_address_that_was_checked_is_the_one_that_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name server that changes its answer is the usual way around a check."""
    answers = [["93.184.215.14", "127.0.0.1"], ["127.0.0.1"], ["169.254.169.254", "10.0.0.1"]]

    async def resolve(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(2, 1, 6, "", (address, 80)) for address in answers.pop(0)]

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    policy = AddressPolicy()
    assert await find_addresses(policy, "changing.example", 80) == ["93.184.215.14"]
    for _ in range(2):
        with pytest.raises(CallFailed, match="not on the internet"):
            await find_addresses(policy, "changing.example", 80)
