"""What hostile clients over HTTP do. It runs in a process of its own, so that it slows nobody here.

`python -m tests.attacks.http_attacks NAME URL TOKEN SIZE SECONDS`; it fails if an answer is wrong.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
from anyio.abc import SocketAttribute, SocketStream
from mcp.types import LATEST_PROTOCOL_VERSION

from mcpruntime_server.service.mcp_connections import encode_connection_id

PRINCIPAL = "mallory"
BODY_BYTES = 4_000_000  # a little less than what is refused unread
BODY_COUNT = 8
INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "mallory", "version": "1"},
}
REQUEST = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
META_PREFIX = "io.modelcontextprotocol"
ACCEPT = "application/json, text/event-stream"


class Attacker:
    """Somebody with a token, who sends what no client would; `size` is how much of it."""

    def __init__(self, url: str, token: str, size: int, seconds: float) -> None:
        self.url = url
        self.token = token
        self.size = size
        self.seconds = seconds
        self._address = urlsplit(url)

    async def connect(self) -> SocketStream:
        return await anyio.connect_tcp(self._address.hostname or "", self._address.port or 0)

    def head(self, method: str, *lines: str) -> bytes:
        """Return the head of a request with a token; its body does not follow."""
        usual = (
            f"{method} /mcp HTTP/1.1",
            f"Host: {self._address.netloc}",
            f"Authorization: Bearer {self.token}",
            f"Accept: {ACCEPT}",
            "Content-Type: application/json",
        )
        return "\r\n".join([*usual, *lines, "", ""]).encode()

    async def post(self, http: httpx2.AsyncClient, body: bytes | Any, **headers: str) -> int:
        """Return the status of the answer to a body; 0 if there is none."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        usual = {"Accept": ACCEPT, "Content-Type": "application/json"}
        with suppress(httpx2.TransportError):
            response = await http.post(self.url, content=content, headers={**usual, **headers})
            return response.status_code
        return 0

    def http(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx2.AsyncClient(headers=headers, timeout=60, verify=False)

    async def initialize(self, http: httpx2.AsyncClient) -> str | None:
        """Open a connection and return its id."""
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE}
        opened = await http.post(self.url, json=body, headers={"Accept": ACCEPT})
        return opened.headers.get("Mcp-Session-Id")


# connections --------------------------------------------------------------------------------------


async def send_heads_slowly(attacker: Attacker) -> None:
    await drip(attacker, attacker.head("POST", "Content-Length: 100")[:60], attacker.size)


async def send_bodies_slowly(attacker: Attacker) -> None:
    await drip(
        attacker, attacker.head("POST", f"Content-Length: {BODY_BYTES}") + b"{", attacker.size // 2
    )


async def send_chunks_slowly(attacker: Attacker) -> None:
    await drip(
        attacker,
        attacker.head("POST", "Transfer-Encoding: chunked"),
        attacker.size // 2,
        b"1\r\n \r\n",
    )


async def drip(attacker: Attacker, first: bytes, count: int, part: bytes = b" ") -> None:
    """Open connections, and send a little on each of them now and then."""
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(count):
            stream = await stack.enter_async_context(aclosing(await attacker.connect()))
            await stream.send(first)
            streams.append(stream)
        with anyio.move_on_after(attacker.seconds):
            while True:
                for stream in streams:
                    with suppress(anyio.BrokenResourceError):
                        await stream.send(part)
                await anyio.sleep(0.2)


async def reset_connections(attacker: Attacker) -> None:
    with anyio.move_on_after(attacker.seconds):
        while True:
            stream = await attacker.connect()
            await stream.send(attacker.head("POST", "Content-Length: 9") + b"{")
            raw = stream.extra(SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()


async def open_streams(attacker: Attacker) -> None:
    """Listen on as many connections as there may be, and never read."""
    async with attacker.http() as http, AsyncExitStack() as stack:
        for _ in range(attacker.size // 2):
            connection = await attacker.initialize(http)
            if connection is None:
                break
            stream = await stack.enter_async_context(aclosing(await attacker.connect()))
            await stream.send(attacker.head("GET", f"Mcp-Session-Id: {connection}"))
        await anyio.sleep(attacker.seconds)


async def listen_often(attacker: Attacker) -> None:
    """The same in the newest revision."""
    prefix = "io.modelcontextprotocol"
    meta = {
        f"{prefix}/protocolVersion": LATEST_PROTOCOL_VERSION,
        f"{prefix}/clientCapabilities": {},
    }
    params = {"notifications": {"toolsListChanged": True}, "_meta": meta}
    body = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
    ).encode()
    head = attacker.head(
        "POST",
        f"MCP-Protocol-Version: {LATEST_PROTOCOL_VERSION}",
        "Mcp-Method: subscriptions/listen",
        f"Content-Length: {len(body)}",
    )
    async with AsyncExitStack() as stack:
        for _ in range(attacker.size):
            stream = await stack.enter_async_context(aclosing(await attacker.connect()))
            await stream.send(head + body)
        await anyio.sleep(attacker.seconds)


async def stop_reading(attacker: Attacker) -> None:
    """Ask for long answers, and read none of them."""
    text = "x" * 15_000
    code = f"print({text!r})\nimport time; time.sleep(0.2)"
    body = json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "run_code", "arguments": {"code": code, "session": "mallory"}},
        }
    ).encode()
    async with attacker.http() as http, AsyncExitStack() as stack:
        connection = await attacker.initialize(http)
        for _ in range(attacker.size // 6):
            stream = await stack.enter_async_context(aclosing(await attacker.connect()))
            lines = f"Mcp-Session-Id: {connection}", f"Content-Length: {len(body)}"
            await stream.send(attacker.head("POST", *lines) + body)
        await anyio.sleep(attacker.seconds)


# answers that come late ---------------------------------------------------------------------------


def call_code(attacker: Attacker, code: str, session: str, **meta: Any) -> bytes:
    """Return a request of the newest revision that runs code; only its answer is sent."""
    fields = {
        f"{META_PREFIX}/protocolVersion": LATEST_PROTOCOL_VERSION,
        f"{META_PREFIX}/clientCapabilities": {},
        **meta,
    }
    arguments = {"code": code, "session": session, "timeout_s": 60}
    params = {"name": "run_code", "arguments": arguments, "_meta": fields}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    lines = (
        f"MCP-Protocol-Version: {LATEST_PROTOCOL_VERSION}",
        "Mcp-Method: tools/call",
        "Mcp-Name: run_code",
        f"Content-Length: {len(body)}",
    )
    return attacker.head("POST", *lines) + body.encode()


async def send_calls(attacker: Attacker, calls: Iterable[bytes], held_s: float) -> None:
    """Send each request on a connection of its own, and read no answer."""
    async with AsyncExitStack() as stack:
        for call in calls:
            stream = await stack.enter_async_context(aclosing(await attacker.connect()))
            await stream.send(call)
        await anyio.sleep(held_s)


async def wait_for_late_answers(attacker: Attacker) -> None:
    """Wait until the answers have become streams, whose comments nobody reads."""
    code = f"import time\ntime.sleep({attacker.seconds * 4})"
    calls = (call_code(attacker, code, f"late{n % 12}") for n in range(attacker.size // 3))
    await send_calls(attacker, calls, attacker.seconds * 4)


async def ask_for_large_answers(attacker: Attacker) -> None:
    code = "print('\\u2028' * 20_000)"
    calls = (call_code(attacker, code, f"large{n % 6}") for n in range(attacker.size // 3))
    await send_calls(attacker, calls, attacker.seconds)


async def leave_before_the_answer(attacker: Attacker) -> None:
    """Close each connection as soon as its request is sent."""
    with anyio.move_on_after(attacker.seconds):
        for number in range(attacker.size):
            stream = await attacker.connect()
            code = "import time\ntime.sleep(60)"
            await stream.send(call_code(attacker, code, f"left{number % 12}"))
            await stream.aclose()


async def pipeline_requests(attacker: Attacker) -> None:
    """Send many requests on one connection without waiting for answers."""
    calls = b"".join(call_code(attacker, str(n), "piped") for n in range(attacker.size // 2))
    await send_calls(attacker, [calls] * 3, attacker.seconds)


async def ask_for_progress_of_nothing(attacker: Attacker) -> None:
    """Ask for notifications with tokens that are none, or that are very long."""
    tokens: tuple[Any, ...] = ("x" * 500_000, [[]] * 9_000, 1e308, {"a": 1}, "\u2028", True)
    calls = [
        call_code(attacker, "print(1)", "progress", progressToken=token)
        for token in tokens
        for _ in range(attacker.size // 60)
    ]
    await send_calls(attacker, calls, attacker.seconds)


# bodies -------------------------------------------------------------------------------------------

BODIES: dict[str, Callable[[], bytes]] = {
    "deep lists": lambda: b"[" * BODY_BYTES,
    "deep objects": lambda: b'{"a":' * (BODY_BYTES // 5),
    "a deep parameter": lambda: (
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":'
        + b'{"a":' * 100_000
        + b"1"
        + b"}" * 100_001
    ),
    "a long number": lambda: b'{"jsonrpc":"2.0","method":"ping","id":' + b"9" * 3_900_000 + b"}",
    "a long batch": lambda: json.dumps([REQUEST] * 60_000).encode(),
    "many names": lambda: json.dumps({f"n{n}": n for n in range(250_000)}).encode(),
    "one name often": lambda: b"{" + b",".join([b'"id":1'] * 500_000) + b"}",
    "long text": lambda: json.dumps({**REQUEST, "method": "x" * 3_900_000}).encode(),
    "escapes": lambda: b'{"jsonrpc":"2.0","id":1,"method":"' + b"\\u0000" * 600_000 + b'"}',
    "white space": lambda: b" " * BODY_BYTES,
    "a long opening": lambda: json.dumps(
        {**REQUEST, "method": "initialize", "params": {"clientInfo": {"name": "x" * 3_900_000}}}
    ).encode(),
}


async def send_bodies(name: str, attacker: Attacker) -> None:
    """Send a body again and again, in both eras, with and without a connection."""
    body = BODIES[name]()
    modern = {"MCP-Protocol-Version": LATEST_PROTOCOL_VERSION, "Mcp-Method": "ping"}
    async with attacker.http() as http:
        connection = {"Mcp-Session-Id": await attacker.initialize(http) or ""}
        for number in range(BODY_COUNT):
            for headers in (modern, connection, {})[: 3 if number == 0 else 2]:
                status = await attacker.post(http, body, **headers)
                assert 200 <= status < 500, status


# ids ----------------------------------------------------------------------------------------------


async def open_connections(attacker: Attacker) -> None:
    """Open more connections than there may be."""
    async with attacker.http() as http:
        for _ in range(2 * attacker.size):
            await attacker.initialize(http)


async def forge_connections(attacker: Attacker) -> None:
    """Send ids of connections that never were."""
    async with attacker.http() as http:
        for _ in range(2 * attacker.size):
            forged = encode_connection_id(PRINCIPAL, INITIALIZE)
            status = await attacker.post(http, REQUEST, **{"Mcp-Session-Id": str(forged)})
            assert status in (200, 404, 429, 503), status


async def ask_for_old_events(attacker: Attacker) -> None:
    """Ask for events that were never sent."""
    async with attacker.http() as http:
        connection = str(await attacker.initialize(http))
        for last in ("1", "x" * 4_000, "../../etc/passwd", "r_1:1", "-1"):
            headers = {"Mcp-Session-Id": connection, "Last-Event-ID": last, "Accept": ACCEPT}
            async with http.stream("GET", attacker.url, headers=headers) as response:
                assert response.status_code in (200, 409)  # a new stream, or there is one


async def guess_tokens(attacker: Attacker) -> None:
    """Try one token after the other."""
    async with httpx2.AsyncClient(timeout=60, verify=False) as http:
        with anyio.move_on_after(attacker.seconds):
            for number in range(100_000):
                token = f"Bearer mcprt_{number:08x}_guess"
                status = await attacker.post(http, REQUEST, Authorization=token)
                assert status in (401, 429), status


ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        send_heads_slowly,
        send_bodies_slowly,
        send_chunks_slowly,
        reset_connections,
        open_streams,
        listen_often,
        stop_reading,
        wait_for_late_answers,
        ask_for_large_answers,
        leave_before_the_answer,
        pipeline_requests,
        ask_for_progress_of_nothing,
        open_connections,
        forge_connections,
        ask_for_old_events,
        guess_tokens,
    )
}
ATTACKS |= {f"send {name}": partial(send_bodies, name) for name in BODIES}

if __name__ == "__main__":
    name, url, token, size, seconds = sys.argv[1:]
    anyio.run(ATTACKS[name], Attacker(url, token, int(size), float(seconds)))
