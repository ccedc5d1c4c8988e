"""Responses that become streams if they take long, and requests that end with their clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from anyio.abc import TaskGroup
from starlette.types import Message

from mcpruntime_server.service.deferred_streams import (
    PING,
    STREAM_START,
    DeferredStream,
    DeferredStreams,
    asks_for_answer_only,
)

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, write_local_settings

START: Message = {"type": "http.response.start", "status": 400, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"{}"}
VERSION = b"mcp-protocol-version"


class Receiver:
    """What a client receives, as soon as it reads."""

    def __init__(self, *, reads: bool = True) -> None:
        self.messages: list[Message] = []
        self.reads = anyio.Event()
        if reads:
            self.reads.set()

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.messages.append(message)


@pytest.mark.parametrize(
    ("version", "body", "expected"),
    [
        (b"2026-07-28", b'{"method": "ping"}', True),
        (b"2025-11-25", b'{"method": "ping"}', False),
        (b"2999-01-01", b'{"method": "ping"}', False),
        (b"", b'{"method": "ping"}', False),
        (b"2026-07-28", b'{"params": {"_meta": {"progressToken": 1}}}', False),
        (b"2026-07-28", b'{"io.modelcontextprotocol/logLevel": "info"}', False),
    ],
)
def test_a_request_says_whether_there_can_be_notifications(
    version: bytes, body: bytes, expected: bool
) -> None:
    headers = [(VERSION, version)] if version else []
    assert asks_for_answer_only({"type": "http", "headers": headers}, body) is expected


async def test_an_answer_that_comes_soon_is_sent_as_it_is() -> None:
    client = Receiver()
    with DeferredStreams().defer(client.send) as response:
        await response.send(START)
        await response.send(BODY)
        await response.ping()
    assert client.messages == [START, BODY]


async def test_an_answer_that_comes_late_is_an_event() -> None:
    client = Receiver()
    with DeferredStreams().defer(client.send) as response:
        await response.ping()
        await response.ping()
        await response.send(START)
        await response.send(BODY)
    ping = {"type": "http.response.body", "body": PING, "more_body": True}
    event = {"type": "http.response.body", "body": b"event: message\r\ndata: {}\r\n\r\n"}
    assert client.messages == [STREAM_START, ping, ping, event]


@asynccontextmanager
async def ping_unread(client: Receiver) -> AsyncIterator[tuple[DeferredStream, TaskGroup]]:
    """Yield a response whose first comment waits for the client, and tasks for more."""
    async with anyio.create_task_group() as tasks:
        with DeferredStreams().defer(client.send) as response:
            tasks.start_soon(response.ping)
            await anyio.wait_all_tasks_blocked()
            yield response, tasks


async def test_a_client_that_does_not_read_gets_one_comment_and_then_the_answer() -> None:
    client = Receiver(reads=False)
    async with ping_unread(client) as (response, tasks):
        await response.ping()
        tasks.start_soon(response.send, BODY)
        await anyio.wait_all_tasks_blocked()
        client.reads.set()
        await anyio.wait_all_tasks_blocked()
    assert [each.get("body", b"")[:5] for each in client.messages] == [b"", b": pin", b"event"]


async def test_a_comment_that_a_client_has_not_read_ends_with_its_request() -> None:
    client = Receiver(reads=False)
    async with ping_unread(client):
        pass
    client.reads.set()
    assert client.messages == []


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    settings = write_local_settings(tmp_path_factory.mktemp("deferred"))
    async with open_http_service(settings, "--no-auth") as opened:
        yield opened


@pytest.mark.parametrize("has_progress", [False, True])
async def test_a_run_is_cancelled_when_its_client_closes_the_connection(
    service: HttpService, has_progress: bool
) -> None:
    async def ignore(progress: float, total: float | None, message: str | None) -> None:
        pass

    session = f"left-{has_progress}"
    async with service.http() as http:

        async def find_status() -> str:
            response = await http.get(f"{service.url.removesuffix('/mcp')}/sessions/{session}")
            return "".join(run["status"] for run in response.json().get("runs", ()))

        with anyio.fail_after(TEST_TIMEOUT_S):
            async with anyio.create_task_group() as tasks, service.connect() as client:
                run = partial(client.run, progress_callback=ignore if has_progress else None)
                tasks.start_soon(run, "import time\ntime.sleep(600)", session)
                while await find_status() != "running":  # noqa: ASYNC110
                    await anyio.sleep(0.05)
                tasks.cancel_scope.cancel()
            while (status := await find_status()) == "running":  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert status == "cancelled"
