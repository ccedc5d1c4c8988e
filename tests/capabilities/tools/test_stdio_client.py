"""The pipes of a child process as a stream of MCP messages."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCNotification

from mcpruntime_server.capabilities.tools.direct_requests import DirectRequests
from mcpruntime_server.capabilities.tools.message_limits import MessageLimits
from mcpruntime_server.capabilities.tools.message_reader import UpstreamMessageReader
from mcpruntime_server.capabilities.tools.stdio_client import (
    UpstreamMessageWriter,
    open_stdio_client,
)
from mcpruntime_server.capabilities.tools.unrequested_messages import MessageFilter

TIMEOUT_S = 30.0  # only a test that fails waits so long
LIMITS = MessageLimits(message_bytes=4_000_000, values=10_000, listed=10, messages_per_s=1_000)
PIPE_OVERFLOW = 200_000  # characters; more than a pipe holds, and still a small message

Streams = tuple[UpstreamMessageReader, UpstreamMessageWriter]


@asynccontextmanager
async def child(
    folder: Path, *command: str, ended: anyio.Event | None = None
) -> AsyncIterator[Streams]:
    messages = MessageFilter(LIMITS)
    with (folder / "stderr").open("w") as errors, anyio.fail_after(TIMEOUT_S):
        async with open_stdio_client(
            command, {}, folder, errors, ended or anyio.Event(), DirectRequests(), messages
        ) as streams:
            yield streams


def message(text: str) -> SessionMessage:
    return SessionMessage(
        JSONRPCNotification(jsonrpc="2.0", method="notifications/said", params={"text": text})
    )


def text_of(received: SessionMessage | Exception) -> str:
    assert isinstance(received, SessionMessage)
    assert isinstance(received.message, JSONRPCNotification)
    assert received.message.params is not None
    return str(received.message.params["text"])


async def test_messages_arrive_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    async with child(tmp_path, "cat") as (reader, writer):
        for text in ("a", "b\nc", "ü"):
            await writer.send(message(text))
        assert [text_of(await reader.receive()) for _ in range(3)] == ["a", "b\nc", "ü"]


async def test_a_message_larger_than_a_pipe_arrives_whole(tmp_path: Path) -> None:
    async with child(tmp_path, "cat") as (reader, writer), anyio.create_task_group() as tasks:
        tasks.start_soon(writer.send, message("x" * PIPE_OVERFLOW))
        assert text_of(await reader.receive()) == "x" * PIPE_OVERFLOW


async def test_a_cancelled_sender_leaves_no_partial_message(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    async with child(tmp_path, "sh", "-c", "cat gate; exec cat") as (reader, writer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.send, message("x" * PIPE_OVERFLOW))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.send, message("next"))
            await anyio.wait_all_tasks_blocked()
            gate = await anyio.to_thread.run_sync(os.open, tmp_path / "gate", os.O_WRONLY)
            os.close(gate)
            assert text_of(await reader.receive()) == "x" * PIPE_OVERFLOW
            assert text_of(await reader.receive()) == "next"


async def test_a_line_that_is_no_message_is_counted_and_an_empty_one_is_skipped(
    tmp_path: Path,
) -> None:
    lines = 'print("hello"); print(); print("{"); print("[1]")'
    async with child(tmp_path, sys.executable, "-c", lines) as (reader, writer):
        assert [item async for item in reader] == []
    assert writer.messages.invalid_messages == 3


async def test_the_end_of_the_process_ends_the_messages(tmp_path: Path) -> None:
    ended = anyio.Event()
    async with child(tmp_path, "true", ended=ended) as (reader, writer):
        with pytest.raises(anyio.EndOfStream):
            await reader.receive()
        assert ended.is_set()
        with pytest.raises(anyio.BrokenResourceError):
            await send_forever(writer)  # the process may close its stdin a moment after its stdout


async def send_forever(writer: UpstreamMessageWriter) -> None:
    while True:
        await writer.send(message("nobody reads this"))


async def test_a_closed_writer_refuses_messages(tmp_path: Path) -> None:
    async with child(tmp_path, "cat") as (_, writer):
        async with writer:
            pass
        with pytest.raises(anyio.ClosedResourceError):
            await writer.send(message("late"))


async def test_a_process_with_much_left_to_write_can_still_exit(tmp_path: Path) -> None:
    code = f"import sys; sys.stdin.read(); print('x' * {PIPE_OVERFLOW}); open('done', 'w')"
    async with child(tmp_path, sys.executable, "-c", code):
        pass
    assert (tmp_path / "done").exists()


async def test_a_command_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with child(tmp_path, "/nowhere/to/be/found"):
            pytest.fail("it was started")
