"""Server-sent events: the response that streams a run until its end.

A client that stops reading stops its own stream: nothing is read for it until there is room in the
buffers of its connection. A client that leaves ends its stream only; the run goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import anyio
from anyio.lowlevel import checkpoint
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import McpRuntimeError, RateLimited
from ..runtime.shutdown import cancel_when_set
from .http_connections import cancel_when_closed
from .problems import build_problem
from .run_events import EncodedEvent, format_event_id

EVENT_STREAM_TYPE = "text/event-stream"
HEARTBEAT_S = 15.0  # without an event; proxies close silent connections after 30 to 60 s
RETRY_MS = 1_000  # before a client that has lost its connection comes back
MAX_STREAM_S = 900.0  # then it comes back, and shows its token again
MAX_STREAMS = 300  # of one principal at once, so that others have connections
STREAM_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx passes every event on at once
    "X-Content-Type-Options": "nosniff",
}
HEARTBEAT = b": heartbeat\n\n"


class EventSource(Protocol):
    """Where the events of a stream come from."""

    async def next_events(self) -> Sequence[EncodedEvent]:
        """Return the next events, waiting for one if necessary; none if there are no more."""
        ...


class EventStreamResponse(Response):
    """Streams the events of run `run_id` until its end, or until the server stops.

    It lasts `MAX_STREAM_S` at most. It counts among the open `streams` meanwhile, and sends when it
    is its turn among them.
    """

    media_type = EVENT_STREAM_TYPE

    def __init__(
        self,
        run_id: str,
        source: EventSource,
        is_stopping: anyio.Event,
        headers: Mapping[str, str],
        streams: AbstractContextManager[OpenResponses | None],
    ) -> None:
        super().__init__(None, headers={**STREAM_HEADERS, **headers})
        del self.headers["content-length"]
        self._run_id = run_id
        self._source = source
        self._is_stopping = is_stopping
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they happen."""
        with self._streams as streams:
            await self._send_stream(scope, send, streams)

    async def _send_stream(self, scope: Scope, send: Send, streams: OpenResponses | None) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        if scope["method"] != "HEAD":
            async with anyio.create_task_group() as tasks:
                tasks.cancel_scope.deadline = anyio.current_time() + MAX_STREAM_S
                tasks.start_soon(cancel_when_set, self._is_stopping, tasks.cancel_scope)
                with cancel_when_closed(scope, tasks.cancel_scope):
                    await self._send_events(send, streams)
                tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _send_events(self, send: Send, streams: OpenResponses | None) -> None:
        await send_chunk(send, f"retry: {RETRY_MS}\n\n".encode())
        while True:
            with anyio.move_on_after(HEARTBEAT_S) as quiet:
                try:
                    events = await self._source.next_events()
                except McpRuntimeError as exc:
                    problem = build_problem(exc).model_dump_json()
                    await send_chunk(send, f"event: error\ndata: {problem}\n\n".encode())
                    return
            if quiet.cancelled_caught:
                await send_chunk(send, HEARTBEAT)
            elif events:
                if streams is not None:
                    await streams.take_turn()
                chunk = encode_events(self._run_id, events)
                events = ()  # the client may take its time
                await send_chunk(send, chunk)
            else:
                return


class OpenResponses:
    """Counts the responses of one kind that each principal has open; `kind` is a plural."""

    def __init__(self, kind: str, max_count: int) -> None:
        self._kind = kind
        self._max_count = max_count
        self._counts: Counter[str] = Counter()
        self._turn = anyio.Lock()

    async def take_turn(self) -> None:
        """Wait until no other response sends in this turn of the event loop.

        An event wakes all who follow a run: to send it to 200 of them takes 60 ms.
        """
        async with self._turn:
            await checkpoint()

    def admit(self, principal: str) -> AbstractContextManager[OpenResponses]:
        """Return what counts another one while it is entered; raises `RateLimited`."""
        if self._counts[principal] >= self._max_count:
            raise RateLimited(
                f"{self._max_count} {self._kind} are open already.",
                remedy="Close some, or read them to their end.",
                retry_after_s=HEARTBEAT_S,
            )
        return self._count(principal)

    @contextmanager
    def _count(self, principal: str) -> Iterator[OpenResponses]:
        self._counts[principal] += 1
        try:
            yield self
        finally:
            self._counts[principal] -= 1
            if not self._counts[principal]:
                del self._counts[principal]


async def send_chunk(send: Send, body: bytes) -> None:
    """Send a part of a stream; returns when there is room for the next one."""
    await send({"type": "http.response.body", "body": body, "more_body": True})


def encode_events(run_id: str, events: Iterable[EncodedEvent]) -> bytes:
    """Return events in the format of a stream."""
    return b"".join(
        b"id: %s\nevent: %s\ndata: %s\n\n"
        % (format_event_id(run_id, each.position).encode(), each.type.encode(), each.data)
        for each in events
    )
