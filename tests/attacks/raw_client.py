"""A client that writes any bytes to a server, in the protocol of one of the two eras."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    PROTOCOL_VERSION_META_KEY,
)

from tests.helpers.child_processes import start_process
from tests.helpers.forking import forked_command
from tests.helpers.server_connection import TEST_TIMEOUT_S

CLIENT = {"name": "raw", "version": "1"}
LEGACY_VERSION, MODERN_VERSION = "2025-06-18", "2026-07-28"
META = {
    PROTOCOL_VERSION_META_KEY: MODERN_VERSION,
    CLIENT_CAPABILITIES_META_KEY: {},
    CLIENT_INFO_META_KEY: CLIENT,
}
ERAS = {"legacy": None, "auto": META}


class RawClient:
    """Speaks to a server process line by line; `observe` accepts it as a connection."""

    def __init__(self, process: Process, data_dir: Path, meta: dict[str, Any] | None) -> None:
        self.data_dir = data_dir
        self.unidentified: list[dict[str, Any]] = []  # answers without an id
        self._process = process
        self._meta = meta
        self._last_id = 0
        self._replies: dict[Any, dict[str, Any]] = {}
        self._update = anyio.Event()

    @property
    def server_pids(self) -> list[int]:
        """The ids of the server processes on this data folder."""
        return [int(path.read_text()) for path in (self.data_dir / "servers").glob("*.lock")]

    async def read_replies(self) -> None:
        """Receive replies until the server is gone."""
        assert self._process.stdout is not None
        buffered = b""
        async for data in self._process.stdout:
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                reply = json.loads(line)
                if reply.get("id") is None:
                    self.unidentified.append(reply)
                else:
                    self._replies[reply["id"]] = reply
            self._update.set()
            self._update = anyio.Event()

    async def send(self, data: bytes) -> None:
        """Write bytes to the server."""
        assert self._process.stdin is not None
        await self._process.stdin.send(data)

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the reply."""
        request_id = await self._send_request(method, json.dumps(params).encode())
        with anyio.fail_after(TEST_TIMEOUT_S):
            while request_id not in self._replies:
                await self._update.wait()
        return self._replies.pop(request_id)

    async def exchange(self, method: str, params: bytes) -> dict[str, Any]:
        """Send a request whose parameters are any text in braces; return the reply.

        It has no id if the server could not read that of the request.
        """
        errors = len(self.unidentified)
        request_id = await self._send_request(method, params)
        with anyio.fail_after(TEST_TIMEOUT_S):
            while request_id not in self._replies and len(self.unidentified) == errors:
                await self._update.wait()
        return self._replies.pop(request_id, None) or self.unidentified[-1]

    async def _send_request(self, method: str, params: bytes) -> int:
        self._last_id += 1
        if self._meta is not None:
            params = b'{"_meta":%s,%s' % (json.dumps(self._meta).encode(), params[1:])
        head = f'{{"jsonrpc":"2.0","id":{self._last_id},"method":"{method}","params":'
        request_id = self._last_id
        await self.send(head.encode() + params + b"}\n")
        return request_id

    async def evaluate(self, code: str, session: str) -> Any:
        """Run code, which must succeed, and return its value."""
        arguments = {"code": code, "session": session}
        reply = await self.request("tools/call", {"name": "run_code", "arguments": arguments})
        assert reply["result"]["structuredContent"]["status"] == "ok", reply
        return reply["result"]["structuredContent"]["value"]


@asynccontextmanager
async def connect_raw_client(settings: Path, era: str) -> AsyncIterator[RawClient]:
    """Start a server, and end it as a client does."""
    command = forked_command("--config", str(settings), "--stdio")
    with settings.with_suffix(".log").open("ab") as log:
        async with (
            start_process(command, stderr=log) as process,
            anyio.create_task_group() as tasks,
        ):
            client = RawClient(process, settings.parent / "data", ERAS[era])
            tasks.start_soon(client.read_replies)
            if era == "legacy":
                hello = {
                    "protocolVersion": LEGACY_VERSION,
                    "capabilities": {},
                    "clientInfo": CLIENT,
                }
                await client.request("initialize", hello)
                await client.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
            yield client
            assert process.stdin is not None
            await process.stdin.aclose()
            with anyio.fail_after(TEST_TIMEOUT_S):
                await process.wait()
