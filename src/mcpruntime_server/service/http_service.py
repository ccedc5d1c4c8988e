"""The HTTP server: its routes, its limits on connections, and how it stops."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

import anyio
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route

from ..capabilities.large_json import LargeJson
from ..config import HttpSettings
from .api import build_api_routes
from .api_services import ApiServices
from .authentication import Authentication, TokenSource
from .credential_pages import CredentialPages
from .http_connections import (
    KEEP_ALIVE_S,
    MAX_ACCEPTED_PER_TURN,
    MAX_CONNECTIONS,
    MAX_UNACCEPTED,
    SPARE_CONNECTIONS,
    HttpConnection,
    allow_many_files,
)
from .mcp_endpoint import McpEndpoint, OpenMcpServer, PrincipalServers
from .operations import Operations
from .problems import handle_failure, handle_http_exception
from .request_checks import RequestChecks, allowed_headers

MCP_PATH = "/mcp"
GRACE_S = 5  # for requests to end when the server stops


def build_http_app(
    authentication: Authentication,
    mcp: McpEndpoint,
    others: Sequence[BaseRoute],
    security: TransportSecuritySettings,
) -> Starlette:
    """Return the application with all of its routes."""
    return Starlette(
        routes=[
            Route(MCP_PATH, authentication.protect(mcp)),
            *authentication.build_routes(),
            *others,
        ],
        middleware=[Middleware(RequestChecks, security)],
        exception_handlers={HTTPException: handle_http_exception, Exception: handle_failure},
    )


class HttpServer(uvicorn.Server):
    """uvicorn without handlers for signals: the command line has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, a few in each turn of the event loop."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(MAX_UNACCEPTED)  # asyncio has made the queue as short as a turn


async def run_http_server(
    open_server: OpenMcpServer,
    api: ApiServices,
    settings: HttpSettings,
    listener: socket.socket,
    tokens: TokenSource | None,
    operations: Operations,
    is_stopping: anyio.Event,
    large_json: LargeJson,
    build_pages: Callable[[Authentication], Sequence[BaseRoute]] = lambda _: (),
) -> None:
    """Serve until `is_stopping` is set; requests that are under way then have `GRACE_S`.

    `build_pages` returns the routes for browsers.
    """
    allow_many_files()
    async with anyio.create_task_group() as tasks:
        security = allowed_headers(settings)
        endpoint = McpEndpoint(PrincipalServers(open_server, tasks), large_json)
        authentication = Authentication(tokens, settings)
        routes = [
            *operations.build_routes(authentication, endpoint.count_connections, tasks),
            *build_api_routes(api, authentication),
            *CredentialPages(
                api.config, authentication, needs_token=tokens is not None
            ).build_routes(),
            *build_pages(authentication),
        ]
        server = HttpServer(
            uvicorn.Config(
                operations.wrap_app(build_http_app(authentication, endpoint, routes, security)),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(settings.proxies),
                forwarded_allow_ips=list(settings.proxies),
                http=HttpConnection,
                ws="none",
                backlog=MAX_ACCEPTED_PER_TURN,
                limit_concurrency=MAX_CONNECTIONS + SPARE_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        tasks.start_soon(authentication.end_responses)
        tasks.start_soon(endpoint.ping_clients)
        tasks.start_soon(stop_when_set, is_stopping, endpoint, server)
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


async def stop_when_set(event: anyio.Event, endpoint: McpEndpoint, server: uvicorn.Server) -> None:
    """Tell a server to stop when `event` is set."""
    await event.wait()
    endpoint.end_streams()
    server.should_exit = True
