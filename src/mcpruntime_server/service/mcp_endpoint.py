"""MCP over streamable HTTP: each principal has an MCP server of its own.

So nobody's connection, session, task or form can be named by anybody else: to other principals,
they do not exist.

Rule: this module knows neither sandboxes nor journals. Sessions may live in another process later.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus
from mcp.server import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from ..capabilities.large_json import LARGE_BYTES, LargeJson
from ..errors import InvalidRequest
from ..server.connections import ConnectionCursors
from ..server.delivery import FindCursor
from ..server.permissions import MCP_SCOPES, required_scopes
from .authentication import check_scopes, find_caller, find_response
from .deferred_streams import DeferredStreams, asks_for_answer_only
from .http_connections import cancel_when_closed
from .mcp_connections import LONG_TEXTS_KEY, ConnectionManager

METHOD_HEADER, LISTEN = b"mcp-method", b"subscriptions/listen"
LONG_PARAMETERS = ("arguments", "inputResponses")  # in which clients send code and answers

MAX_SERVERS = 1_000  # of principals; each takes a quarter of a megabyte

OpenMcpServer = Callable[[str, FindCursor], Awaitable[MCPServer[Any]]]


@dataclass
class PrincipalServer:
    """The MCP server of one principal, and how many requests it handles now."""

    manager: ConnectionManager
    answering: StreamableHTTPSessionManager  # requests for which only an answer is sent
    scope: anyio.CancelScope
    requests: int = 0


class PrincipalServers:
    """The MCP servers of the principals; each starts with the first request of its principal.

    There may be more principals than fit into memory. So the server that has been unused longest
    stops when there are too many; the next request of its principal starts another.
    """

    def __init__(
        self,
        open_server: OpenMcpServer,
        tasks: TaskGroup,
        max_servers: int = MAX_SERVERS,
    ) -> None:
        self._open_server = open_server
        self._tasks = tasks
        self._max_servers = max_servers
        self._servers: OrderedDict[str, PrincipalServer] = OrderedDict()  # last used last
        self._starting = anyio.Lock()

    @asynccontextmanager
    async def use_server(self, principal: str) -> AsyncIterator[PrincipalServer]:
        """Yield what handles the requests of a principal, and keep it until it has done so."""
        if principal not in self._servers:
            async with self._starting:
                if principal not in self._servers:
                    self._stop_unused()
                    self._servers[principal] = await self._tasks.start(self._serve, principal)
        self._servers.move_to_end(principal)
        server = self._servers[principal]
        server.requests += 1
        try:
            yield server
        finally:
            server.requests -= 1

    def count_connections(self) -> int:
        """Return how many connections of all principals are open."""
        return sum(server.manager.connection_count for server in self._servers.values())

    def _stop_unused(self) -> None:
        """Stop the server that has been unused longest, if there are too many."""
        if len(self._servers) < self._max_servers:
            return
        unused = (name for name, server in self._servers.items() if not server.requests)
        principal = next(unused, None)
        if principal is not None:
            self._servers.pop(principal).scope.cancel()

    async def _serve(self, principal: str, *, task_status: TaskStatus[PrincipalServer]) -> None:
        server = await self._open_server(principal, ConnectionCursors().find_cursor)
        # The SDK's own application would check tokens and be one server for all of them.
        manager = ConnectionManager(server._lowlevel_server, principal)
        answering = StreamableHTTPSessionManager(server._lowlevel_server, json_response=True)
        with anyio.CancelScope() as scope:
            async with manager.run(), answering.run():
                task_status.started(PrincipalServer(manager, answering, scope))
                await anyio.sleep_forever()


class McpEndpoint:
    """Passes a request to the MCP server of the principal that it comes from."""

    def __init__(self, servers: PrincipalServers, large_json: LargeJson) -> None:
        self._servers = servers
        self._large_json = large_json
        self._streams: set[anyio.CancelScope] = set()
        self._deferred = DeferredStreams()
        self._is_stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that is authenticated."""
        caller = find_caller(scope)
        is_answered_only = False
        if scope["method"] == "POST":
            try:
                body = await Request(scope, receive).body()
            except ClientDisconnect:
                return  # the SDK would log an error
            if len(body) > LARGE_BYTES:
                split = await self._large_json.split(body, LONG_PARAMETERS)
                body, scope = split.rest, {**scope, LONG_TEXTS_KEY: split}
                scope = declare_length(scope, len(body))
            if not caller.scopes >= MCP_SCOPES:
                message = parse_request_body(body)
                check_scopes(caller, required_scopes(message))
                body = json.dumps(message, separators=(",", ":")).encode()
                scope = declare_length(scope, len(body))
            receive = receive_again(body, receive)
            is_answered_only = asks_for_answer_only(scope, body)
        async with self._servers.use_server(caller.principal) as server:
            if opens_stream(scope):
                await self._serve_stream(server.manager, scope, receive, send)
            elif is_answered_only:
                await self._answer(server.answering, scope, receive, send)
            else:
                await server.manager.handle_request(scope, receive, send)

    async def _answer(
        self,
        manager: StreamableHTTPSessionManager,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Handle a request for which only an answer is sent; it ends when its client leaves."""
        work = find_response(scope).cancel_scope
        with cancel_when_closed(scope, work), self._deferred.defer(send) as response:
            await manager.handle_request(scope, receive, response.send)

    async def ping_clients(self) -> None:
        """Tell clients that wait long that they are not forgotten; runs until it is cancelled."""
        await self._deferred.ping()

    async def _serve_stream(
        self, manager: ConnectionManager, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve a stream that has no end of its own until its client leaves or the server stops."""
        is_open = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_open
            is_open = message["type"] == "http.response.start" or bool(message.get("more_body"))
            await send(message)

        with anyio.CancelScope() as stream:
            self._streams.add(stream)
            try:
                if not self._is_stopping:
                    await manager.handle_request(scope, receive, send_and_note)
            finally:
                self._streams.discard(stream)
        if is_open:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def count_connections(self) -> int:
        """Return how many connections clients have opened with `initialize`."""
        return self._servers.count_connections()

    def end_streams(self) -> None:
        """End the streams that only listen: the server stops."""
        self._is_stopping = True
        for stream in self._streams:
            stream.cancel()


def opens_stream(scope: Scope) -> bool:
    """Return whether a request only listens for notifications, in either era of the protocol."""
    if scope["method"] == "GET":
        return True
    return any(name == METHOD_HEADER and value == LISTEN for name, value in scope["headers"])


def parse_request_body(body: bytes) -> Any:
    """Return the JSON in a body; raises `InvalidRequest`."""
    try:
        return json.loads(body, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest("The body of the request is not JSON.") from exc


def refuse_constant(name: str) -> Any:
    """Raise `ValueError` for what Python reads and JSON does not have."""
    raise ValueError(name)


def declare_length(scope: Scope, length: int) -> Scope:
    """Return the scope of a request whose body has another length.

    The MCP server reads what was checked, even where two parsers of JSON would disagree: about a
    name that occurs twice, for example.
    """
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    headers.append((b"content-length", str(length).encode()))
    return {**scope, "headers": headers}


def receive_again(body: bytes, receive: Receive) -> Receive:
    """Return what receives a body, and then what follows it."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_body() -> Message:
        return parts.pop() if parts else await receive()

    return receive_body
