"""The messages that a child process writes to its stdout, read within limits.

Rule 1: a request gets its answer, or an error that names the limit. If a line does not say which
request it answers, the oldest open one gets the error: it would wait in vain.
Rule 2: one turn of the event loop reads one chunk and works for a few milliseconds. A large line is
handed to its request as it is (`large_answers`), and nothing is read meanwhile. The few that the
SDK waits for are parsed in a thread, and have few values; nobody parses one that was not asked for.
Rule 3: reading stops while the SDK has many messages to handle, and while the process has sent more
than it may. Then the process waits in `write`; there is no queue here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from functools import partial
from typing import Any, Self

import anyio
from anyio.abc import AsyncResource
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, jsonrpc_message_adapter

from .direct_requests import DirectRequests, LargeLine
from .line_buffer import LineBuffer, SkippedLine, find_request_id, is_request
from .message_limits import (
    LARGE_BYTES,
    LIMIT_ERROR_CODE,
    MB,
    LimitExceeded,
    check_result,
    parse_for_sdk,
    parse_upstream_message,
)
from .unrequested_messages import MessageFilter

READ_CHUNK_BYTES = 64 * 1024
MAX_WAITING_MESSAGES = 20  # for the SDK; then the process waits until it has read some
MAX_TURN_S = 0.004
ID_BYTES = 512  # at either end of a line, in which its id is looked for


class UpstreamMessageReader(AsyncResource):
    """The messages for the SDK; sets `ended` when no more can come.

    Answers to `requests` are taken out as they arrive, in a callback of the event loop, which saves
    a task switch.
    """

    def __init__(
        self, stdout: int, ended: anyio.Event, requests: DirectRequests, messages: MessageFilter
    ) -> None:
        self._stdout = stdout
        self._ended = ended
        self._requests = requests
        self._filter = messages
        self._loop = asyncio.get_running_loop()
        self._lines = LineBuffer(messages.limits)
        self._messages: deque[SessionMessage] = deque()  # for the SDK
        self._has_message = anyio.Event()
        self._is_reading = False
        self._parsing: asyncio.Future[Any] | None = None
        self._is_lent = False  # a large line is being read by its request
        self._pause: asyncio.TimerHandle | asyncio.Handle | None = None
        self._is_stopped = False
        self._is_at_end = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage:
        while not self._messages:
            if self._is_at_end:
                self._ended.set()
                raise StopAsyncIteration
            self._has_message = anyio.Event()
            await self._has_message.wait()
        message = self._messages.popleft()
        if len(self._messages) == MAX_WAITING_MESSAGES - 1:
            self._continue()
        return message

    async def receive(self) -> SessionMessage:
        """Return the next message; raises `anyio.EndOfStream` after the last one."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    def start(self) -> None:
        """Read what the process writes from here on."""
        self._continue()

    def stop(self) -> None:
        """Leave what the process writes in the pipe."""
        self._is_stopped = True
        self._stop_reading()
        if self._pause is not None:
            self._pause.cancel()

    def _read_chunk(self) -> None:
        """Read what is in the pipe."""
        try:
            chunk = os.read(self._stdout, READ_CHUNK_BYTES)
        except BlockingIOError:  # a spurious wake-up
            return
        except OSError:
            chunk = b""
        if chunk:
            self._lines.feed(chunk)
        else:
            self._end("its connection closed")
        self._continue()

    def _continue(self) -> None:
        """Handle the lines that have arrived, as many as may be handled now, or else read more."""
        self._handle_lines()
        is_waiting = self._is_busy or len(self._messages) >= MAX_WAITING_MESSAGES
        if is_waiting or self._is_at_end or self._is_stopped:
            self._stop_reading()
        elif not self._is_reading:
            self._is_reading = True
            self._loop.add_reader(self._stdout, self._read_chunk)
        if self._messages or self._is_at_end:
            self._has_message.set()

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._stdout)

    @property
    def _is_busy(self) -> bool:
        """Whether the next line has to wait."""
        return self._parsing is not None or self._is_lent or self._pause is not None

    def _handle_lines(self) -> None:
        turn_ends_at = time.perf_counter() + MAX_TURN_S
        while not (self._is_busy or self._is_at_end or self._is_stopped):
            if wait_s := self._filter.wait_s():
                self._pause = self._loop.call_later(wait_s, self._end_pause)
                return
            if not self._lines.has_lines or len(self._messages) >= MAX_WAITING_MESSAGES:
                return
            if time.perf_counter() > turn_ends_at:
                self._pause = self._loop.call_soon(self._end_pause)
                return
            line = self._lines.take()
            if isinstance(line, SkippedLine):
                self._take_skipped(line)
            elif len(line) > LARGE_BYTES:
                self._take_large(line)
            else:
                self._take_line(line)

    def _end_pause(self) -> None:
        self._pause = None
        self._continue()

    def _take_large(self, line: bytes | bytearray) -> None:
        """Hand a large line to the request that it answers, or have it parsed for the SDK."""
        first = line[:ID_BYTES]
        request_id = find_request_id(first, line[-ID_BYTES:])
        if is_request(first):
            self._filter.refuse_line(len(line))
        elif self._requests.take_large(request_id, LargeLine(line, self._end_loan)):
            self._is_lent = True
        elif request_id is None or not self._filter.expects_answer(request_id):
            self._filter.refuse_line(len(line))
        else:
            self._parsing = self._loop.run_in_executor(None, parse_for_sdk, line)
            self._parsing.add_done_callback(partial(self._end_parsing, line))

    def _end_loan(self) -> None:
        """Go on once the request has read its line."""
        if self._is_lent:
            self._is_lent = False
            self._continue()

    def _end_parsing(self, line: bytes | bytearray, parsed: asyncio.Future[Any]) -> None:
        self._parsing = None
        if parsed.cancelled() or self._is_stopped:
            return
        if isinstance(problem := parsed.exception(), ValueError):
            self._refuse_line(line, problem)
        else:
            self._take_message(parsed.result(), line)
        self._continue()

    def _take_line(self, line: bytes | bytearray) -> None:
        try:
            message = parse_upstream_message(line)
        except ValueError as problem:
            self._refuse_line(line, problem)
        else:
            self._take_message(message, line)

    def _take_message(self, message: Any, line: bytes | bytearray) -> None:
        """Hand a message to the request that it answers, or to the SDK."""
        try:
            check_result(message, self._filter.limits)
            if self._requests.take_answer(message) or not self._filter.admits(message, len(line)):
                return
            validated = jsonrpc_message_adapter.validate_python(message, by_name=False)
            self._messages.append(SessionMessage(validated))
        except ValueError as problem:
            self._refuse_line(line, problem)

    def _refuse_line(self, line: bytes | bytearray, problem: ValueError) -> None:
        """Report a line that is not a message, or not one that may be taken."""
        request_id = find_request_id(line[:ID_BYTES], line[-ID_BYTES:])
        if request_id is None or not self._fail_request(request_id, problem):
            self._filter.refuse_line(len(line))

    def _take_skipped(self, line: SkippedLine) -> None:
        if line.is_endless:
            self._fail_oldest(line.reason)
            megabytes = self._filter.limits.message_bytes // MB
            self._end(f"it sent a line of many times {megabytes:,} MB")
            return
        request_id = find_request_id(line.first, line.last)
        if request_id is not None and self._fail_request(request_id, line.reason):
            return
        if request_id is None and not is_request(line.first):
            self._fail_oldest(line.reason)
        self._filter.refuse_line(self._filter.limits.message_bytes)

    def _fail_request(self, request_id: int, problem: ValueError) -> bool:
        """End a request with an error; return whether it was open."""
        if self._requests.fail(request_id, problem):
            return True
        if not self._filter.takes_answer(request_id):
            return False
        self._append_error(request_id, problem)
        return True

    def _fail_oldest(self, problem: LimitExceeded) -> None:
        """End the request that has waited longest; those of the SDK are few, and come last."""
        request_id = self._requests.oldest_request
        if request_id is not None:
            self._requests.fail(request_id, problem)
        elif (other := self._filter.oldest_request) is not None:
            self._filter.takes_answer(other)
            self._append_error(other, problem)

    def _append_error(self, request_id: int | str, problem: ValueError) -> None:
        self._filter.last_problem = problem
        error = ErrorData(code=LIMIT_ERROR_CODE, message=str(problem))
        answer = JSONRPCError(jsonrpc="2.0", id=request_id, error=error)
        self._messages.append(SessionMessage(answer))

    def _end(self, reason: str) -> None:
        """Read no more: `reason` is a clause for people."""
        self._requests.close(reason)
        self._is_at_end = True
        self._stop_reading()

    async def aclose(self) -> None:
        """Do nothing: the pipe belongs to `open_stdio_client`."""
