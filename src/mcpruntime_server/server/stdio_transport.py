"""MCP over stdin and stdout without worker threads, tasks or queues of its own.

The SDK's transport reads and writes through threads: three changes of thread per request take a
quarter of the time of a short run, and a thread that waits for a line cannot be cancelled. Here the
event loop waits for the descriptors. Other code in this process that writes to fd 1 writes to
stderr, and code that reads fd 0 reads nothing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import anyio
from anyio.abc import AsyncResource
from mcp.shared.message import SessionMessage
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from ..capabilities.large_json import LARGE_BYTES, LargeJson
from ..protocol.wire import MAX_DATA_DEPTH, escape_json_surrogates

READ_CHUNK_BYTES = 64 * 1024
WRITE_CHUNK_BYTES = select.PIPE_BUF  # a pipe that is writable takes so much without blocking
MAX_LINE_BYTES = 64 * 1024 * 1024  # of one message; a client that sends more is broken
MAX_QUICK_LINE_BYTES = 64 * 1024  # pydantic's parser can take seconds for a longer one
MAX_REQUEST_ID_CHARS = 1_000
MAX_REQUEST_NUMBER = 1 << 63
# A text without an end is one token, too: else each quotation mark in it would be tried.
JSON_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
REQUEST_ID = re.compile(rb'\s*:\s*(-?(?:0|[1-9]\d{0,18})|"[\w .-]{0,100}")\s*[,}]')

logger = logging.getLogger(__name__)


class ClientMessageWriter(AsyncResource):
    """Writes each message as one line to a descriptor, which stays blocking as it may be shared."""

    def __init__(self, sink: int) -> None:
        self._sink = sink
        self._unsent: deque[memoryview] = deque()
        self._flushing = anyio.Lock(fast_acquire=True)

    async def send(self, message: SessionMessage) -> None:
        """Write `message`; raises `anyio.BrokenResourceError` if the client no longer reads.

        If the sender is cancelled while the client reads slowly, the next sender writes the rest.
        """
        self._unsent.append(memoryview(encode_client_message(message.message) + b"\n"))
        if len(self._unsent) == 1 and self._write_now():
            return
        async with self._flushing:
            while not self._write_now():
                await anyio.wait_writable(self._sink)

    def _write_now(self) -> bool:
        """Write what fits without blocking; return whether nothing is left."""
        while self._unsent:
            if not select.select([], [self._sink], [], 0)[1]:
                return False
            data = self._unsent[0]
            try:
                rest = data[os.write(self._sink, data[:WRITE_CHUNK_BYTES]) :]
            except OSError as exc:
                self._unsent.clear()
                raise anyio.BrokenResourceError from exc
            if rest:
                self._unsent[0] = rest
            else:
                self._unsent.popleft()
        return True

    async def aclose(self) -> None:
        """Do nothing: `open_stdio_streams` closes the descriptor."""


class ClientMessageReader(AsyncResource):
    """Yields the messages of a client, one per line.

    It answers an invalid line with an error itself, and calls `on_timed_out` with the id of each
    request that the client no longer waits for.
    """

    def __init__(
        self,
        source: int,
        writer: ClientMessageWriter,
        large_json: LargeJson,
        on_timed_out: Callable[[str], None],
    ) -> None:
        self._source = source
        self._writer = writer
        self._large_json = large_json
        self._on_timed_out = on_timed_out
        self._lines: deque[bytes] = deque()
        self._unfinished: list[bytes] = []  # chunks of a line whose end has not arrived
        self._unfinished_bytes = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while True:
            if not self._lines and not await self._read_lines():
                raise StopAsyncIteration
            if not self._lines:
                continue
            message = await self._parse(self._lines.popleft())
            if isinstance(message, SessionMessage):
                if request_id := timed_out_request_id(message):
                    self._on_timed_out(request_id)
                return message
            with suppress(anyio.BrokenResourceError):  # the end of stdin follows
                await self._writer.send(SessionMessage(message))

    async def _parse(self, line: bytes) -> SessionMessage | JSONRPCError:
        if len(line) <= LARGE_BYTES:
            return parse_client_message(line)
        if refusal := refuse_deep_line(line):
            return refusal
        try:
            return build_client_message(await self._large_json.decode(line))
        except (ValueError, RecursionError) as exc:
            return _not_json_response(exc)

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message; raises `anyio.EndOfStream` after the last one."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    async def _read_lines(self) -> bool:
        """Read one chunk; return whether more can follow."""
        with suppress(PermissionError):  # a regular file is always ready, and epoll refuses it
            await anyio.wait_readable(self._source)
        try:
            chunk = os.read(self._source, READ_CHUNK_BYTES)
        except OSError as exc:  # the terminal was closed
            logger.info("stdin can no longer be read: %s", exc)
            return False
        if not chunk or self._unfinished_bytes > MAX_LINE_BYTES:
            return False
        first, *more = chunk.split(b"\n")
        self._unfinished.append(first)
        self._unfinished_bytes += len(first)
        if more:
            complete = [b"".join(self._unfinished), *more[:-1]]
            self._lines.extend(line for line in complete if line.strip())
            self._unfinished = [more[-1]]
            self._unfinished_bytes = len(more[-1])
        return True

    async def aclose(self) -> None:
        """Do nothing: `open_stdio_streams` closes the descriptor."""


@asynccontextmanager
async def open_stdio_streams(
    large_json: LargeJson,
    on_timed_out: Callable[[str], None],
) -> AsyncIterator[tuple[ClientMessageReader, ClientMessageWriter]]:
    """Take over fds 0 and 1 and yield the streams that an MCP server runs on.

    The first one ends when stdin does. `on_timed_out` is called with the id of each request that
    the client cancels because it has waited too long.
    """
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    try:
        writer = ClientMessageWriter(sink)
        yield ClientMessageReader(source, writer, large_json, on_timed_out), writer
    finally:
        os.close(source)
        os.close(sink)


def encode_client_message(message: JSONRPCMessage) -> bytes:
    """Return `message` as JSON; what cannot be written costs the answer to that request alone."""
    try:
        return message.model_dump_json(by_alias=True, exclude_unset=True).encode()
    except (ValueError, RecursionError) as exc:
        logger.error("a message to the client cannot be written: %s", exc)
        request_id = message.id if isinstance(message, JSONRPCResponse | JSONRPCError) else None
        error = _error_response(request_id, INTERNAL_ERROR, "The answer cannot be written as JSON.")
        return error.model_dump_json(by_alias=True, exclude_unset=True).encode()


def timed_out_request_id(message: SessionMessage) -> str | None:
    """Return the id of the request that `message` cancels because the client has waited too long.

    Return None for any other message. A cancelled request stops its run, a timed-out one does not.
    The protocol tells them apart only by the wording of the reason; all SDKs say "timed out".
    """
    content = message.message
    if not isinstance(content, JSONRPCNotification):
        return None
    if content.method != "notifications/cancelled":
        return None
    params = content.params or {}
    if "timed out" not in str(params.get("reason")).lower():
        return None
    return str(params.get("requestId"))


def parse_client_message(line: bytes) -> SessionMessage | JSONRPCError:
    """Return the message in `line`, or the error that answers it.

    JSON can contain half of a surrogate pair, which the SDK refuses. Here it stays visible as an
    escape. To parse a long line takes so long that others would wait.
    """
    if refusal := refuse_deep_line(line):
        return refusal
    if len(line) <= MAX_QUICK_LINE_BYTES:
        with suppress(ValidationError):
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    try:
        return build_client_message(json.loads(line))
    except (ValueError, RecursionError) as exc:
        return _not_json_response(exc)


def build_client_message(data: Any) -> SessionMessage | JSONRPCError:
    """Return the message that is JSON `data`, or the error that answers it."""
    data = escape_json_surrogates(data)
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_python(data, by_name=False))
    except ValidationError:
        request_id = data.get("id") if isinstance(data, dict) else None
        return _error_response(request_id, INVALID_REQUEST, "A line is not JSON-RPC.")


def refuse_deep_line(line: bytes) -> JSONRPCError | None:
    """Return the error that answers a line which is nested too deeply to be parsed."""
    if line.count(b"[") + line.count(b"{") <= MAX_DATA_DEPTH:
        return None
    depth, request_id = 0, None
    for found in JSON_TOKENS.finditer(line):
        token = found[0]
        if token in b"[{":
            depth += 1
        elif token in b"]}":
            depth -= 1
        elif token == b'"id"' and depth == 1 and (value := REQUEST_ID.match(line, found.end())):
            request_id = json.loads(value[1])
        if depth > MAX_DATA_DEPTH:
            text = f"A line is nested more than {MAX_DATA_DEPTH} deep."
            return _error_response(request_id, INVALID_REQUEST, text)
    return None


def _not_json_response(exc: Exception) -> JSONRPCError:
    return _error_response(None, PARSE_ERROR, f"A line is not JSON: {exc}")


def _error_response(request_id: Any, code: int, text: str) -> JSONRPCError:
    """Return an error; its id is null unless `request_id` can be that of a request."""
    is_number = type(request_id) is int and abs(request_id) <= MAX_REQUEST_NUMBER
    is_text = isinstance(request_id, str) and len(request_id) <= MAX_REQUEST_ID_CHARS
    return JSONRPCError(
        jsonrpc="2.0",
        id=request_id if is_number or is_text else None,
        error=ErrorData(code=code, message=text),
    )
