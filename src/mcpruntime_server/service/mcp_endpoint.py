"""MCP over streamable HTTP: each principal has an MCP server of its own.

So nobody's connection, session, task or form can be named by anybody else: to other principals,
they do not exist.

Rule: this module knows neither sandboxes nor journals. Sessions may live in another process later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus
from mcp.server import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import Receive, Scope, Send

from ..config import HttpSettings
from ..server.connections import ConnectionCursors
from ..server.delivery import FindCursor
from .authentication import find_principal

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")

OpenMcpServer = Callable[[str, FindCursor], Awaitable[MCPServer[Any]]]


def allowed_headers(settings: HttpSettings) -> TransportSecuritySettings:
    """Return what the headers Host and Origin may be, against rebinding of names."""
    hosts = [f"{host}:*" for host in LOOPBACK_HOSTS]
    return TransportSecuritySettings(
        allowed_hosts=[*hosts, *LOOPBACK_HOSTS, *settings.allowed_hosts],
        allowed_origins=[*(f"http://{host}" for host in hosts), *settings.allowed_origins],
    )


class PrincipalServers:
    """The MCP servers of the principals; each starts with the first request of its principal."""

    def __init__(
        self, open_server: OpenMcpServer, security: TransportSecuritySettings, tasks: TaskGroup
    ) -> None:
        self._open_server = open_server
        self._security = security
        self._tasks = tasks
        self._managers: dict[str, StreamableHTTPSessionManager] = {}
        self._starting = anyio.Lock()

    async def find_manager(self, principal: str) -> StreamableHTTPSessionManager:
        """Return what handles the requests of a principal."""
        async with self._starting:
            if principal not in self._managers:
                self._managers[principal] = await self._tasks.start(self._serve, principal)
            return self._managers[principal]

    async def _serve(
        self, principal: str, *, task_status: TaskStatus[StreamableHTTPSessionManager]
    ) -> None:
        server = await self._open_server(principal, ConnectionCursors().find_cursor)
        # The SDK's own application would check tokens and be one server for all of them.
        manager = StreamableHTTPSessionManager(
            server._lowlevel_server, security_settings=self._security
        )
        async with manager.run():
            task_status.started(manager)
            await anyio.sleep_forever()


class McpEndpoint:
    """Passes a request to the MCP server of the principal that it comes from."""

    def __init__(self, servers: PrincipalServers) -> None:
        self._servers = servers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that is authenticated."""
        manager = await self._servers.find_manager(find_principal(scope))
        await manager.handle_request(scope, receive, send)
