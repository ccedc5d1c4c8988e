"""Servers over HTTP that are killed at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp.types import LATEST_PROTOCOL_VERSION

from .forking import forked_command
from .http_service import ADDRESS, create_http_client
from .server_connection import COMMAND, TEST_TIMEOUT_S
from .server_killing import KillableServer, ServerKilled, StartServer

META_PREFIX = "io.modelcontextprotocol"
LAST_EVENT = re.compile(r"data: (.*)\s*\Z")


class KillableHttpServer(KillableServer):
    """One server process, whose address is in the first lines of its stderr."""

    def __init__(self, process: Process, http: httpx2.AsyncClient, *, is_forked: bool) -> None:
        super().__init__(process, is_forked=is_forked)
        self._http = http
        self._url = ""
        self._is_known = anyio.Event()  # where it is, or that it is gone

    async def read_messages(self) -> None:
        """Read its address, and then what it logs."""
        assert self.process.stderr is not None
        log = BufferedByteReceiveStream(self.process.stderr)
        try:
            while not (found := ADDRESS.match(await log.receive_until(b"\n", 65_536))):
                pass
            self._url = found[1].decode()
            self._is_known.set()
            async for _ in log:
                pass
        except (anyio.IncompleteRead, anyio.EndOfStream):
            pass  # it was killed before it listened
        finally:
            self._is_known.set()

    async def initialize(self) -> None:
        """Wait until it listens."""
        await self._is_known.wait()
        if not self._url:
            raise ServerKilled

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a request; raises `ServerKilled`."""
        meta = {
            f"{META_PREFIX}/protocolVersion": LATEST_PROTOCOL_VERSION,
            f"{META_PREFIX}/clientInfo": {"name": "killer", "version": "1"},
            f"{META_PREFIX}/clientCapabilities": {},
            **params.get("_meta", {}),
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        headers = {
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": LATEST_PROTOCOL_VERSION,
            "Mcp-Method": method,
            "Mcp-Name": params["name"],
        }
        try:
            response = await self._http.post(self._url, json=body, headers=headers)
        except httpx2.TransportError:
            raise ServerKilled from None
        if response.status_code == 503:  # it is shutting down
            raise ServerKilled
        found = LAST_EVENT.search(response.text)
        try:
            reply = json.loads(found[1] if found else response.text)
        except ValueError:  # the stream ended before the answer
            raise ServerKilled from None
        assert "result" in reply, (response.status_code, reply)
        result: dict[str, Any] = reply["result"]
        return result

    async def close(self) -> None:
        """Ask it to stop, and wait until it has exited."""
        os.kill(self.pid, signal.SIGTERM)
        with anyio.fail_after(TEST_TIMEOUT_S):
            await self.process.wait()


@asynccontextmanager
async def start_http_server(
    token: str, settings: Path, *, is_forked: bool
) -> AsyncIterator[KillableServer]:
    """Start a server and kill it afterwards; its clients send `token`."""
    options = ("--config", str(settings), "serve", "--port", "0")
    command = forked_command(*options) if is_forked else [COMMAND, *options]
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        create_http_client(headers=headers) as http,
        await anyio.open_process(command) as process,
        anyio.create_task_group() as tasks,
    ):
        server = KillableHttpServer(process, http, is_forked=is_forked)
        tasks.start_soon(server.read_messages)
        try:
            yield server
        finally:
            if process.returncode is None:
                server.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()
            tasks.cancel_scope.cancel()


def start_with_token(token: str) -> StartServer:
    """Return what starts servers whose clients send `token`."""
    return partial(start_http_server, token)
