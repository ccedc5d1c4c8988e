"""MCP over streamable HTTP, at `/mcp`: each principal has an MCP server of its own.

So nobody's connection, session, task or form can be named by anybody else: to other principals,
they do not exist. Who a principal is follows from the bearer token alone.

Rule: this module knows neither sandboxes nor journals. Sessions may live in another process later.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import uvicorn
from anyio.abc import TaskGroup, TaskStatus
from mcp.server import MCPServer
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import AccessToken as SdkAccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..config import HttpSettings
from ..journal.rows import LOCAL_PRINCIPAL
from .access_tokens import TokenStore
from .connections import ConnectionCursors
from .delivery import FindCursor

MCP_PATH = "/mcp"
GRACE_S = 5  # for requests to end when the server stops
KEEP_ALIVE_S = 60  # of an idle connection
MAX_CONNECTIONS = 1_000  # at once; the next ones get 503
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")

OpenMcpServer = Callable[[str, FindCursor], Awaitable[MCPServer[Any]]]

logger = logging.getLogger(__name__)


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


def find_principal(scope: Scope) -> str:
    """Return the principal of a request; without authentication it is the local user."""
    user = scope.get("user")
    return LOCAL_PRINCIPAL if user is None else str(user.access_token.subject)


class TokenVerifier:
    """Lets the SDK's middleware check tokens."""

    def __init__(self, tokens: TokenStore) -> None:
        self._tokens = tokens

    async def verify_token(self, token: str) -> SdkAccessToken | None:
        """Return whose token it is; None if it is not valid."""
        found = await anyio.to_thread.run_sync(self._tokens.find_token, token)
        if found is None:
            return None
        expires_at = None if found.expires_at is None else int(found.expires_at)
        return SdkAccessToken(
            token="",  # nothing behind the middleware needs it
            client_id=found.id,
            scopes=[],
            expires_at=expires_at,
            subject=found.principal,
        )


def build_http_app(servers: PrincipalServers, tokens: TokenStore | None) -> Starlette:
    """Return the application; without `tokens` nobody is asked who they are."""
    if tokens is None:
        return Starlette(routes=[Route(MCP_PATH, McpEndpoint(servers))])
    endpoint = RequireAuthMiddleware(McpEndpoint(servers), required_scopes=[])
    backend = BearerAuthBackend(TokenVerifier(tokens))
    return Starlette(
        routes=[Route(MCP_PATH, endpoint)],
        middleware=[Middleware(AuthenticationMiddleware, backend=backend)],
    )


class HttpServer(uvicorn.Server):
    """uvicorn without handlers for signals: the command line has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


async def serve_http(
    open_server: OpenMcpServer,
    settings: HttpSettings,
    listener: socket.socket,
    tokens: TokenStore | None,
    is_stopping: anyio.Event,
) -> None:
    """Serve until `is_stopping` is set; requests that are under way then have `GRACE_S`."""
    async with anyio.create_task_group() as tasks:
        servers = PrincipalServers(open_server, allowed_headers(settings), tasks)
        server = HttpServer(
            uvicorn.Config(
                build_http_app(servers, tokens),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        tasks.start_soon(stop_when_set, is_stopping, server)
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


async def stop_when_set(event: anyio.Event, server: uvicorn.Server) -> None:
    """Tell a server to stop when `event` is set."""
    await event.wait()
    server.should_exit = True
