"""Connections to the user's MCP servers: made on first need, shared, supervised, and ended within a bound.

Rule 1: a connection belongs to one task, its upstream's supervisor; callers only use what the supervisor holds up.
Rule 2: nothing is done twice behind a caller's back. A call that may have reached an upstream is never sent again.
Rule 3: whatever an upstream does, a caller sees `CallFailed`, which names the upstream and what to do.
Rule 4: no message carries arguments, environment, headers or a URL.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import anyio
from mcp import Client, MCPError, types
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from pydantic import ValidationError

from ..config import APP, UpstreamSettings
from ..errors import CallFailed
from .results import credentials_of, error_text, is_wrapper, plain
from .stderr_log import log_path
from .transport import Line, open_line

MAX_TOOLS = 2_000  # of one upstream; more is a mistake or an attack
MAX_MESSAGE = 2_000  # characters that an upstream may contribute to an error
FIRST_DELAY_S = 0.2  # before the next connection after one that failed or did not last
LAST_DELAY_S = 30.0
LASTING_S = 10.0  # a connection that lived so long was sound: its end is no reason to hold back
CLOSED = "Connection closed"  # the SDK's words where the connection is over
BROKEN_OFF = "SSE stream"  # how the SDK's words begin where only this call's stream is over

State = Literal["idle", "connecting", "ready", "failed"]
T = TypeVar("T")


@dataclass(frozen=True)
class Status:
    """How an upstream is; `error` is why it could not be reached, until it can be again."""

    state: State
    error: str = ""


@dataclass(frozen=True)
class Connection:
    """One live connection, and the line that it stands on."""

    client: Client
    line: Line

    def turned_away(self, error: MCPError) -> bool:
        """Return whether `error` says that the session is forgotten: the request went no further than the door."""
        return self.line.forgotten and "session" in error.message.lower()


class Attempt:
    """One attempt to connect, which any number of callers wait for."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.failure: Callable[[], CallFailed] | None = None


class Signal:
    """An event that can be waited for again and again, by one task."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the task that waits, now or next."""
        self._event.set()

    async def wait(self) -> None:
        """Return when it has been set since the last time."""
        await self._event.wait()
        self._event = anyio.Event()


class Upstream:
    """One MCP server of the user's."""

    def __init__(self, name: str, settings: UpstreamSettings, base_dir: Path, log_dir: Path) -> None:
        self.name = name
        self.settings = settings
        self.generation = 0  # counts the changes of the tool list
        self.on_change: Callable[[Upstream], None] = lambda _: None
        self.log = log_path(log_dir, name)
        self._base_dir = base_dir
        self._credentials = credentials_of(settings)
        self._slots = anyio.Semaphore(settings.max_concurrency, fast_acquire=True)
        self._tools: tuple[types.Tool, ...] | None = None
        self._wrappers: frozenset[str] = frozenset()
        self._connection: Connection | None = None
        self._attempt = Attempt()
        self._wanted = anyio.Event()
        self._connecting = False
        self._failure: Callable[[], CallFailed] | None = None
        self._setbacks = 0  # connections in a row that failed or did not last
        self._retry_at = 0.0
        self._garbage = 0  # messages that were none, on the current line

    # what others use ------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """How this upstream is right now; asking does not start it."""
        error = self._failure().message if self._failure else ""
        if self._connection:
            return Status("ready")
        if self._connecting:
            return Status("connecting", error)
        return Status("failed", error) if error else Status("idle")

    @property
    def known_tools(self) -> tuple[types.Tool, ...] | None:
        """The tools as last listed, or None before the first connection."""
        return self._tools

    async def tools(self) -> tuple[types.Tool, ...]:
        """Return the tools as last listed, connecting if that was never done; raises `CallFailed`."""
        if self._tools is None:
            await self._connect()
        return self._tools or ()

    async def relist(self) -> None:
        """Ask a connected upstream for its tools now, where somebody misses one; its notice of a change may be late."""
        if self._connection:
            await self._refresh(self._connection.client)

    async def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Call `tool` (the upstream's own name for it) and return plain JSON data; raises `CallFailed`."""
        result = await self.ask(tool, lambda client: client.call_tool(tool, arguments, self.settings.timeout_s))
        if result.is_error:
            message, data = error_text(result, MAX_MESSAGE), result.structured_content
            raise CallFailed("tool_error", self._credentials.scrub_text(message), data=self._credentials.scrub(data))
        value = plain(result, tool in self._wrappers)
        return self._credentials.scrub(value) if self._credentials else value

    async def ask(self, what: str, question: Callable[[Client], Awaitable[T]]) -> T:
        """Put a question to the connected client; `what` names it in errors. Raises `CallFailed`."""
        async with self._slots:
            return await self._send(what, question)

    def without_credentials(self, data: bytes) -> bytes:
        """Return what this upstream has sent without the credentials that it was given."""
        return self._credentials.scrub_bytes(data)

    # calls ----------------------------------------------------------------------------------------

    async def _send(self, tool: str, question: Callable[[Client], Awaitable[T]]) -> T:
        connection = self._connection or await self._connect()
        try:
            try:
                return await question(connection.client)
            except MCPError as error:
                if not connection.turned_away(error):
                    raise
                self._disconnected(connection)
                connection = await self._connect()
                return await question(connection.client)
        except MCPError as error:
            self._refuse(tool, connection, error)
        except (ValidationError, RuntimeError, ValueError) as error:
            self._broke_contract(tool, error)
        except (OSError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            self._went_away(tool, type(error).__name__)

    def _refuse(self, tool: str, connection: Connection, error: MCPError) -> NoReturn:
        """Raise what `error` means to the caller of `tool`."""
        if error.code == types.REQUEST_TIMEOUT:
            raise CallFailed(
                "timeout",
                f"{self.name}.{tool} did not answer within {self.settings.timeout_s:g} s and may still be at work.",
                remedy=f"Ask it for less at a time, or raise `timeout_s` under [mcpServers.{self.name}].",
            ) from None
        if error.code == types.CONNECTION_CLOSED and error.message == CLOSED:
            self._disconnected(connection)
            self._went_away(tool, "its connection closed")
        if error.code == types.CONNECTION_CLOSED and error.message.startswith(BROKEN_OFF):
            self._went_away(tool, "its answer broke off")
        kind = "invalid_arguments" if error.code == types.INVALID_PARAMS else "tool_error"
        message = self._credentials.scrub_text(error.message)[:MAX_MESSAGE]
        raise CallFailed(kind, message, data=self._credentials.scrub(error.data)) from None

    def _went_away(self, tool: str, how: str) -> NoReturn:
        raise CallFailed(
            "unavailable",
            f"The upstream {self.name} went away while it worked on {tool} ({how}).",
            remedy="Whether the call was carried out is not known: look before you repeat a write. "
            "The next call connects again.",
        ) from None

    def _broke_contract(self, tool: str, error: Exception) -> NoReturn:
        detail = self._credentials.scrub_text(str(error))[:MAX_MESSAGE]
        raise CallFailed(
            "protocol",
            f"The upstream {self.name} answered {tool} with something that breaks its own contract: {detail}",
            remedy="The call was probably carried out. Its server needs mending, or a newer version.",
        ) from None

    # the connection -------------------------------------------------------------------------------

    async def _connect(self) -> Connection:
        """Return the live connection, asking the supervisor for one if need be; raises `CallFailed`."""
        while self._connection is None:
            if self._failure and not self._connecting and anyio.current_time() < self._retry_at:
                raise self._failure()
            attempt = self._attempt
            self._wanted.set()
            await attempt.over.wait()
            if attempt.failure:
                raise attempt.failure()
        return self._connection

    async def supervise(self) -> None:
        """Hold up the connection for as long as anybody wants it; runs until it is cancelled."""
        try:
            while True:
                await self._wanted.wait()
                self._connecting = True
                await anyio.sleep(max(0.0, self._retry_at - anyio.current_time()))
                await self._hold_connection()
        finally:
            self._attempted(lambda: CallFailed("unavailable", f"The upstream {self.name} is being shut down."))

    async def _hold_connection(self) -> None:
        """Connect, keep the tool list fresh, and return when the connection is over, however it ends."""
        line, since, attempt = Line(), anyio.current_time(), self._attempt
        problem, understood = f"it was not ready within {self.settings.timeout_s:g} s", True
        try:
            with anyio.move_on_after(self.settings.timeout_s) as start:
                await self._serve(line, start)
        except Exception as raised:  # noqa: BLE001 - an upstream may fail in any way; its supervisor outlives all
            error = innermost(raised)
            problem, understood = describe(error, line.http_status), not isinstance(error, ValidationError)
        lasted = anyio.current_time() - since > LASTING_S
        stood = self._attempt is not attempt
        self._setbacks = 0 if stood and lasted else self._setbacks + 1
        self._retry_at = anyio.current_time() + self._delay()
        if not stood:
            self._attempted(self._diagnosis(self._credentials.scrub_text(problem), understood))

    def _delay(self) -> float:
        """Return how long to hold back, in seconds: doubling, and spread so that upstreams do not move in step."""
        if not self._setbacks:
            return 0.0
        spread = random.uniform(0.5, 1.5)  # noqa: S311 - guards nothing
        return min(FIRST_DELAY_S * 2.0 ** min(self._setbacks - 1, 16), LAST_DELAY_S) * spread

    def _diagnosis(self, problem: str, understood: bool) -> Callable[[], CallFailed]:
        kind, message = "unavailable", f"The upstream {self.name} cannot be reached: {problem}."
        if not understood:
            kind = "protocol"
        if self._garbage:
            kind, message = "protocol", f"{message} It also sent {self._garbage} lines that are no MCP messages."
        remedy = f"Check [mcpServers.{self.name}] in the settings"
        remedy += f", and {self.log.name} for what it said." if self.log.exists() else "."
        return lambda: CallFailed(kind, message, remedy=remedy)

    def _attempted(self, failure: Callable[[], CallFailed] | None) -> None:
        """Tell everybody who waits how the current attempt ended; the next one starts when somebody asks for it."""
        attempt, self._attempt = self._attempt, Attempt()
        self._wanted = anyio.Event()
        self._connecting = False
        self._failure = attempt.failure = failure
        attempt.over.set()

    def _disconnected(self, connection: Connection) -> None:
        """Note that `connection` is over; the next caller asks for a new one."""
        connection.line.ended.set()
        if self._connection is connection:
            self._connection = None

    async def _serve(self, line: Line, start: anyio.CancelScope) -> None:
        """Be connected until the other end is gone; `start` bounds the time until the connection stands."""
        changed = Signal()
        self._garbage = 0
        async with AsyncExitStack() as stack:
            transport = open_line(line, self.settings, self._base_dir, self.log, self._credentials)
            client = await stack.enter_async_context(self._client(transport, changed))
            await self._list_tools(client)
            start.deadline = math.inf
            connection = self._connection = Connection(client, line)
            stack.callback(self._disconnected, connection)
            self._attempted(None)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow_notifications, client, changed)
                tasks.start_soon(self._follow_subscription, client)
                await line.ended.wait()
                self._disconnected(connection)
                tasks.cancel_scope.cancel()

    def _client(self, transport: Any, changed: Signal) -> Client:
        async def on_message(message: Any) -> None:
            if isinstance(message, types.ToolListChangedNotification):
                changed.set()
            elif isinstance(message, Exception):
                self._garbage += 1

        return Client(
            transport,
            read_timeout_seconds=self.settings.timeout_s,
            client_info=types.Implementation(name=APP, version=version(APP)),
            message_handler=on_message,
            cache=None,
        )

    # the tool list --------------------------------------------------------------------------------

    async def _list_tools(self, client: Client) -> None:
        """Fetch the tool list; a changed one counts as a new generation."""
        found: dict[str, types.Tool] = {}
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor)
            found |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if not cursor or not page.tools or len(found) > MAX_TOOLS:
                break
        tools = tuple(found.values())[:MAX_TOOLS]
        if tools != self._tools:
            self._tools = tools
            self._wrappers = frozenset(tool.name for tool in tools if is_wrapper(tool))
            self.generation += 1
            self.on_change(self)

    async def _refresh(self, client: Client) -> None:
        try:
            await self._list_tools(client)
        except (MCPError, ValidationError, RuntimeError):
            return  # the list that is known stays in use; where the connection is over, the line says so

    async def _follow_notifications(self, client: Client, changed: Signal) -> None:
        """Older protocol revisions push a notification when the tools change."""
        while True:
            await changed.wait()
            await self._refresh(client)

    async def _follow_subscription(self, client: Client) -> None:
        """From 2026-07-28 on, a client subscribes to changes; a subscription that ends is opened again."""
        capability = client.server_capabilities.tools
        if capability is None or not capability.list_changed:
            return
        delay = FIRST_DELAY_S
        while True:
            try:
                async with client.listen(tools_list_changed=True) as events:
                    delay = FIRST_DELAY_S
                    await self._refresh(client)  # what changed while nobody listened
                    async for _ in events:
                        await self._refresh(client)
            except ListenNotSupportedError:
                return
            except (SubscriptionLost, MCPError, TimeoutError):
                pass
            await anyio.sleep(delay)
            delay = min(delay * 2, LAST_DELAY_S)


def innermost(error: BaseException) -> BaseException:
    """Return the first real exception in what may be nested groups of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def describe(error: BaseException, http_status: int) -> str:
    """Return what went wrong while connecting, without words that may hold a URL or a credential."""
    if http_status in (401, 403):
        return f"it refused the credentials (HTTP {http_status})"
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return f"{error.filename!r}: {error.strerror}"
    if isinstance(error, MCPError) and error.message == CLOSED:
        return "it ended before it was ready"
    status = f" (HTTP {http_status})" if http_status else ""
    if isinstance(error, MCPError):
        return f"it answered with error {error.code}, {error.message[:MAX_MESSAGE]!r}{status}"
    if isinstance(error, ValidationError):
        return f"what it said is no valid {error.title}{status}"
    return f"the connection failed with {type(error).__name__}{status}"


@asynccontextmanager
async def open_upstreams(
    settings: Mapping[str, UpstreamSettings], base_dir: Path, log_dir: Path
) -> AsyncIterator[dict[str, Upstream]]:
    """Yield the upstreams by name, none of them started yet; leaving ends all connections and their processes.

    Paths in the settings are relative to `base_dir`; the stderr of each upstream goes to a file in `log_dir`.
    """
    enabled = {name: entry for name, entry in settings.items() if not entry.disabled}
    upstreams = {name: Upstream(name, entry, base_dir, log_dir) for name, entry in enabled.items()}
    async with anyio.create_task_group() as tasks:
        for upstream in upstreams.values():
            tasks.start_soon(upstream.supervise, name=f"upstream {upstream.name}")
        try:
            yield upstreams
        finally:
            tasks.cancel_scope.cancel()
