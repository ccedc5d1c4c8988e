"""MCP over stdin and stdout without worker threads.

The SDK's own transport reads and writes through threads, three changes of thread a request; that is a quarter of the
time of a short run, and a thread that waits for a line cannot be cancelled. Here the event loop waits for the
descriptors themselves. Whoever else writes to fd 1 or reads fd 0 in this process gets stderr and nothing.
"""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter
from pydantic import ValidationError

READ = 64 * 1024
PIECE = select.PIPE_BUF  # what a pipe that is writable takes without blocking
MAX_LINE = 64 * 1024 * 1024  # bytes of one message; a peer that sends more without a newline is broken

Incoming = SessionMessage | Exception


@asynccontextmanager
async def stdio_streams() -> AsyncIterator[
    tuple[MemoryObjectReceiveStream[Incoming], MemoryObjectSendStream[SessionMessage]]
]:
    """Take over fds 0 and 1 and yield the streams that an MCP server runs on; the first ends when stdin does."""
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    to_server, incoming = anyio.create_memory_object_stream[Incoming]()
    outgoing, from_server = anyio.create_memory_object_stream[SessionMessage]()
    try:
        async with anyio.create_task_group() as tasks, incoming, outgoing:
            tasks.start_soon(_read, source, to_server)
            tasks.start_soon(_write, from_server, sink)
            yield incoming, outgoing
            tasks.cancel_scope.cancel()
    finally:
        os.close(source)
        os.close(sink)


async def _read(source: int, to_server: MemoryObjectSendStream[Incoming]) -> None:
    """Pass on each line of `source` as a message, and what is none as the exception that says so."""
    async with to_server:
        with suppress(anyio.BrokenResourceError):  # the server has stopped listening
            async for line in _lines(source):
                try:
                    await to_server.send(SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False)))
                except ValidationError as exc:
                    await to_server.send(exc)


async def _lines(source: int) -> AsyncIterator[bytes]:
    rest = b""
    while True:
        with suppress(PermissionError):  # a regular file is always ready, and epoll refuses it
            await anyio.wait_readable(source)
        data = os.read(source, READ)
        if not data or len(rest) > MAX_LINE:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield line


async def _write(from_server: MemoryObjectReceiveStream[SessionMessage], sink: int) -> None:
    """Write each message as a line; a client that has gone away ends it."""
    async with from_server:
        with suppress(BrokenPipeError):
            async for message in from_server:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                await _write_all(sink, text.encode() + b"\n")


async def _write_all(sink: int, data: bytes) -> None:
    for start in range(0, len(data), PIECE):
        if not select.select([], [sink], [], 0)[1]:
            await anyio.wait_writable(sink)
        piece = data[start : start + PIECE]
        while piece:
            piece = piece[os.write(sink, piece) :]
