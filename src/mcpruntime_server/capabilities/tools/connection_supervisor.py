"""Opens the connection to one upstream on request, keeps it, and opens it again after it ended.

Rule 1: a connection belongs to one task, `ConnectionSupervisor.run`. Callers only use it.
Rule 2: every failure to connect reaches all who wait, each with an exception of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import anyio
from mcp import Client, MCPError, types
from pydantic import ValidationError

from ... import APP_NAME
from ...config import UpstreamSettings
from ...errors import CallFailed
from ..redaction import Credentials
from .direct_requests import CLOSED_MESSAGE, DirectCalls
from .large_answers import LargeAnswers
from .message_limits import LimitExceeded, MessageLimits
from .output_checks import accept_result
from .paged_lists import LIST_KINDS, page_bounds
from .stashed_answers import StashedAnswers
from .stderr_log import StderrTail
from .tool_list import UpstreamToolList
from .tool_list_watch import ToolListWatch
from .transport import TransportState, open_transport
from .unrequested_messages import MessageFilter
from .upstream_connection import UpstreamConnection

MAX_MESSAGE_CHARS = 2_000  # characters that an upstream may contribute to an error
MIN_RETRY_DELAY_S = 0.2  # before the next connection after one that failed or did not last
MAX_RETRY_DELAY_S = 30.0
STABLE_CONNECTION_S = 10.0  # after a connection that lived so long, the next needs no delay

UpstreamState = Literal["idle", "connecting", "ready", "failed"]


@dataclass(frozen=True)
class UpstreamStatus:
    """The state of an upstream; `error` says why the last attempt to connect failed."""

    state: UpstreamState
    error: str = ""


class ConnectAttempt:
    """One attempt to connect, for which any number of callers wait."""

    def __init__(self) -> None:
        self.requested = anyio.Event()
        self.started_at: float | None = None
        self.finished = anyio.Event()
        self.failure: Callable[[], CallFailed] | None = None


class RetrySchedule:
    """When to connect again: at once, or later and later after connections that failed."""

    def __init__(self) -> None:
        self._failures = 0  # connections in a row that failed or did not last
        self._retry_at = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether it is too early for the next attempt."""
        return anyio.current_time() < self._retry_at

    async def wait(self) -> None:
        """Wait until the next attempt may begin."""
        await anyio.sleep(max(0.0, self._retry_at - anyio.current_time()))

    def record_end(self, *, is_failure: bool) -> None:
        """Note how a connection has ended; the delays after failures grow, with jitter."""
        if not is_failure:
            self._failures, self._retry_at = 0, 0.0
            return
        delay_s = MIN_RETRY_DELAY_S * 2.0 ** min(self._failures, 16)
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - not used for security
        self._failures += 1
        self._retry_at = anyio.current_time() + min(delay_s, MAX_RETRY_DELAY_S) * jitter


class ConnectionSupervisor:
    """Opens and holds the connection to one upstream."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        base_dir: Path,
        stderr: StderrTail,
        credentials: Credentials,
        tool_list: UpstreamToolList,
        tool_list_watch: ToolListWatch,
        hold_slot: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        self._name = name
        self._settings = settings
        self._base_dir = base_dir
        self._stderr = stderr
        self._credentials = credentials
        self._tool_list = tool_list
        self._tool_list_watch = tool_list_watch
        self._hold_slot = hold_slot  # of a limited number, for as long as a connection exists
        self._is_closed = False
        self._is_ended_here = False  # the current connection did not end by itself
        self._connection: UpstreamConnection | None = None
        self._attempt = ConnectAttempt()
        self._failure: Callable[[], CallFailed] | None = None
        self._retries = RetrySchedule()

    @property
    def status(self) -> UpstreamStatus:
        """The current state; reading it does not start the upstream."""
        error = self._failure().message if self._failure else ""
        if self._connection:
            return UpstreamStatus("ready")
        if self._attempt.started_at is not None:
            return UpstreamStatus("connecting", error)
        return UpstreamStatus("failed", error) if error else UpstreamStatus("idle")

    @property
    def failure(self) -> CallFailed | None:
        """Why the last attempt to connect failed, or None if it did not fail."""
        return self._failure() if self._failure else None

    @property
    def connecting_s(self) -> float:
        """The seconds for which the current attempt to connect has lasted; 0 if there is none."""
        since = self._attempt.started_at
        return 0.0 if since is None else anyio.current_time() - since

    def request(self) -> None:
        """Start to connect, if the upstream is not connected, without waiting for it."""
        if self._connection is None:
            self._attempt.requested.set()

    async def connect(self) -> UpstreamConnection:
        """Return the live connection, which is opened if needed; raises `CallFailed`."""
        while self._connection is None:
            attempt = self._attempt
            must_wait = attempt.started_at is None and self._retries.is_waiting
            if self._failure and (must_wait or self._is_closed):
                raise self._failure()
            attempt.requested.set()
            await attempt.finished.wait()
            if attempt.failure:
                raise attempt.failure()
        return self._connection

    def mark_disconnected(self, connection: UpstreamConnection) -> None:
        """Record that `connection` has ended; the next caller requests a new one."""
        connection.transport.ended.set()
        if self._connection is connection:
            self._connection = None

    def refuse(self, failure: Callable[[], CallFailed]) -> None:
        """Refuse every connection from now on, with the failure as the reason."""
        self._is_closed = True
        self._finish_attempt(failure)

    def disconnect(self) -> None:
        """End the connection, if there is one; the next caller requests a new one."""
        if self._connection is not None:
            self._is_ended_here = True
            self.mark_disconnected(self._connection)

    async def refresh_tools(self) -> None:
        """List the tools of a connected upstream again, before it announces a change."""
        if self._connection:
            await self._tool_list_watch.refresh(self._connection)

    # the task that owns the connection ------------------------------------------------------------

    async def run(self) -> None:
        """Open the connection when a caller requests it; runs until it is cancelled."""
        try:
            while True:
                await self._attempt.requested.wait()
                self._attempt.started_at = anyio.current_time()
                await self._retries.wait()
                await self._hold_connection()
        finally:
            message = f"The upstream {self._name} is shutting down."
            self.refuse(lambda: CallFailed("unavailable", message))

    async def _hold_connection(self) -> None:
        """Connect, keep the tool list up to date, and return when the connection ends."""
        limits = MessageLimits.from_settings(self._settings)
        answers = LargeAnswers(self._credentials)
        bounds = {kind.key: page_bounds(kind, self._settings) for kind in LIST_KINDS}
        stash = StashedAnswers(answers, self._tool_list.find_contract, bounds)
        state = TransportState(MessageFilter(limits, self._name), stash)
        attempt = self._attempt
        self._is_ended_here = False
        started_at = anyio.current_time()
        problem = f"it was not ready within {self._settings.timeout_s:g} s"
        raised: Exception | None = None
        try:
            with anyio.move_on_after(self._settings.timeout_s) as start_scope:
                await self._run_connection(state, answers, start_scope)
        except Exception as caught:  # noqa: BLE001 - the supervisor survives every kind of failure
            raised = innermost_exception(caught)
            raised = state.messages.find_problem(raised) or raised
            problem = describe_connect_error(raised, state.http_status, self._credentials)
        was_ready = self._attempt is not attempt
        was_stable = anyio.current_time() - started_at > STABLE_CONNECTION_S
        is_refused = isinstance(raised, CallFailed)  # here, before the upstream was reached
        has_lasted = was_ready and (was_stable or self._is_ended_here)
        self._retries.record_end(is_failure=not (is_refused or has_lasted))
        if not was_ready:
            if isinstance(raised, CallFailed):
                self._finish_attempt(partial(CallFailed, raised.kind, raised.message))
                return
            stderr = await self._stderr.quote()
            self._finish_attempt(self._build_failure(problem, raised, state, stderr))

    def _build_failure(
        self, problem: str, raised: Exception | None, state: TransportState, stderr: str
    ) -> Callable[[], CallFailed]:
        """Return a factory of errors, because each caller needs an exception of its own."""
        message = f"The upstream {self._name} cannot be reached: {problem}."
        invalid = state.messages.invalid_messages
        kind = "protocol" if invalid or isinstance(raised, ValueError) else "unavailable"
        if invalid:
            message += f" It also sent {invalid} lines that are not MCP messages."
        remedy = f"Check [mcpServers.{self._name}] in the settings.{stderr}"
        if isinstance(raised, LimitExceeded):
            kind = "too_large"
            if raised.setting:
                remedy = f"Raise `{raised.setting}` under [mcpServers.{self._name}].{stderr}"
        return lambda: CallFailed(kind, message, remedy=remedy)

    def _finish_attempt(self, failure: Callable[[], CallFailed] | None) -> None:
        """Report the result of the current attempt to all who wait for it."""
        attempt, self._attempt = self._attempt, ConnectAttempt()
        self._failure = attempt.failure = failure
        attempt.finished.set()

    async def _run_connection(
        self, state: TransportState, answers: LargeAnswers, start_scope: anyio.CancelScope
    ) -> None:
        """Connect and stay connected until the upstream disconnects.

        `start_scope` limits the time until the connection is ready.
        """
        await self._stderr.start()
        closed = anyio.Event()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._hold_slot())
            stack.callback(closed.set)
            transport = open_transport(
                state, self._settings, self._base_dir, self._stderr.path, self._credentials
            )
            stack.push_async_callback(self._tool_list.output_checks.close)
            stack.push_async_callback(answers.close)
            client = await stack.enter_async_context(self._build_client(transport, state.messages))
            client.session.validate_tool_result = accept_result  # type: ignore[method-assign]
            requests = state.direct_requests
            direct_calls = DirectCalls(requests, client, answers) if requests else None
            connection = UpstreamConnection(
                client, state, direct_calls, closed, self._settings.timeout_s
            )
            await self._tool_list.fetch(client, connection.fetch_page)
            start_scope.deadline = math.inf
            self._connection = connection
            stack.callback(self.mark_disconnected, connection)
            self._finish_attempt(None)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tool_list_watch.follow, connection)
                await state.ended.wait()
                self.mark_disconnected(connection)
                tasks.cancel_scope.cancel()

    def _build_client(self, transport: Any, messages: MessageFilter) -> Client:
        async def on_message(message: Any) -> None:
            if isinstance(message, types.ToolListChangedNotification):
                messages.tools_changed.set()

        return Client(
            transport,
            read_timeout_seconds=self._settings.timeout_s,
            client_info=types.Implementation(name=APP_NAME, version=version(APP_NAME)),
            message_handler=on_message,
            cache=None,
        )


def innermost_exception(error: Exception) -> Exception:
    """Return the first exception in `error` that is not an exception group."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def describe_connect_error(error: Exception, http_status: int, credentials: Credentials) -> str:
    """Return why a connection failed, without text that may contain a URL or a credential."""
    if http_status in (401, 403):
        return f"it refused the credentials (HTTP {http_status})"
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return f"{credentials.redact_text(str(error.filename))!r}: {error.strerror}"
    if isinstance(error, MCPError) and error.message == CLOSED_MESSAGE:
        return "it exited before it was ready"
    status = f" (HTTP {http_status})" if http_status else ""
    if isinstance(error, MCPError):
        # It is redacted before it is cut, because a part of a credential would not be found.
        message = credentials.redact_text(error.message)[:MAX_MESSAGE_CHARS]
        return f"it answered with error {error.code}, {message!r}{status}"
    if isinstance(error, ValidationError):
        return f"its answer is not a valid {error.title}{status}"
    if isinstance(error, LimitExceeded):
        return f"its answer has {error.limit}"
    if isinstance(error, ValueError):  # in the words of this server
        return str(error)[:MAX_MESSAGE_CHARS]
    return f"the connection failed with {type(error).__name__}{status}"
