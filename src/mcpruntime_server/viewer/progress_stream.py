"""Server-sent events about work that takes a while: what is done now, and what came of it.

The work ends with its request: a person who cancels it, or closes the page, leaves nothing behind
that nobody sees.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import McpRuntimeError
from ..journal.progress import ReportProgress
from ..runtime.shutdown import cancel_when_set
from ..service.event_stream import (
    EVENT_STREAM_TYPE,
    HEARTBEAT,
    HEARTBEAT_S,
    STREAM_HEADERS,
    send_chunk,
)
from ..service.http_connections import cancel_when_closed
from ..service.problems import build_problem
from .page_rendering import PAGE_SECURITY_HEADERS

Work = Callable[[ReportProgress], Awaitable[str]]  # returns JSON


class ProgressResponse(Response):
    """Does `work` and streams what it reports; its result, or the error, is the last event."""

    media_type = EVENT_STREAM_TYPE

    def __init__(self, work: Work, is_stopping: anyio.Event) -> None:
        super().__init__(None, headers={**STREAM_HEADERS, **PAGE_SECURITY_HEADERS})
        del self.headers["content-length"]
        self._work = work
        self._is_stopping = is_stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they happen."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        # What the work reports is short, so nothing that is not sent yet needs a bound.
        writer, reader = anyio.create_memory_object_stream[bytes](math.inf)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_when_set, self._is_stopping, tasks.cancel_scope)
            tasks.start_soon(self._do_work, writer)
            with cancel_when_closed(scope, tasks.cancel_scope):
                await send_parts(reader, send)
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _do_work(self, writer: MemoryObjectSendStream[bytes]) -> None:
        """Do the work, and write its events."""
        async with writer:
            try:
                result = await self._work(
                    lambda text: writer.send_nowait(encode_event("progress", json.dumps(text)))
                )
            except McpRuntimeError as exc:
                await writer.send(encode_event("error", build_problem(exc).model_dump_json()))
            else:
                await writer.send(encode_event("done", result))


async def send_parts(reader: MemoryObjectReceiveStream[bytes], send: Send) -> None:
    """Send what is written until its end, and signs of life while there is nothing."""
    async with reader:
        while True:
            with anyio.move_on_after(HEARTBEAT_S) as quiet:
                try:
                    part = await reader.receive()
                except anyio.EndOfStream:
                    return
            await send_chunk(send, HEARTBEAT if quiet.cancelled_caught else part)


def encode_event(kind: str, data: str) -> bytes:
    """Return an event, whose data is JSON in one line, in the format of a stream."""
    return f"event: {kind}\ndata: {data}\n\n".encode()
