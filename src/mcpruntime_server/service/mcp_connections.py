"""MCP connections that outlive the process in which they were opened.

Clients of the revisions before 2026-07-28 open a connection with `initialize`, and name it in every
request. Most of them fail for good when a server no longer knows it. So the id of a
connection repeats what its client has said, and a server that does not know an id opens the
connection again. Nothing has to be stored or shared with other servers.

Nothing in an id is trusted: its client could say the same with `initialize`. An id names its
principal by a digest, so that to others it is as unknown as one that was never given.
"""

from __future__ import annotations

import base64
import json
import math
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from hashlib import sha256
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import INVALID_PARAMS, InitializeRequestParams
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from ..capabilities.large_json import SplitJson
from ..protocol.payloads import JsonObject
from ..server.connections import find_http_request

MAX_CONNECTIONS = 250  # of one principal, 0.1 MB each; idle ones make room and can be opened again
IDLE_TIMEOUT_S = 300.0
MAX_ENDED_CONNECTIONS = 10_000  # ids that their clients have ended, and which stay so
MAX_OPENING_BYTES = 64 * 1024  # of an `initialize`: only that opens a connection
TOO_LONG_OPENING = f"A request that opens a connection has at most {MAX_OPENING_BYTES:,} bytes."
MAX_ID_CHARS = 2_000  # proxies limit the size of headers
PRINCIPAL_DIGITS = 16
CONNECTION_ID = re.compile(r"([0-9a-f]{32})([0-9a-f]{16})\.([A-Za-z0-9_-]{2,})")
ID_HEADER = MCP_SESSION_ID_HEADER.lower().encode()
HEADER_KEYWORD = "x-mcp-header"  # of the schema of a parameter
RESUME_HEADER = b"last-event-id"  # streams are not resumed: a new one takes the place of the old
LONG_TEXTS_KEY = "mcpruntime_server.long_texts"  # in the scope of a request
KEPT_HEADERS = (b"host", b"origin", b"user-agent")  # what the SDK checks, and what logs name

opening_id: ContextVar[str | None] = ContextVar("opening_id", default=None)


def encode_connection_id(principal: str, params: Mapping[str, Any]) -> str | None:
    """Return a new id that repeats the parameters of an `initialize`; None if they are too long."""
    client = params.get("clientInfo")
    kept = {
        "protocolVersion": params.get("protocolVersion"),
        "capabilities": params.get("capabilities"),
        "clientInfo": {
            key: value
            for key, value in (client if isinstance(client, dict) else {}).items()
            if key in ("name", "version")
        },
    }
    data = json.dumps(kept, separators=(",", ":")).encode()
    number = uuid.uuid4().hex
    encoded = base64.urlsafe_b64encode(data).decode().rstrip("=")
    text = f"{number}{principal_digest(principal, number)}.{encoded}"
    return text if len(text) <= MAX_ID_CHARS else None


def decode_connection_id(principal: str, text: str) -> JsonObject | None:
    """Return the parameters that an id repeats; None if it is none of this principal's."""
    match = CONNECTION_ID.fullmatch(text[: MAX_ID_CHARS + 1])
    if match is None or len(text) > MAX_ID_CHARS:
        return None
    number, digest, encoded = match.groups()
    if digest != principal_digest(principal, number):
        return None
    try:
        params = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        InitializeRequestParams.model_validate(params, by_name=False)
    except (ValueError, RecursionError):
        return None
    return dict(params)


def principal_digest(principal: str, number: str) -> str:
    """Return what an id with that number says of its principal."""
    return sha256(f"{number} {principal}".encode()).hexdigest()[:PRINCIPAL_DIGITS]


class ConnectionManager(StreamableHTTPSessionManager):
    """The SDK's manager, whose connections can be opened again by their ids."""

    def __init__(self, server: Server[Any], principal: str) -> None:
        super().__init__(server, session_idle_timeout=IDLE_TIMEOUT_S, max_sessions=MAX_CONNECTIONS)
        server.middleware += [refuse_long_opening, fill_in_long_texts]
        if server.get_tool_input_schema is not None:
            server.get_tool_input_schema = find_header_schemas(server.get_tool_input_schema)
        self._principal = principal
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._reopening = anyio.Lock()

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        return len(self._server_instances)

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request of a connection, or one that opens a connection."""
        connection = Headers(scope=scope).get(MCP_SESSION_ID_HEADER)
        if connection is None:
            body, receive = await read_ahead(receive)
            if len(body) > MAX_OPENING_BYTES:  # it would be kept as long as the connection
                raise HTTPException(413, TOO_LONG_OPENING)
            await self._open(self._new_id(body), scope, receive, send)
            return
        if scope["method"] != "DELETE":
            await self._reopen(connection, scope)
        headers = [each for each in scope["headers"] if each[0] != RESUME_HEADER]
        scope = {**scope, "headers": headers}
        was_open = connection in self._server_instances
        await super()._handle_stateful_request(scope, receive, send)
        if was_open and scope["method"] == "DELETE" and connection not in self._server_instances:
            self._ended[connection] = None
            if len(self._ended) > MAX_ENDED_CONNECTIONS:
                self._ended.popitem(last=False)

    def _new_id(self, body: bytes) -> str | None:
        """Return an id for the connection that a body opens; None if the SDK may choose one."""
        params = find_opening(body)
        return None if params is None else encode_connection_id(self._principal, params)

    async def _open(self, new_id: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that may open a connection, which gets `new_id`."""
        token = opening_id.set(new_id)
        try:
            await super()._handle_stateful_request(scope, receive, send)
        finally:
            opening_id.reset(token)

    async def _reopen(self, connection: str, scope: Scope) -> None:
        """Open a connection that this process does not know, as its client has opened it."""
        if connection in self._server_instances or connection in self._ended:
            return
        params = decode_connection_id(self._principal, connection)
        if params is None:
            return
        async with self._reopening:
            if connection in self._server_instances:
                return
            initialize = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
            request = OwnRequest(scope, initialize)
            await self._open(connection, request.scope, request.receive, request.send)
            if request.status == 200:
                initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
                request = OwnRequest(scope, initialized, connection)
                await super()._handle_stateful_request(request.scope, request.receive, request.send)

    def _admit_session(
        self, requestor: AuthorizationContext | None
    ) -> StreamableHTTPServerTransport | None:
        """Register a new connection under its id."""
        if len(self._server_instances) >= MAX_CONNECTIONS:
            self._close_longest_idle()
        transport = super()._admit_session(requestor)
        wanted = opening_id.get()
        if transport is not None and wanted is not None:
            assert transport.mcp_session_id is not None
            del self._server_instances[transport.mcp_session_id]
            self._session_owners.pop(transport.mcp_session_id, None)
            transport.mcp_session_id = wanted
            self._server_instances[wanted] = transport
            if requestor is not None:
                self._session_owners[wanted] = requestor
        return transport

    def _close_longest_idle(self) -> None:
        """Close the connection that has been idle longest; its client can open it again."""
        idle = [
            (transport.idle_scope.deadline, name, transport.idle_scope)
            for name, transport in self._server_instances.items()
            if transport.idle_scope is not None and math.isfinite(transport.idle_scope.deadline)
        ]
        if idle:
            _, name, idle_scope = min(idle, key=lambda each: each[:2])
            del self._server_instances[name]
            self._session_owners.pop(name, None)
            idle_scope.cancel()

    async def _discard_session(
        self, session_id: str, transport: StreamableHTTPServerTransport
    ) -> None:
        """Forget a connection that has ended, unless it was opened again meanwhile."""
        if self._server_instances.get(session_id, transport) is transport:
            await super()._discard_session(session_id, transport)
        elif not transport.is_terminated:
            with anyio.CancelScope(shield=True):
                await transport.terminate()


FindSchema = Callable[[str], Mapping[str, Any] | None]


def find_header_schemas(find_schema: FindSchema) -> FindSchema:
    """Return what finds the schemas of those tools that have parameters in headers, too.

    The SDK compares the two in each request; it need not look for what is not there.
    """

    @lru_cache
    def find(name: str) -> Mapping[str, Any] | None:
        schema = find_schema(name)
        return schema if HEADER_KEYWORD in json.dumps(schema) else None

    return find


async def refuse_long_opening(
    ctx: ServerRequestContext[Any, Any], call_next: CallNext
) -> HandlerResult:
    """Refuse an `initialize` whose parameters are too long to be kept; raises `MCPError`.

    One that comes on an open connection is a request like others.
    """
    if ctx.method == "initialize" and len(json.dumps(ctx.params)) > MAX_OPENING_BYTES:
        raise MCPError(INVALID_PARAMS, TOO_LONG_OPENING)
    return await call_next(ctx)


async def fill_in_long_texts(
    ctx: ServerRequestContext[Any, Any], call_next: CallNext
) -> HandlerResult:
    """Put the long texts of a large request into its parameters, from which they were taken."""
    request = find_http_request(ctx)
    split: SplitJson | None = None if request is None else request.scope.get(LONG_TEXTS_KEY)
    if split is not None:
        split.fill_in({"params": ctx.params})
    return await call_next(ctx)


class OwnRequest:
    """A request that the server sends to itself in the name of a client."""

    def __init__(self, scope: Scope, message: Any, connection: str = "") -> None:
        self._body = json.dumps(message).encode()
        self._is_read = False
        self.status = 0
        headers = [each for each in scope["headers"] if each[0] in KEPT_HEADERS]
        headers += [
            (b"accept", b"application/json, text/event-stream"),
            (b"content-type", b"application/json"),
        ]
        if connection:
            headers.append((ID_HEADER, connection.encode()))
        self.scope = {**scope, "method": "POST", "headers": headers, LONG_TEXTS_KEY: None}

    async def receive(self) -> Message:
        """Return the body; after that nothing comes, and nobody leaves."""
        if self._is_read:
            await anyio.sleep_forever()
        self._is_read = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Note the status."""
        if message["type"] == "http.response.start":
            self.status = message["status"]


async def read_ahead(receive: Receive) -> tuple[bytes, Receive]:
    """Return a body and how it is received again; of a long body only the beginning is read."""
    messages: list[Message] = []
    size = 0
    while size <= MAX_OPENING_BYTES:
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
        if not messages[-1].get("more_body"):
            break
    body = b"".join(each.get("body", b"") for each in messages)

    async def receive_again() -> Message:
        return messages.pop(0) if messages else await receive()

    return body, receive_again


def find_opening(body: bytes) -> JsonObject | None:
    """Return the parameters of the `initialize` in a body; None if it is something else."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or message.get("method") != "initialize":
        return None
    params = message.get("params")
    return params if isinstance(params, dict) else None
