"""Exports that are not read, and clients that read nothing at all."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import pytest
import uvicorn
from anyio import to_thread
from starlette.types import Receive, Scope, Send

from mcpruntime_server.service import http_connections
from mcpruntime_server.service.export_api import MAX_OPEN_EXPORTS

from ..helpers.event_streams import connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, write_local_settings

NOTEBOOK = "/sessions/long/notebook.ipynb"
PART = bytes(64 * 1024)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[HttpService]:
    settings = write_local_settings(tmp_path)
    async with open_http_service(settings) as opened:
        yield opened


def open_unread(opened: ExitStack, url: str, lines: list[str]) -> socket.socket:
    """Send a request whose response nobody reads, and of which the kernel takes little."""
    address = urlsplit(url)
    client = opened.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((address.hostname, address.port))
    client.sendall("\r\n".join([*lines, f"Host: {address.netloc}", "", ""]).encode())
    return client


async def test_a_principal_has_so_many_exports_open_and_others_are_served(
    service: HttpService,
) -> None:
    ann, bob = service.create_token("ann"), service.create_token("bob")
    lines = [f"GET {NOTEBOOK} HTTP/1.1", f"Authorization: Bearer {ann}"]
    with anyio.fail_after(TEST_TIMEOUT_S), ExitStack() as opened:
        async with connect_api(service, ann) as api, connect_api(service, bob) as others:
            for _ in range(3):
                await api.execute("for _ in range(30): print('x' * 120_000)", session="long")
            await others.execute("print('short')", session="long")
            whole = await api.get(NOTEBOOK)
            assert len(whole.content) > 9_000_000
            clients = [open_unread(opened, service.url, lines) for _ in range(MAX_OPEN_EXPORTS)]
            for client in clients:
                assert await to_thread.run_sync(client.recv, 8) == b"HTTP/1.1"
            refused = await api.get(NOTEBOOK)
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert (await others.get(NOTEBOOK)).status_code == 200
            for client in clients:
                client.close()
            while (again := await api.get(NOTEBOOK)).status_code == 429:  # noqa: ASYNC110
                await anyio.sleep(0.1)
            assert again.content == whole.content


async def test_a_client_that_reads_nothing_loses_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_connections, "UNREAD_TIMEOUT_S", 0.1)
    has_ended = anyio.Event()

    async def send_endlessly(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_parts() -> None:
            while True:
                await send({"type": "http.response.body", "body": PART, "more_body": True})
                await anyio.lowlevel.checkpoint()  # `send` does not wait once the client is gone

        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_parts)
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()
        has_ended.set()

    config = uvicorn.Config(
        send_endlessly, http=http_connections.HttpConnection, lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as opened:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            open_unread(opened, url, ["GET / HTTP/1.1"])
            with anyio.fail_after(TEST_TIMEOUT_S):
                await has_ended.wait()
            server.should_exit = True
