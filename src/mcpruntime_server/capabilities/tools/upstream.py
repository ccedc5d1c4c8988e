"""Connections to the user's MCP servers: opened on first use, shared, supervised, closed in time.

Rule 1: a connection belongs to one task, the supervisor of its upstream. Callers only use it.
Rule 2: a call that may have reached an upstream is never sent again.
Rule 3: every failure of an upstream reaches the caller as `CallFailed`, which names the upstream
and says what to do.
Rule 4: no message contains arguments, environment variables, headers or a URL.
Rule 5: tools of an earlier process may be shown before the upstream is connected, never called.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import anyio
from mcp import Client, MCPError, types
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from pydantic import ValidationError

from ... import APP_NAME
from ...config import UpstreamSettings
from ...errors import CallFailed
from .catalogue_cache import (
    MAX_TOOLS,
    Catalogue,
    CatalogueCache,
    catalogue_key,
    dump_tool,
    parse_tool,
)
from .credentials import Credentials, collect_credentials
from .direct_requests import CLOSED_MESSAGE, DirectCalls
from .output_checks import OutputChecks, ToolBounds, accept_result
from .stderr_log import log_path, log_size, quote_last_lines
from .tool_results import error_message, error_texts, has_result_wrapper, to_json_data
from .transport import TransportState, open_transport

MAX_MESSAGE_CHARS = 2_000  # characters that an upstream may contribute to an error
MIN_RETRY_DELAY_S = 0.2  # before the next connection after one that failed or did not last
MAX_RETRY_DELAY_S = 30.0
DRAIN_TIMEOUT_S = 2.0  # for the last stderr of a process that has died
STABLE_CONNECTION_S = 10.0  # after a connection that lived so long, the next needs no delay
SAVE_INTERVAL_S = 1.0  # at least, between two tool lists that are stored
SAVE_TIMEOUT_S = 2.0  # for the last tool lists to reach the disk at shutdown
STREAM_LOST_PREFIX = "SSE stream"  # of the SDK's message if only the stream of this call has ended

UpstreamState = Literal["idle", "connecting", "ready", "failed"]
T = TypeVar("T")


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

    async def call_tool(
        self, tool: str, arguments: dict[str, Any], timeout_s: float
    ) -> types.CallToolResult:
        """Return the result of a call; raises what the client raises."""
        return await (self.direct_calls or self.client).call_tool(tool, arguments, timeout_s)

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


class RepeatableEvent:
    """An event for which one task can wait repeatedly."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the task that is waiting, or the next one to wait."""
        self._event.set()

    async def wait(self) -> None:
        """Return when the event has been set since the last return."""
        await self._event.wait()
        self._event = anyio.Event()


class Upstream:
    """One of the user's MCP servers."""

    def __init__(
        self, name: str, settings: UpstreamSettings, base_dir: Path, log_dir: Path
    ) -> None:
        self.name = name
        self.settings = settings
        self.generation = 0  # counts the changes of the tool list
        self._change_listeners: list[Callable[[], None]] = []
        self.log_file = log_path(log_dir, name)
        self._base_dir = base_dir
        self.cache_key = catalogue_key(name, settings, base_dir)
        self._credentials = collect_credentials(settings)
        self._call_slots = anyio.Semaphore(settings.max_concurrency, fast_acquire=True)
        self._tools: tuple[types.Tool, ...] | None = None
        self._live_since: int | None = None
        self._preloaded_at: float | None = None
        self._listed = RepeatableEvent()
        self._unsaved: Catalogue | None = None
        self._wrapped_tools: frozenset[str] = frozenset()
        self._output_checks = OutputChecks()
        self._connection: UpstreamConnection | None = None
        self._attempt = ConnectAttempt()
        self._connect_requested = anyio.Event()
        self._is_connecting = False
        self._connecting_since = 0.0
        self._failure: Callable[[], CallFailed] | None = None
        self._failed_attempts = 0  # connections in a row that failed or did not last
        self._retry_at = 0.0
        self._invalid_messages = 0  # received on the current connection
        self._log_start = 0  # where the stderr of the current process begins in the log

    # public interface -----------------------------------------------------------------------------

    @property
    def status(self) -> UpstreamStatus:
        """The current state; reading it does not start the upstream."""
        error = self._failure().message if self._failure else ""
        if self._connection:
            return UpstreamStatus("ready")
        if self._is_connecting:
            return UpstreamStatus("connecting", error)
        return UpstreamStatus("failed", error) if error else UpstreamStatus("idle")

    @property
    def failure(self) -> CallFailed | None:
        """Why the last attempt to connect failed, or None if it did not fail."""
        return self._failure() if self._failure else None

    @property
    def known_tools(self) -> tuple[types.Tool, ...] | None:
        """The tools of the last listing, or None if there was none.

        Before the first connection, these are the tools of an earlier process, if they are stored.
        """
        return self._tools

    @property
    def live_since(self) -> int | None:
        """The generation that this process listed first, or None if it has not listed any."""
        return self._live_since

    @property
    def preloaded_at(self) -> float | None:
        """The time (Unix) of the listing by an earlier process, while that is the last one."""
        return self._preloaded_at if self._live_since is None else None

    @property
    def connecting_s(self) -> float:
        """The seconds for which the current attempt to connect has lasted; 0 if there is none."""
        return anyio.current_time() - self._connecting_since if self._is_connecting else 0.0

    def preload_tools(self, catalogue: Catalogue) -> None:
        """Use the tools of an earlier process until this one has listed them."""
        self._preloaded_at = catalogue.listed_at
        self._set_tools(catalogue.tools)

    def request_connection(self) -> None:
        """Start to connect, if the upstream is not connected, without waiting for it."""
        if self._connection is None:
            self._connect_requested.set()

    async def keep_stored(self, cache: CatalogueCache) -> None:
        """Store the tools after each listing; runs until it is cancelled."""
        while True:
            await self._listed.wait()
            await self.store_tools(cache)
            await anyio.sleep(SAVE_INTERVAL_S)

    async def store_tools(self, cache: CatalogueCache) -> None:
        """Store the tools, if they were listed since they were stored last."""
        catalogue = self._unsaved
        if catalogue is None:
            return
        await anyio.to_thread.run_sync(
            cache.save, self.cache_key, catalogue, abandon_on_cancel=True
        )
        if self._unsaved is catalogue:
            self._unsaved = None

    def add_change_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the tool list changes."""
        self._change_listeners.append(listener)

    async def list_tools(self) -> tuple[types.Tool, ...]:
        """Return the tools as this process listed them last; the first call connects.

        Raises `CallFailed`.
        """
        if self._live_since is None:
            await self._connect()
        return self._tools or ()

    async def refresh_tools(self) -> None:
        """List the tools of a connected upstream again, before it announces a change."""
        if self._connection:
            await self._try_list_tools(self._connection.client)

    async def call_tool(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Call `tool`, by its upstream's own name, and return JSON data; raises `CallFailed`."""
        async with self._call_slots:
            result = await self._send(tool, lambda to: self._call_checked(to, tool, arguments))
        if result.is_error:
            message = error_message(self._credentials.redact(error_texts(result)))
            data = self._credentials.redact(result.structured_content)
            raise CallFailed("tool_error", message[:MAX_MESSAGE_CHARS], data=data)
        value = to_json_data(result, tool in self._wrapped_tools)
        return self._credentials.redact(value) if self._credentials else value

    async def send_request(self, operation: str, request: Callable[[Client], Awaitable[T]]) -> T:
        """Run `request` with the connected client; errors call it `operation`.

        Raises `CallFailed`.
        """
        async with self._call_slots:
            return await self._send(operation, lambda connection: request(connection.client))

    def redact_bytes(self, data: bytes) -> bytes:
        """Return `data` with the credentials of this upstream replaced."""
        return self._credentials.redact_bytes(data)

    # calls ----------------------------------------------------------------------------------------

    async def _call_checked(
        self, connection: UpstreamConnection, tool: str, arguments: dict[str, Any]
    ) -> types.CallToolResult:
        """Return a result that follows the tool's schema; raises `ValueError` if it does not."""
        result = await connection.call_tool(tool, arguments, self.settings.timeout_s)
        await self._output_checks.check(tool, result)
        return result

    async def _send(self, tool: str, request: Callable[[UpstreamConnection], Awaitable[T]]) -> T:
        connection = self._connection or await self._connect()
        try:
            try:
                return await request(connection)
            except MCPError as error:
                if not connection.is_session_expired(error):
                    raise
                self._mark_disconnected(connection)
                connection = await self._connect()
                return await request(connection)
        except MCPError as error:
            if error.code == types.CONNECTION_CLOSED and error.message == CLOSED_MESSAGE:
                self._mark_disconnected(connection)
                with anyio.move_on_after(DRAIN_TIMEOUT_S):
                    await connection.closed.wait()
                stderr = await self._quote_stderr()
                self._raise_disconnected(tool, connection.close_reason, stderr)
            self._raise_mcp_error(tool, error)
        except (ValidationError, RuntimeError, ValueError) as error:
            self._raise_protocol_error(tool, error)
        except (OSError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            self._raise_disconnected(tool, type(error).__name__, await self._quote_stderr())

    async def _quote_stderr(self) -> str:
        """Return a sentence with what a process has written last, or only where its log is."""

        def read() -> str:
            if not self.log_file.exists():
                return ""
            quoted = quote_last_lines(self.log_file, self._log_start)
            text = f" Its stderr is in {self.log_file}"
            return f"{text} and ends with {quoted}." if quoted else f"{text}."

        return await anyio.to_thread.run_sync(read)

    def _raise_mcp_error(self, tool: str, error: MCPError) -> NoReturn:
        """Raise the error that the caller of `tool` gets for `error`."""
        if error.code == types.REQUEST_TIMEOUT:
            raise CallFailed(
                "timeout",
                f"{self.name}.{tool} did not answer within {self.settings.timeout_s:g} s "
                "and may still be running.",
                remedy="Request less at a time, or raise `timeout_s` "
                f"under [mcpServers.{self.name}].",
            ) from None
        if error.code == types.CONNECTION_CLOSED and error.message.startswith(STREAM_LOST_PREFIX):
            self._raise_disconnected(tool, "the stream of its answer ended early")
        kind = "invalid_arguments" if error.code == types.INVALID_PARAMS else "tool_error"
        message = self._credentials.redact_text(error.message)[:MAX_MESSAGE_CHARS]
        raise CallFailed(kind, message, data=self._credentials.redact(error.data)) from None

    def _raise_disconnected(self, tool: str, how: str, stderr: str = "") -> NoReturn:
        raise CallFailed(
            "unavailable",
            f"The upstream {self.name} disconnected while it worked on {tool} ({how}).",
            remedy="The call may or may not have taken effect: check before you repeat a write. "
            f"The next call connects again.{stderr}",
        ) from None

    def _raise_protocol_error(self, tool: str, error: Exception) -> NoReturn:
        detail = self._credentials.redact_text(str(error))[:MAX_MESSAGE_CHARS]
        raise CallFailed(
            "protocol",
            f"The upstream {self.name} answered {tool} in violation of its own contract: {detail}",
            remedy="The call has probably taken effect. The server needs a fix or an update.",
        ) from None

    # the connection -------------------------------------------------------------------------------

    async def _connect(self) -> UpstreamConnection:
        """Return the live connection, which the supervisor opens if needed; raises `CallFailed`."""
        while self._connection is None:
            if self._failure and not self._is_connecting and anyio.current_time() < self._retry_at:
                raise self._failure()
            attempt = self._attempt
            self._connect_requested.set()
            await attempt.finished.wait()
            if attempt.failure:
                raise attempt.failure()
        return self._connection

    async def supervise(self) -> None:
        """Open the connection when a caller requests it; runs until it is cancelled."""
        try:
            while True:
                await self._connect_requested.wait()
                self._is_connecting = True
                self._connecting_since = anyio.current_time()
                await anyio.sleep(max(0.0, self._retry_at - anyio.current_time()))
                await self._hold_connection()
        finally:
            self._finish_attempt(
                lambda: CallFailed("unavailable", f"The upstream {self.name} is shutting down.")
            )

    async def _hold_connection(self) -> None:
        """Connect, keep the tool list up to date, and return when the connection ends."""
        state = TransportState()
        attempt = self._attempt
        started_at = anyio.current_time()
        problem = f"it was not ready within {self.settings.timeout_s:g} s"
        is_protocol_error = False
        try:
            with anyio.move_on_after(self.settings.timeout_s) as start_scope:
                await self._run_connection(state, start_scope)
        except Exception as raised:  # noqa: BLE001 - the supervisor survives every kind of failure
            error = innermost_exception(raised)
            problem = describe_connect_error(error, state.http_status, self._credentials)
            is_protocol_error = isinstance(error, ValidationError)
        was_ready = self._attempt is not attempt
        was_stable = anyio.current_time() - started_at > STABLE_CONNECTION_S
        self._failed_attempts = 0 if was_ready and was_stable else self._failed_attempts + 1
        self._retry_at = anyio.current_time() + self._retry_delay_s()
        if not was_ready:
            stderr = await self._quote_stderr()
            self._finish_attempt(self._build_connect_failure(problem, is_protocol_error, stderr))

    def _retry_delay_s(self) -> float:
        """Return the delay before the next attempt: exponential, with jitter."""
        if not self._failed_attempts:
            return 0.0
        delay_s = MIN_RETRY_DELAY_S * 2.0 ** min(self._failed_attempts - 1, 16)
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - not used for security
        return min(delay_s, MAX_RETRY_DELAY_S) * jitter

    def _build_connect_failure(
        self, problem: str, is_protocol_error: bool, stderr: str
    ) -> Callable[[], CallFailed]:
        """Return a factory of errors, because each caller needs an exception of its own."""
        message = f"The upstream {self.name} cannot be reached: {problem}."
        if self._invalid_messages:
            is_protocol_error = True
            message += f" It also sent {self._invalid_messages} lines that are not MCP messages."
        kind = "protocol" if is_protocol_error else "unavailable"
        remedy = f"Check [mcpServers.{self.name}] in the settings"
        remedy = f"{remedy}.{stderr}"
        return lambda: CallFailed(kind, message, remedy=remedy)

    def _finish_attempt(self, failure: Callable[[], CallFailed] | None) -> None:
        """Report the result of the current attempt to all who wait for it."""
        attempt, self._attempt = self._attempt, ConnectAttempt()
        self._connect_requested = anyio.Event()
        self._is_connecting = False
        self._failure = attempt.failure = failure
        attempt.finished.set()

    def _mark_disconnected(self, connection: UpstreamConnection) -> None:
        """Record that `connection` has ended; the next caller requests a new one."""
        connection.transport.ended.set()
        if self._connection is connection:
            self._connection = None

    async def _run_connection(self, state: TransportState, start_scope: anyio.CancelScope) -> None:
        """Connect and stay connected until the upstream disconnects.

        `start_scope` limits the time until the connection is ready.
        """
        changed = RepeatableEvent()
        self._invalid_messages = 0
        self._log_start = await anyio.to_thread.run_sync(log_size, self.log_file)
        closed = anyio.Event()
        async with AsyncExitStack() as stack:
            stack.callback(closed.set)
            transport = open_transport(
                state, self.settings, self._base_dir, self.log_file, self._credentials
            )
            stack.push_async_callback(self._output_checks.close)
            client = await stack.enter_async_context(self._build_client(transport, changed))
            client.session.validate_tool_result = accept_result  # type: ignore[method-assign]
            await self._list_tools(client)
            start_scope.deadline = math.inf
            requests = state.direct_requests
            direct_calls = DirectCalls(requests, client) if requests else None
            connection = self._connection = UpstreamConnection(client, state, direct_calls, closed)
            stack.callback(self._mark_disconnected, connection)
            self._finish_attempt(None)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow_notifications, client, changed)
                tasks.start_soon(self._follow_subscription, client)
                await state.ended.wait()
                self._mark_disconnected(connection)
                tasks.cancel_scope.cancel()

    def _build_client(self, transport: Any, changed: RepeatableEvent) -> Client:
        async def on_message(message: Any) -> None:
            if isinstance(message, types.ToolListChangedNotification):
                changed.set()
            elif isinstance(message, Exception):
                self._invalid_messages += 1

        return Client(
            transport,
            read_timeout_seconds=self.settings.timeout_s,
            client_info=types.Implementation(name=APP_NAME, version=version(APP_NAME)),
            message_handler=on_message,
            cache=None,
        )

    # the tool list --------------------------------------------------------------------------------

    async def _list_tools(self, client: Client) -> None:
        """Fetch the tool list; a changed list starts a new generation."""
        found: dict[str, types.Tool] = {}
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor)
            found |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if not cursor or not page.tools or len(found) > MAX_TOOLS:
                break
        listed = tuple(islice(found.values(), MAX_TOOLS))
        bounds = ToolBounds(self.settings.max_schema_parts)
        bounded = await anyio.to_thread.run_sync(bounds.apply, listed)
        self._output_checks.replace_schemas(bounded.outputs)
        tools = tuple(map(self._redact_tool, bounded.tools))
        if tools != self._tools:
            self._set_tools(tools)
        if self._live_since is None:
            self._live_since = self.generation
        server = client.server_info
        version = self._credentials.redact_text(server.version) if server else ""
        self._unsaved = Catalogue(tools, version, time.time())
        self._listed.set()

    def _set_tools(self, tools: tuple[types.Tool, ...]) -> None:
        self._tools = tools
        self._wrapped_tools = frozenset(tool.name for tool in tools if has_result_wrapper(tool))
        self.generation += 1
        for listener in self._change_listeners:
            listener()

    def _redact_tool(self, tool: types.Tool) -> types.Tool:
        """Return `tool` without the credentials of this upstream; raises `ValidationError`."""
        if not self._credentials:
            return tool
        data = dump_tool(tool)
        redacted = self._credentials.redact(data)
        return tool if redacted == data else parse_tool(redacted)

    async def _try_list_tools(self, client: Client) -> None:
        try:
            await self._list_tools(client)
        except (MCPError, ValidationError, RuntimeError):
            return  # keep the known list; a lost connection is reported by its transport

    async def _follow_notifications(self, client: Client, changed: RepeatableEvent) -> None:
        """List the tools again after each notification, as older protocol revisions send them."""
        while True:
            await changed.wait()
            await self._try_list_tools(client)

    async def _follow_subscription(self, client: Client) -> None:
        """Subscribe to changes of the tool list, as protocol revision 2026-07-28 offers it.

        A subscription that ends is opened again.
        """
        capability = client.server_capabilities.tools
        if capability is None or not capability.list_changed:
            return
        delay = MIN_RETRY_DELAY_S
        while True:
            try:
                async with client.listen(tools_list_changed=True) as events:
                    delay = MIN_RETRY_DELAY_S
                    await self._try_list_tools(client)  # it may have changed before
                    async for _ in events:
                        await self._try_list_tools(client)
            except ListenNotSupportedError:
                return
            except (SubscriptionLost, MCPError, TimeoutError):
                pass
            await anyio.sleep(delay)
            delay = min(delay * 2, MAX_RETRY_DELAY_S)


def innermost_exception(error: BaseException) -> BaseException:
    """Return the first exception in `error` that is not an exception group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def describe_connect_error(error: BaseException, http_status: int, credentials: Credentials) -> str:
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
    return f"the connection failed with {type(error).__name__}{status}"


@asynccontextmanager
async def open_upstreams(
    settings: Mapping[str, UpstreamSettings],
    base_dir: Path,
    log_dir: Path,
    cache: CatalogueCache | None = None,
) -> AsyncIterator[dict[str, Upstream]]:
    """Yield the upstreams by name, not yet started; leaving ends all connections and processes.

    Paths in the settings are relative to `base_dir`. The stderr of each upstream goes to a file in
    `log_dir`. Until an upstream is connected, its tools are those in the `cache`.
    """
    enabled = {name: entry for name, entry in settings.items() if not entry.disabled}
    upstreams = {name: Upstream(name, entry, base_dir, log_dir) for name, entry in enabled.items()}
    if cache is not None:
        await anyio.to_thread.run_sync(preload_stored_tools, upstreams.values(), cache)
    try:
        async with anyio.create_task_group() as tasks:
            for upstream in upstreams.values():
                tasks.start_soon(upstream.supervise, name=f"upstream {upstream.name}")
                if cache is not None:
                    tasks.start_soon(upstream.keep_stored, cache)
            try:
                yield upstreams
            finally:
                tasks.cancel_scope.cancel()
    finally:
        if cache is not None:
            with anyio.move_on_after(SAVE_TIMEOUT_S, shield=True):
                for upstream in upstreams.values():
                    await upstream.store_tools(cache)


def preload_stored_tools(upstreams: Iterable[Upstream], cache: CatalogueCache) -> None:
    """Load the stored tools of `upstreams`, and remove entries that nobody uses any more."""
    for upstream in upstreams:
        if catalogue := cache.load(upstream.cache_key):
            upstream.preload_tools(catalogue)
    cache.remove_stale()
