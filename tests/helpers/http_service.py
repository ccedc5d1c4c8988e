"""A real server process over HTTP, with clients that have tokens."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from .child_processes import start_process
from .commands import run_command
from .forking import forked_command, forked_script
from .server_connection import TEST_TIMEOUT_S, ServerConnection

ERAS = ("auto", "legacy")  # of the protocol: how a client connects
ADDRESS = re.compile(rb"MCP at (http://\S+/mcp)")


def create_http_client(**options: Any) -> httpx2.AsyncClient:
    """Return a client for addresses without TLS: reading the authorities for it takes 50 ms."""
    return httpx2.AsyncClient(**{"timeout": TEST_TIMEOUT_S, "verify": False, **options})


class HttpService:
    """A server that listens at `url`."""

    def __init__(self, settings: Path, url: str, process: Process) -> None:
        self.settings = settings
        self.url = url
        self.process = process
        self.log = bytearray()  # what it has written to stderr since it listens

    @property
    def data_dir(self) -> Path:
        return self.settings.parent / "data"

    @property
    def server_pid(self) -> int:
        """The process of a server on the data folder; that of this one, if there is no other."""
        return int(next((self.data_dir / "servers").glob("*.lock")).read_text())

    def count_open_files(self) -> int:
        """Return how many files and connections the server has open."""
        return len(os.listdir(f"/proc/{self.server_pid}/fd"))

    def create_token(self, name: str, *options: str) -> str:
        done = run_command("--config", self.settings, "token", "create", name, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @asynccontextmanager
    async def http(self, token: str = "", **headers: str) -> AsyncIterator[httpx2.AsyncClient]:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        async with create_http_client(headers=headers) as client:
            yield client

    @asynccontextmanager
    async def connect(
        self, token: str = "", mode: str = "auto", **options: Any
    ) -> AsyncIterator[ServerConnection]:
        """Be a client of the SDK, of the newest protocol or (`legacy`) of the older ones."""
        async with self.http(token) as http:
            transport = streamable_http_client(self.url, http_client=http)
            async with Client(transport, mode=mode, **options) as client:
                yield ServerConnection(client, self.data_dir)

    def stop(self) -> None:
        """Ask the server to stop, also one that has only just begun to listen and has no lock."""
        self.signal(signal.SIGTERM)
        if not any((self.data_dir / "servers").glob("*.lock")):
            with suppress(ProcessLookupError):
                self.process.terminate()

    def signal(self, number: int) -> None:
        """Send a signal to the server, and to all others on its data folder."""
        for path in (self.data_dir / "servers").glob("*.lock"):
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), number)


@asynccontextmanager
async def open_http_service(
    settings: Path, *options: str, port: int = 0, script: Path | None = None
) -> AsyncIterator[HttpService]:
    """Start `serve` and stop it afterwards; a `script` takes the place of the command."""
    words = ("--config", str(settings), "serve", "--port", str(port), *options)
    command = forked_command(*words) if script is None else forked_script(script, *words)
    async with start_process(command) as process:
        assert process.stderr is not None
        log = BufferedByteReceiveStream(process.stderr)
        with anyio.fail_after(TEST_TIMEOUT_S):
            while not (found := ADDRESS.match(line := await log.receive_until(b"\n", 65_536))):
                assert line
        service = HttpService(settings, found[1].decode(), process)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain, log, service.log)
            try:
                yield service
            finally:
                service.stop()
                with anyio.fail_after(TEST_TIMEOUT_S, shield=True):
                    await process.wait()


async def drain(log: BufferedByteReceiveStream, lines: bytearray) -> None:
    """Read what a server logs, which would stop when the pipe is full."""
    async for part in log:
        lines += part
