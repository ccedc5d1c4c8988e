"""The connection to one upstream: opened on request, kept, described, and opened again.

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
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from pydantic import ValidationError

from ... import APP_NAME
from ...config import UpstreamSettings
from ...errors import CallFailed
from ..redaction import Credentials
from .direct_requests import CLOSED_MESSAGE, DirectCalls
from .large_answers import LargeAnswers, LargeResult, ListPage, PageBounds, ToolContract
from .message_limits import LimitExceeded, MessageLimits
from .output_checks import accept_result
from .paged_lists import LIST_KINDS, RESOURCES, TOOLS, page_bounds
from .stashed_answers import StashedAnswers
from .stderr_log import log_size, quote_last_lines
from .tool_list import ToolList
from .transport import TransportState, open_transport
from .unrequested_messages import MessageFilter

MAX_MESSAGE_CHARS = 2_000  # characters that an upstream may contribute to an error
MIN_RETRY_DELAY_S = 0.2  # before the next connection after one that failed or did not last
MAX_RETRY_DELAY_S = 30.0
STABLE_CONNECTION_S = 10.0  # after a connection that lived so long, the next needs no delay
MIN_LISTING_INTERVAL_S = 1.0  # between two listings that the upstream has caused
IDLE_PER_LISTING = 4.0  # times as long as a listing and its uses take, it is not caused again

UpstreamState = Literal["idle", "connecting", "ready", "failed"]


@dataclass(frozen=True)
class UpstreamStatus:
    """The state of an upstream; `error` says why the last attempt to connect failed."""

    state: UpstreamState
    error: str = ""


@dataclass(frozen=True)
class UpstreamConnection:
    """One live connection and the state of its transport."""

    client: Client
    transport: TransportState
    direct_calls: DirectCalls | None  # faster than the client's, where the transport allows them
    closed: anyio.Event  # set when the process has ended and its stderr is in the log
    timeout_s: float  # of a request

    async def call_tool(
        self, tool: str, arguments: dict[str, Any], contract: ToolContract
    ) -> types.CallToolResult | LargeResult:
        """Return the result of a call; raises what the client raises."""
        if self.direct_calls is None:
            result = await self.client.call_tool(tool, arguments, self.timeout_s)
            found = self.transport.stash.take(result.meta)
            return found if isinstance(found, LargeResult) else result
        return await self.direct_calls.call_tool(tool, arguments, self.timeout_s, contract)

    async def fetch_page(self, key: str, cursor: str | None, bounds: PageBounds) -> ListPage:
        """Return the page of a list (`ListKind.key`); raises what the client raises."""
        if self.direct_calls is not None:
            return await self.direct_calls.fetch_page(key, cursor, bounds, self.timeout_s)
        page: ListPage
        if key == TOOLS.key:
            tools = await self.client.list_tools(cursor=cursor)
            page, meta = ListPage(tools.tools, tools.next_cursor), tools.meta
        elif key == RESOURCES.key:
            resources = await self.client.list_resources(cursor=cursor)
            page, meta = ListPage(resources.resources, resources.next_cursor), resources.meta
        else:
            listed = await self.client.list_resource_templates(cursor=cursor)
            page, meta = ListPage(listed.resource_templates, listed.next_cursor), listed.meta
        found = self.transport.stash.take(meta)
        return found if isinstance(found, ListPage) else page

    @property
    def close_reason(self) -> str:
        """Why the connection has ended, as a clause."""
        requests = self.transport.direct_requests
        return requests.close_reason if requests else "its connection closed"

    def is_session_expired(self, error: MCPError) -> bool:
        """Return whether `error` says that the server has dropped the session.

        Such a server has not processed the request, so it may be sent again.
        """
        return self.transport.is_session_expired and "session" in error.message.lower()


class ConnectAttempt:
    """One attempt to connect, for which any number of callers wait."""

    def __init__(self) -> None:
        self.finished = anyio.Event()
        self.failure: Callable[[], CallFailed] | None = None


class ConnectionSupervisor:
    """Opens and holds the connection to one upstream, and keeps its list of tools up to date."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        base_dir: Path,
        log_file: Path,
        credentials: Credentials,
        tool_list: ToolList,
        hold_slot: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        self._name = name
        self._settings = settings
        self._base_dir = base_dir
        self._log_file = log_file
        self._log_start = 0  # where the stderr of the current process begins in the log
        self._credentials = credentials
        self._tool_list = tool_list
        self._hold_slot = hold_slot  # of a limited number, for as long as a connection exists
        self._is_closed = False
        self._is_ended_here = False  # the current connection did not end by itself
        self._connection: UpstreamConnection | None = None
        self._attempt = ConnectAttempt()
        self._requested = anyio.Event()
        self._connecting_since: float | None = None
        self._failure: Callable[[], CallFailed] | None = None
        self._failed_attempts = 0  # connections in a row that failed or did not last
        self._retry_at = 0.0
        self._listing_cost_s = 0.0  # of what has been made of the last list

    @property
    def status(self) -> UpstreamStatus:
        """The current state; reading it does not start the upstream."""
        error = self._failure().message if self._failure else ""
        if self._connection:
            return UpstreamStatus("ready")
        if self._connecting_since is not None:
            return UpstreamStatus("connecting", error)
        return UpstreamStatus("failed", error) if error else UpstreamStatus("idle")

    @property
    def failure(self) -> CallFailed | None:
        """Why the last attempt to connect failed, or None if it did not fail."""
        return self._failure() if self._failure else None

    @property
    def connecting_s(self) -> float:
        """The seconds for which the current attempt to connect has lasted; 0 if there is none."""
        since = self._connecting_since
        return 0.0 if since is None else anyio.current_time() - since

    def request(self) -> None:
        """Start to connect, if the upstream is not connected, without waiting for it."""
        if self._connection is None:
            self._requested.set()

    async def connect(self) -> UpstreamConnection:
        """Return the live connection, which is opened if needed; raises `CallFailed`."""
        while self._connection is None:
            is_connecting = self._connecting_since is not None
            must_wait = not is_connecting and anyio.current_time() < self._retry_at
            if self._failure and (must_wait or self._is_closed):
                raise self._failure()
            attempt = self._attempt
            self._requested.set()
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
            await self._try_list_tools(self._connection)

    def add_listing_cost(self, seconds: float) -> None:
        """Count work that the last listing has caused: the next one has to wait the longer."""
        self._listing_cost_s += seconds

    async def quote_stderr(self) -> str:
        """Return a sentence with what a process has written last, or only where its log is."""

        def read() -> str:
            if not self._log_file.exists():
                return ""
            quoted = quote_last_lines(self._log_file, self._log_start)
            text = f" Its stderr is in {self._log_file}"
            return f"{text} and ends with {quoted}." if quoted else f"{text}."

        return await anyio.to_thread.run_sync(read)

    # the task that owns the connection ------------------------------------------------------------

    async def run(self) -> None:
        """Open the connection when a caller requests it; runs until it is cancelled."""
        try:
            while True:
                await self._requested.wait()
                self._connecting_since = anyio.current_time()
                await anyio.sleep(max(0.0, self._retry_at - anyio.current_time()))
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
        if is_refused or (was_ready and (was_stable or self._is_ended_here)):
            self._failed_attempts = 0
        else:
            self._failed_attempts += 1
        self._retry_at = anyio.current_time() + self._retry_delay_s()
        if not was_ready:
            if isinstance(raised, CallFailed):
                self._finish_attempt(partial(CallFailed, raised.kind, raised.message))
                return
            stderr = await self.quote_stderr()
            self._finish_attempt(self._build_failure(problem, raised, state, stderr))

    def _retry_delay_s(self) -> float:
        """Return the delay before the next attempt: exponential, with jitter."""
        if not self._failed_attempts:
            return 0.0
        delay_s = MIN_RETRY_DELAY_S * 2.0 ** min(self._failed_attempts - 1, 16)
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - not used for security
        return min(delay_s, MAX_RETRY_DELAY_S) * jitter

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
        self._requested = anyio.Event()
        self._connecting_since = None
        self._failure = attempt.failure = failure
        attempt.finished.set()

    async def _run_connection(
        self, state: TransportState, answers: LargeAnswers, start_scope: anyio.CancelScope
    ) -> None:
        """Connect and stay connected until the upstream disconnects.

        `start_scope` limits the time until the connection is ready.
        """
        self._log_start = await anyio.to_thread.run_sync(log_size, self._log_file)
        closed = anyio.Event()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._hold_slot())
            stack.callback(closed.set)
            transport = open_transport(
                state, self._settings, self._base_dir, self._log_file, self._credentials
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
                tasks.start_soon(self._follow_notifications, connection)
                tasks.start_soon(self._follow_subscription, connection)
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

    # changes of the tool list ---------------------------------------------------------------------

    async def _try_list_tools(self, connection: UpstreamConnection) -> None:
        """Fetch the list again."""
        try:
            await self._tool_list.fetch(connection.client, connection.fetch_page)
        except (MCPError, RuntimeError, ValueError):
            return  # keep the known list; a lost connection is reported by its transport

    async def _list_changed_tools(self, connection: UpstreamConnection) -> None:
        """Fetch a list that has changed, and wait before the upstream may cause it again."""
        started_at = anyio.current_time()
        await self._try_list_tools(connection)
        taken_s, self._listing_cost_s = anyio.current_time() - started_at, 0.0
        await anyio.sleep(max(MIN_LISTING_INTERVAL_S, IDLE_PER_LISTING * taken_s))
        while self._listing_cost_s:
            taken_s, self._listing_cost_s = self._listing_cost_s, 0.0
            await anyio.sleep(IDLE_PER_LISTING * taken_s)

    async def _follow_notifications(self, connection: UpstreamConnection) -> None:
        """List the tools again after each notification, as older protocol revisions send them."""
        while True:
            await connection.transport.messages.tools_changed.wait()
            await self._list_changed_tools(connection)

    async def _follow_subscription(self, connection: UpstreamConnection) -> None:
        """Subscribe to changes of the tool list, as protocol revision 2026-07-28 offers it.

        A subscription that ends is opened again.
        """
        client = connection.client
        capability = client.server_capabilities.tools
        if capability is None or not capability.list_changed:
            return
        delay = MIN_RETRY_DELAY_S
        while True:
            try:
                async with client.listen(tools_list_changed=True) as events:
                    delay = MIN_RETRY_DELAY_S
                    await self._try_list_tools(connection)  # it may have changed before
                    async for _ in events:
                        await self._list_changed_tools(connection)
            except ListenNotSupportedError:
                return
            except (SubscriptionLost, MCPError, TimeoutError):
                pass
            await anyio.sleep(delay)
            delay = min(delay * 2, MAX_RETRY_DELAY_S)


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
