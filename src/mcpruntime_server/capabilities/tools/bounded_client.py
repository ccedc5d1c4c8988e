"""An HTTP client that takes no more from an upstream than one message may be.

Rule 1: a body is read here, up to the limit, before the SDK parses it. What exceeds a limit is
answered to the request alone, as an error that names the limit.
A large answer is read by a process of its own (`stashed_answers`).
Rule 2: bodies are not compressed: a kilobyte could become a gigabyte. One that is compressed all
the same is refused.
Rule 3: an event stream is read at the rate of what nobody has asked for, apart from its first
events, which answer the request. Redirects are the SDK's: it follows none to another host.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

import anyio
import httpx2

from ...protocol.json_limits import ValueCounter
from ..trace_context import add_trace_context
from .large_answers import OtherAnswer
from .message_limits import (
    LARGE_BYTES,
    LIMIT_ERROR_CODE,
    LimitExceeded,
    check_result,
    parse_upstream_message,
)
from .spliced_arguments import SplicedArguments
from .stashed_answers import StashedAnswers, encode_answer
from .unrequested_messages import DROPPED_COST, MessageFilter

EVENT_STREAM = "text/event-stream"
LENGTH_HEADERS = ("content-length", "transfer-encoding")  # the body here is whole
EVENT_BREAK = re.compile(rb"\r\n\r\n|\n\n|\r\r")
MAX_BREAK_BYTES = 3  # of a break that may continue
FREE_EVENTS = 3  # of a stream: one that names it, a notification, and the answer
BODY_TIME_FACTOR = 2.0  # a body may take so many times as long as a call


class BoundedClient(httpx2.AsyncClient):
    """The client for one upstream; a body may take `body_timeout_s`."""

    def __init__(
        self,
        messages: MessageFilter,
        stash: StashedAnswers,
        spliced: SplicedArguments,
        body_timeout_s: float,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._stash = stash
        self._spliced = spliced
        self.headers["accept-encoding"] = "identity"
        self._messages = messages
        self._body_timeout_s = body_timeout_s

    async def send(
        self, request: httpx2.Request, *, stream: bool = False, **options: Any
    ) -> httpx2.Response:
        """Send a request, and return a response within the limits."""
        add_trace_context(request.headers)
        sent = self._spliced.fill_in(request)
        response = await super().send(sent, stream=True, **options)
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise LimitExceeded("a compressed body, although it was told not to compress")
            if content_type == EVENT_STREAM and stream:
                replace = partial(self._replace_large, request)
                response.stream = BoundedEvents(response.stream, self._messages, replace)
                return response
            body = await self._read_body(response)
            if content_type == "application/json" and body:
                body = await self._check_message(request, body)
        except LimitExceeded as problem:
            await response.aclose()
            self._messages.last_problem = problem
            error = {"code": LIMIT_ERROR_CODE, "message": str(problem)}
            answer = encode_answer(find_sdk_request(request), error=error)
            headers = {"content-type": "application/json"}
            return httpx2.Response(200, content=answer, headers=headers, request=request)
        kept = httpx2.Response(
            response.status_code,
            headers=[each for each in response.headers.items() if each[0] not in LENGTH_HEADERS],
            content=body,
            request=request,
        )
        kept.next_request = response.next_request
        return kept

    async def _read_body(self, response: httpx2.Response) -> bytes:
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
        return bytes(body)

    async def _check_message(self, request: httpx2.Request, body: bytes) -> bytes:
        """Return a JSON body with shortened lists, or what stands for a large one.

        Raises `LimitExceeded`.
        """
        if len(body) > LARGE_BYTES:
            return await self._replace_large(request, body) or body
        try:
            message = parse_upstream_message(body)
        except LimitExceeded:
            raise
        except ValueError:
            return body  # the SDK says what is wrong with it
        is_changed = check_result(message, self._messages.limits)
        return json.dumps(message).encode() if is_changed else body

    async def _replace_large(self, request: httpx2.Request, answer: bytes) -> bytes:
        """Return what stands for a large answer to a request; nothing if it answers another one.

        Raises `LimitExceeded`.
        """
        try:
            return await self._stash.replace(request.content, answer)
        except OtherAnswer:
            self._messages.refuse_line(len(answer))
            return b""
        except LimitExceeded:
            raise
        except ValueError as problem:
            self._messages.last_problem = problem
            error = {"code": LIMIT_ERROR_CODE, "message": str(problem)}
            return encode_answer(find_sdk_request(request), error=error)


def find_sdk_request(request: httpx2.Request) -> Any:
    """Return the id of the message in an HTTP request, None if it has none."""
    try:
        return json.loads(request.content).get("id")
    except (ValueError, AttributeError, httpx2.StreamError):
        return None


class BoundedEvents(httpx2.AsyncByteStream):
    """An event stream whose events are within the limits, and which is read at a bounded rate.

    `replace_large` returns what stands for a large message.
    """

    def __init__(
        self,
        stream: Any,
        messages: MessageFilter,
        replace_large: Callable[[bytes], Awaitable[bytes]],
    ) -> None:
        self._stream = stream
        self._messages = messages
        self._replace_large = replace_large
        self._free_events = FREE_EVENTS

    async def __aiter__(self) -> AsyncIterator[bytes]:
        unfinished = bytearray()
        async for data in self._read_bounded():
            searched = max(0, len(unfinished) - MAX_BREAK_BYTES)
            unfinished += data
            ends = [found.end() for found in EVENT_BREAK.finditer(unfinished, searched)]
            if not ends:
                continue
            events = bytes(unfinished[: ends[-1]])
            del unfinished[: ends[-1]]
            yield events if len(events) <= LARGE_BYTES else await self._replace_events(events)
        if unfinished:
            yield bytes(unfinished)

    async def _replace_events(self, events: bytes) -> bytes:
        """Return events with what stands for the large messages in them."""
        parts = EVENT_BREAK.split(events)
        replaced = [
            part if len(part) <= LARGE_BYTES else await self._replace_event(part) for part in parts
        ]
        return b"\n\n".join(replaced)

    async def _replace_event(self, event: bytes) -> bytes:
        lines = event.splitlines()
        data = [line[5:].removeprefix(b" ") for line in lines if line[:5] == b"data:"]
        try:
            message = await self._replace_large(b"\n".join(data))
        except LimitExceeded as problem:
            self._fail(problem)
        others = [line for line in lines if line[:5] != b"data:"]
        return b"\n".join([*others, b"data: " + message] if message else others)

    async def _read_bounded(self) -> AsyncIterator[bytes]:
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

    def _fail(self, problem: LimitExceeded) -> NoReturn:
        self._messages.stream_problem = problem
        raise httpx2.SSEError(str(problem))

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()
