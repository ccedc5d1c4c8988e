"""What is known of the connections of clients: over stdio one, over HTTP as many as there are.

In the older revisions of the protocol a client opens a connection over HTTP and names it in each
request (`Mcp-Session-Id`). In the newer ones each request stands for itself.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER

from .delivery import DeliveryCursor

MAX_CONNECTIONS = 10_000  # that are remembered, the least recently used ones forgotten first
STDIO_CONNECTION = "stdio"
RESPONSE_KEY = "mcpruntime_server.response"  # in the ASGI scope of a request: what answers it


def find_connection_id(ctx: Any) -> str | None:
    """Return the id of the connection that a request came through; None if it belongs to none."""
    request = find_http_request(ctx)
    if request is None:
        return STDIO_CONNECTION
    header: str | None = request.headers.get(MCP_SESSION_ID_HEADER)
    return header


def find_http_request(ctx: Any) -> Any:
    """Return the HTTP request that a message came in; None over stdio."""
    return (ctx.request_context if isinstance(ctx, Context) else ctx).request


def has_lost_token(ctx: Any) -> bool:
    """Return whether a request ends because its token is no longer valid."""
    request = find_http_request(ctx)
    response = None if request is None else request.scope.get(RESPONSE_KEY)
    return response is not None and response.has_lost_token


class ConnectionCursors:
    """The delivery cursors of one principal's connections.

    Requests that belong to no connection share the cursor of their client's name.
    """

    def __init__(self) -> None:
        self._cursors: OrderedDict[tuple[str, str], DeliveryCursor] = OrderedDict()

    def find_cursor(self, ctx: Any) -> DeliveryCursor:
        """Return the cursor of the connection that a request came through."""
        connection = find_connection_id(ctx)
        key = ("client", find_client_name(ctx)) if connection is None else ("", connection)
        cursor = self._cursors.get(key)
        if cursor is None:
            cursor = self._cursors[key] = DeliveryCursor()
        self._cursors.move_to_end(key)
        if len(self._cursors) > MAX_CONNECTIONS:
            self._cursors.popitem(last=False)
        return cursor


def find_client_name(ctx: Any) -> str:
    """Return what a client calls itself; "" if it does not say."""
    params = ctx.session.client_params
    return "" if params is None or params.client_info is None else params.client_info.name
