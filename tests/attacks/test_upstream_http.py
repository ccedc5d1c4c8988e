"""An HTTP upstream that sends too much, too slowly, compressed, or from elsewhere."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.tools.observed_shapes import LargeValue
from mcpruntime_server.capabilities.tools.upstream import open_upstreams
from mcpruntime_server.config import UpstreamSettings
from mcpruntime_server.errors import CallFailed

SOON_S = 60.0  # only a test that fails waits so long
MB = 1_000_000
SECRET = "s3cret-s3cret"
EVENTS = "content-type: text/event-stream"
JSON = "content-type: application/json"


def answer(number: Any, value: str) -> bytes:
    """Return the answer to a call whose value is the JSON text `value`."""
    head = f'{{"jsonrpc":"2.0","id":{number},"result":{{"content":[],"structuredContent":{{"r":'
    return f"{head}{value}}}}}}}".encode()


def repeat(data: bytes) -> Iterator[bytes]:
    while True:
        yield data


def log_event(count: int) -> bytes:
    params = {"level": "info", "data": "x"}
    message = {"jsonrpc": "2.0", "method": "notifications/message", "params": params}
    return b"data: " + json.dumps(message).encode() + b"\n\n" * count


Attack = tuple[str, str, Callable[[Any], Any]]  # headers, what the caller reads, the pieces
ATTACKS: dict[str, Attack] = {
    "good": (JSON, "", lambda n: [answer(n, "1")]),
    "good_event": (EVENTS, "", lambda n: [b"data: ", answer(n, "1"), b"\n\n"]),
    "large_body": (JSON, "", lambda n: [answer(n, '"' + "x" * MB + '"')]),
    "large_event": (EVENTS, "", lambda n: [b"data: ", answer(n, '"' + "x" * MB + '"'), b"\n\n"]),
    "large_event_after_another": (
        f"{EVENTS}",
        "",
        lambda n: [
            *(b"data: ", answer(n + 1, '"' + "y" * MB + '"'), b"\r\n\r\n: a comment\n\n"),
            *(b"id: 1\ndata: ", answer(n, '"' + "x" * MB + '"'), b"\n\n"),
        ],
    ),
    "large_violation": (
        JSON,
        "in violation of its own contract: its result is not a valid CallToolResult",
        lambda n: [answer(n, '"' + "x" * MB + '"').replace(b"[]", b"1")],
    ),
    "large_failure": (
        JSON,
        "failed",
        lambda n: [
            json.dumps(
                {"jsonrpc": "2.0", "id": n, "error": {"code": -1, "message": "failed" * 100_000}}
            ).encode()
        ],
    ),
    "long_body": (JSON, "more than 2 MB", lambda n: [answer(n, '"' + "x" * 9 * MB + '"')]),
    "endless_body": (JSON, "more than 2 MB", lambda n: repeat(b"x" * MB)),
    "many_values": (JSON, "10,000 JSON values", lambda n: [answer(n, "[" + "{}," * 99_999 + "1]")]),
    "deep": (JSON, "200 levels deep", lambda n: [answer(n, "[" * 900 + "]" * 900)]),
    "compressed": (
        f"{JSON}\r\ncontent-encoding: gzip",
        "a compressed body",
        lambda n: [gzip.compress(answer(n, '"' + "x" * 3 * MB + '"'))],
    ),
    "long_event": (
        EVENTS,
        "more than 2 MB",
        lambda n: [b"data: ", answer(n, '"' + "x" * 9 * MB + '"'), b"\n\n"],
    ),
    "endless_line": (EVENTS, "more than 2 MB", lambda n: repeat(b"x" * MB)),
    "many_values_in_an_event": (
        EVENTS,
        "10,000 JSON values",
        lambda n: [b"data: ", answer(n, "[" + "{}," * 99_999 + "1]"), b"\n\n"],
    ),
    "blank_header": (f"{JSON}\r\nx:{' ' * 60_000}\x00", "up", lambda n: [answer(n, "1")]),
    "endless_events": (EVENTS, "messages a second", lambda n: repeat(log_event(1) * 100)),
    "endless_comments": (EVENTS, "messages a second", lambda n: repeat(b": nothing\n" * 1_000)),
}


class HostileWeb:
    """An HTTP server that attacks with each call, and remembers what it was sent."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.elsewhere = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.requests.append(head)
                length = head.lower().partition("content-length: ")[2].partition("\r")[0] or "0"
                body = await reader.readexactly(int(length))
                await self.respond(json.loads(body or b"{}"), writer)
                break
        writer.close()

    async def respond(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number, params = message.get("id"), message.get("params") or {}
        status, headers, pieces = "200 OK", JSON, []
        match message.get("method"):
            case "initialize":
                result: Any = {
                    "protocolVersion": params["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "web", "version": "1"},
                }
                pieces = [json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode()]
            case "tools/list":
                tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ATTACKS]
                result = {"tools": tools}
                pieces = [json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode()]
            case "tools/call" if params["name"] == "elsewhere":
                status, headers = "307 Temporary Redirect", f"location: {self.elsewhere}"
            case "tools/call":
                headers, _, build = ATTACKS[params["name"]]
                pieces = build(number)
            case str() if number is None:
                status = "202 Accepted"
            case _:
                status = "405 Method Not Allowed"
        writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\nconnection: close\r\n\r\n".encode())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()


@asynccontextmanager
async def serve(web: HostileWeb) -> AsyncIterator[str]:
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.close()


@asynccontextmanager
async def connect(folder: Path, timeout_s: float = 3) -> AsyncIterator[tuple[HostileWeb, Any]]:
    web = HostileWeb()
    async with serve(web) as url:
        settings = UpstreamSettings.from_mapping(
            {
                "url": url,
                "headers": {"authorization": f"Bearer {SECRET}"},
                "timeout_s": timeout_s,
                "answer_mb": 2,
                "answer_items": 10_000,
            }
        )
        async with open_upstreams({"up": settings}, folder, folder) as upstreams:
            with anyio.fail_after(SOON_S):
                yield web, upstreams["up"]


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_call_gets_its_result_or_a_clear_error(tmp_path: Path, attack: str) -> None:
    words = ATTACKS[attack][1]
    # A large answer is read by a process that has to start first.
    timeout_s = 30 if attack.startswith("large") else 3
    async with connect(tmp_path, timeout_s) as (_, upstream):
        if words:
            with pytest.raises(CallFailed, match=words):
                await upstream.call_tool(attack, {})
        elif attack.startswith("large"):
            found = await upstream.call_tool(attack, {})
            assert isinstance(found, LargeValue)
            assert found.decode() == {"r": "x" * MB}
        assert await upstream.call_tool("good", {}) == {"r": 1}
        assert await upstream.call_tool("good_event", {}) == {"r": 1}


async def test_a_redirect_to_another_host_is_not_followed(tmp_path: Path) -> None:
    other = HostileWeb()
    async with serve(other) as url, connect(tmp_path) as (web, upstream):
        web.elsewhere = url
        with pytest.raises(CallFailed, match="not followed"):
            await upstream.call_tool("elsewhere", {})
        assert any(SECRET in request for request in web.requests)
    assert other.requests == []
