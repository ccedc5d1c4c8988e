"""MCP over stdin and stdout without worker threads.

The SDK's own transport reads and writes through threads, three changes of thread a request; that is a quarter of the
time of a short run, and a thread that waits for a line cannot be cancelled. Here the event loop waits for the
descriptors themselves. Whoever else writes to fd 1 or reads fd 0 in this process gets stderr and nothing.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from ..protocol.wire import escape_json_surrogates

READ_CHUNK_BYTES = 64 * 1024
WRITE_CHUNK_BYTES = select.PIPE_BUF  # what a pipe that is writable takes without blocking
MAX_LINE_BYTES = (
    64 * 1024 * 1024
)  # bytes of one message; a peer that sends more without a newline is broken

IncomingMessage = SessionMessage | Exception


@asynccontextmanager
async def open_stdio_streams(
    timed_out: set[str],
) -> AsyncIterator[
    tuple[MemoryObjectReceiveStream[IncomingMessage], MemoryObjectSendStream[SessionMessage]]
]:
    """Take over fds 0 and 1 and yield the streams that an MCP server runs on; the first ends when stdin does.

    The ids of requests that the client cancels because it has waited too long go into `timed_out`.
    """
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    to_server, incoming = anyio.create_memory_object_stream[IncomingMessage]()
    outgoing, from_server = anyio.create_memory_object_stream[SessionMessage]()
    try:
        async with anyio.create_task_group() as tasks, incoming, outgoing:
            tasks.start_soon(_read_messages, source, to_server, outgoing.clone(), timed_out)
            tasks.start_soon(_write_messages, from_server, sink)
            yield incoming, outgoing
            tasks.cancel_scope.cancel()
    finally:
        os.close(source)
        os.close(sink)


async def _read_messages(
    source: int,
    to_server: MemoryObjectSendStream[IncomingMessage],
    outgoing: MemoryObjectSendStream[SessionMessage],
    timed_out: set[str],
) -> None:
    """Pass on each line of `source` as a message; what is none is answered with an error, so that nobody waits."""
    async with to_server, outgoing:
        with suppress(anyio.BrokenResourceError):  # the server has stopped listening
            async for line in _read_lines(source):
                message = parse_message(line)
                if isinstance(message, SessionMessage):
                    if request := timed_out_request_id(message):
                        timed_out.add(request)
                    await to_server.send(message)
                else:
                    await outgoing.send(SessionMessage(message))


def timed_out_request_id(message: SessionMessage) -> str | None:
    """Return the id of the request that `message` cancels because the client has waited too long, if it does so.

    The protocol has no other sign of that than the reason's wording; the SDKs all say "timed out".
    """
    found = message.message
    if not isinstance(found, JSONRPCNotification) or found.method != "notifications/cancelled":
        return None
    params = found.params or {}
    return (
        str(params.get("requestId")) if "timed out" in str(params.get("reason")).lower() else None
    )


def parse_message(line: bytes) -> SessionMessage | JSONRPCError:
    """Return the message in `line`, or the error that answers it.

    JSON can spell half a character (a lone surrogate), which the SDK refuses; here it stays visible as an escape.
    """
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValidationError:
        pass
    try:
        found = escape_json_surrogates(json.loads(line))
    except (ValueError, RecursionError) as exc:
        return _error_response(None, PARSE_ERROR, f"A line is not JSON: {exc}")
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_python(found, by_name=False))
    except ValidationError:
        number = found.get("id") if isinstance(found, dict) else None
        return _error_response(
            number if isinstance(number, int | str) else None,
            INVALID_REQUEST,
            "A line is not JSON-RPC.",
        )


def _error_response(request_id: int | str | None, code: int, text: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=text))


async def _read_lines(source: int) -> AsyncIterator[bytes]:
    rest = b""
    while True:
        with suppress(PermissionError):  # a regular file is always ready, and epoll refuses it
            await anyio.wait_readable(source)
        data = os.read(source, READ_CHUNK_BYTES)
        if not data or len(rest) > MAX_LINE_BYTES:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield line


async def _write_messages(
    from_server: MemoryObjectReceiveStream[SessionMessage], sink: int
) -> None:
    """Write each message as a line; a client that has gone away ends it."""
    async with from_server:
        with suppress(BrokenPipeError):
            async for message in from_server:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                await _write_all(sink, text.encode() + b"\n")


async def _write_all(sink: int, data: bytes) -> None:
    for start in range(0, len(data), WRITE_CHUNK_BYTES):
        if not select.select([], [sink], [], 0)[1]:
            await anyio.wait_writable(sink)
        piece = data[start : start + WRITE_CHUNK_BYTES]
        while piece:
            piece = piece[os.write(sink, piece) :]
