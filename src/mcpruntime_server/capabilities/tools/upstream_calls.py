"""Calls to one upstream, and the errors in which they end.

Rule 1: a call that may have reached an upstream is never sent again.
Rule 2: every failure reaches the caller as `CallFailed`, which names the upstream and what to do.
Rule 3: no message contains arguments, environment variables, headers or a URL.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeVar

import anyio
from mcp import MCPError, types
from pydantic import ValidationError

from ...config import UpstreamSettings
from ...errors import CallFailed
from ...journal.call_scope import current_reply_room
from ..redaction import Credentials
from .connection_supervisor import MAX_MESSAGE_CHARS, ConnectionSupervisor
from .direct_requests import CLOSED_MESSAGE
from .large_answers import LargeResult
from .message_limits import LimitExceeded
from .stderr_log import StderrTail
from .tool_list import UpstreamToolList
from .upstream_connection import UpstreamConnection

DRAIN_TIMEOUT_S = 2.0  # for the last stderr of a process that has died
STREAM_LOST_PREFIX = "SSE stream"  # of the SDK's message if only the stream of this call has ended

T = TypeVar("T")


class UpstreamCalls:
    """Sends requests to one upstream, as many at once as its settings allow."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        credentials: Credentials,
        supervisor: ConnectionSupervisor,
        tool_list: UpstreamToolList,
        stderr: StderrTail,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._credentials = credentials
        self._supervisor = supervisor
        self._tool_list = tool_list
        self._stderr = stderr
        self._slots = anyio.Semaphore(settings.max_concurrency, fast_acquire=True)
        self._active = 0
        self._used_at = 0.0
        self._on_idle = on_idle  # called when the last request has ended

    @property
    def is_active(self) -> bool:
        """Whether a request is under way, or waits for its turn."""
        return self._active > 0

    @property
    def idle_s(self) -> float:
        """The seconds since the last use; 0 while a request is under way."""
        return 0.0 if self.is_active else anyio.current_time() - self._used_at

    def mark_used(self) -> None:
        """Count the idle time from now on."""
        self._used_at = anyio.current_time()

    async def call_tool(
        self, tool: str, arguments: Mapping[str, Any]
    ) -> types.CallToolResult | LargeResult:
        """Return the result of a call; only a large one is without credentials already.

        Raises `CallFailed`.
        """
        contract = self._tool_list.find_contract(tool)

        async def call(connection: UpstreamConnection) -> types.CallToolResult | LargeResult:
            result = await connection.call_tool(tool, arguments, contract)
            if not isinstance(result, LargeResult):
                await self._tool_list.output_checks.check(tool, result)
            return result

        return await self.send(tool, call)

    async def send(
        self, operation: str, request: Callable[[UpstreamConnection], Awaitable[T]]
    ) -> T:
        """Run `request` with the live connection; errors call it `operation`.

        It waits for a slot, and until the sandbox that waits for the answer has room for it. Raises
        `CallFailed`.
        """
        self._active += 1
        try:
            return await self._send_in_turn(operation, request)
        finally:
            self._active -= 1
            self.mark_used()
            if not self._active:
                self._on_idle()

    async def _send_in_turn(
        self, operation: str, request: Callable[[UpstreamConnection], Awaitable[T]]
    ) -> T:
        room = current_reply_room()
        while True:
            await room.wait_for_room()  # and keep no slot from others meanwhile
            async with self._slots:
                if room.has_room:
                    return await self._send(operation, request)

    async def _send(self, tool: str, request: Callable[[UpstreamConnection], Awaitable[T]]) -> T:
        supervisor = self._supervisor
        connection = await supervisor.connect()
        try:
            try:
                return await request(connection)
            except MCPError as error:
                if not connection.is_session_expired(error):
                    raise
                supervisor.mark_disconnected(connection)
                connection = await supervisor.connect()
                return await request(connection)
        except MCPError as error:
            if error.code == types.CONNECTION_CLOSED and error.message == CLOSED_MESSAGE:
                supervisor.mark_disconnected(connection)
                with anyio.move_on_after(DRAIN_TIMEOUT_S):
                    await connection.closed.wait()
                stderr = await self._stderr.quote()
                self._raise_disconnected(tool, connection.close_reason, stderr)
            if problem := connection.transport.messages.find_problem(error):
                self._raise_unusable(tool, problem)
            self._raise_mcp_error(tool, error, connection)
        except (ValidationError, RuntimeError, ValueError) as error:
            self._raise_unusable(tool, error)
        except (OSError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            stderr = await self._stderr.quote()
            self._raise_disconnected(tool, type(error).__name__, stderr)

    def _raise_mcp_error(
        self, tool: str, error: MCPError, connection: UpstreamConnection
    ) -> NoReturn:
        """Raise the error that the caller of `tool` gets for `error`."""
        if error.code == types.REQUEST_TIMEOUT:
            self._raise_timeout(tool, connection)
        if error.code == types.CONNECTION_CLOSED and error.message.startswith(STREAM_LOST_PREFIX):
            self._raise_disconnected(tool, "the stream of its answer ended early")
        kind = "invalid_arguments" if error.code == types.INVALID_PARAMS else "tool_error"
        message = self._credentials.redact_text(error.message)[:MAX_MESSAGE_CHARS]
        raise CallFailed(kind, message, data=self._credentials.redact(error.data)) from None

    def _raise_timeout(self, tool: str, connection: UpstreamConnection) -> NoReturn:
        table = f"[mcpServers.{self._name}]"
        message = (
            f"{self._name}.{tool} did not answer within {self._settings.timeout_s:g} s "
            "and may still be running."
        )
        remedy = f"Request less at a time, or raise `timeout_s` under {table}."
        if connection.transport.messages.budget.is_exceeded:
            message += (
                f" The server sends more than {self._settings.messages_per_s:,} messages a second "
                "that nobody has asked for, so it is read slowly."
            )
            remedy = f"Raise `messages_per_s` or `timeout_s` under {table}."
        raise CallFailed("timeout", message, remedy=remedy) from None

    def _raise_disconnected(self, tool: str, how: str, stderr: str = "") -> NoReturn:
        raise CallFailed(
            "unavailable",
            f"The upstream {self._name} disconnected while it worked on {tool} ({how}).",
            remedy="The call may or may not have taken effect: check before you repeat a write. "
            f"The next call connects again.{stderr}",
        ) from None

    def _raise_unusable(self, tool: str, problem: Exception) -> NoReturn:
        """Raise the error for an answer that exceeds a limit or breaks the protocol."""
        if isinstance(problem, LimitExceeded):
            setting = problem.setting
            table = f"[mcpServers.{self._name}]"
            raising = f", or raise `{setting}` under {table}" if setting else ""
            raise CallFailed(
                "too_large",
                f"The upstream {self._name} answered {tool} with {problem.limit}.",
                remedy="The call has probably taken effect: check before you repeat a write. "
                f"Request less at a time{raising}.",
            ) from None
        detail = self._credentials.redact_text(str(problem))[:MAX_MESSAGE_CHARS]
        raise CallFailed(
            "protocol",
            f"The upstream {self._name} answered {tool} in violation of its own contract: {detail}",
            remedy="The call has probably taken effect. The server needs a fix or an update.",
        ) from None
