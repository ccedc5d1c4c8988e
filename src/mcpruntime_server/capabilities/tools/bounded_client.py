"""An HTTP client that takes no more from an upstream than one message may be.

Rule 1: a body is read here, up to the limit, before the SDK parses it. What exceeds a limit is
answered to the request alone, as an error that names the limit.
Rule 2: bodies are not compressed: a kilobyte could become a gigabyte. One that is compressed all
the same is refused.
Rule 3: an event stream is read at the rate of what nobody has asked for, apart from its first
events, which answer the request. Redirects are the SDK's: it follows none to another host.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2

from ...protocol.json_limits import ValueCounter
from ..trace_context import add_trace_context
from .message_limits import (
    LARGE_BYTES,
    LIMIT_ERROR_CODE,
    LimitExceeded,
    check_result,
    parse_message,
)
from .unrequested_messages import DROPPED_COST, MessageFilter

EVENT_STREAM = "text/event-stream"
LENGTH_HEADERS = ("content-length", "transfer-encoding")  # the body here is whole
FREE_EVENTS = 3  # of a stream: one that names it, a notification, and the answer
BODY_TIME_FACTOR = 2.0  # a body may take so many times as long as a call


class BoundedClient(httpx2.AsyncClient):
    """The client for one upstream; a body may take `body_timeout_s`."""

    def __init__(self, messages: MessageFilter, body_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self.headers["accept-encoding"] = "identity"
        self._messages = messages
        self._body_timeout_s = body_timeout_s

    async def send(
        self, request: httpx2.Request, *, stream: bool = False, **options: Any
    ) -> httpx2.Response:
        """Send a request, and return a response within the limits."""
        add_trace_context(request.headers)
        response = await super().send(request, stream=True, **options)
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise LimitExceeded("a compressed body, although it was told not to compress")
            if content_type == EVENT_STREAM and stream:
                response.stream = BoundedEvents(response.stream, self._messages)
                return response
            body = await self._read_body(response, is_json=content_type == "application/json")
        except LimitExceeded as problem:
            await response.aclose()
            return self._refuse(request, problem)
        kept = httpx2.Response(
            response.status_code,
            headers=[each for each in response.headers.items() if each[0] not in LENGTH_HEADERS],
            content=body,
            request=request,
        )
        kept.next_request = response.next_request
        return kept

    async def _read_body(self, response: httpx2.Response, *, is_json: bool) -> bytes:
        """Return a body that is within the limits; raises `LimitExceeded`."""
        limits = self._messages.limits
        body, counter = bytearray(), ValueCounter()
        with anyio.move_on_after(self._body_timeout_s) as scope:
            async for data in response.aiter_raw():
                body += data
                if len(body) > limits.message_bytes:
                    raise limits.bytes_exceeded
                if counter.feed(data) > limits.values:
                    raise limits.values_exceeded
            await response.aclose()
        if scope.cancelled_caught:
            raise LimitExceeded(f"a body that takes more than {self._body_timeout_s:g} s")
        return await self._check_message(body) if is_json and body else bytes(body)

    async def _check_message(self, body: bytearray) -> bytes:
        """Return a JSON body with shortened lists; raises `LimitExceeded`."""
        try:
            if len(body) > LARGE_BYTES:
                message = await anyio.to_thread.run_sync(parse_message, body)
            else:
                message = parse_message(body)
        except LimitExceeded:
            raise
        except ValueError:
            return bytes(body)  # the SDK says what is wrong with it
        is_changed = check_result(message, self._messages.limits)
        return json.dumps(message).encode() if is_changed else bytes(body)

    def _refuse(self, request: httpx2.Request, problem: LimitExceeded) -> httpx2.Response:
        """Return the error that the SDK gets in place of a response."""
        self._messages.last_problem = problem
        try:
            request_id = json.loads(request.content).get("id")
        except (ValueError, AttributeError, httpx2.StreamError):
            request_id = None
        error = {"code": LIMIT_ERROR_CODE, "message": str(problem)}
        answer = {"jsonrpc": "2.0", "id": request_id, "error": error}
        return httpx2.Response(200, json=answer, request=request)


class BoundedEvents(httpx2.AsyncByteStream):
    """An event stream whose events are within the limits, and which is read at a bounded rate."""

    def __init__(self, stream: Any, messages: MessageFilter) -> None:
        self._stream = stream
        self._messages = messages
        self._free_events = FREE_EVENTS

    async def __aiter__(self) -> AsyncIterator[bytes]:
        limits = self._messages.limits
        size, counter, last = 0, ValueCounter(), b""
        async for data in self._stream:
            ended = (last[-1:] + data).replace(b"\r", b"")
            events = ended.count(b"\n\n")
            if events:
                size, counter = 0, ValueCounter()
            size += len(data)
            if size > limits.message_bytes:
                self._fail(limits.bytes_exceeded)
            if counter.feed(data) > limits.values:
                self._fail(limits.values_exceeded)
            last = data
            charged = max(0, events - self._free_events)
            self._free_events = max(0, self._free_events - events)
            self._messages.budget.charge(charged + DROPPED_COST * data.count(b"\n") * (not events))
            yield data
            if wait_s := self._messages.wait_s():
                await anyio.sleep(wait_s)

    def _fail(self, problem: LimitExceeded) -> None:
        self._messages.stream_problem = problem
        raise httpx2.SSEError(str(problem))

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()
