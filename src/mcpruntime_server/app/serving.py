"""Serves one app to clients: over stdin and stdout, or over HTTP, with its metrics and traces."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import (
    asynccontextmanager,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server import MCPServer
from starlette.types import ASGIApp

from ..capabilities.tools.catalog import Catalog
from ..config import Config
from ..config.telemetry import sends_traces
from ..errors import ConfigError
from ..journal.call_scope import act_for
from ..journal.principals import LOCAL_PRINCIPAL
from ..runtime.inspector import Inspector
from ..runtime.observer import RuntimeObserver
from ..runtime.run import Run
from ..runtime.runtime import Runtime
from ..server.delivery import DeliveryCursor, FindCursor
from ..server.run_starter import RunStarter
from ..server.stdio_transport import open_stdio_streams

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ..service.authentication import Authentication, TokenSource
    from ..viewer.browser_logins import BrowserLogins

from ..runtime.shutdown import cancel_when_set
from .composition import open_app

TRACES_REMEDY = "Install `mcpruntime-server[otel]`."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Traces:
    """How traces are recorded: by default, not at all."""

    create_observers: Callable[[Catalog], Sequence[RuntimeObserver]] = lambda _: ()
    wrap_app: Callable[[ASGIApp], ASGIApp] = lambda app: app
    read_context: Callable[[MCPServer[Any]], None] = lambda _: None


async def serve_stdio(config: Config, is_stopping: anyio.Event) -> None:
    """Serve MCP on stdin and stdout until stdin ends or `is_stopping` is set."""
    act_for(LOCAL_PRINCIPAL)
    async with (
        open_traces(config) as traces,
        open_app(config, create_observers=traces.create_observers) as app,
    ):
        cursor = DeliveryCursor()  # over stdio there is one client
        server = await app.open_mcp_server(LOCAL_PRINCIPAL, lambda _: cursor)
        traces.read_context(server)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_when_set, is_stopping, tasks.cancel_scope)
            tasks.start_soon(app.catalog.refresh)
            streams = open_stdio_streams(app.large_json, cursor.record_timed_out)
            async with streams as (incoming, outgoing):
                # The SDK has no public method that runs a server on given streams.
                lowlevel = server._lowlevel_server
                await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())
            tasks.cancel_scope.cancel()


async def serve_http(
    config: Config,
    is_stopping: anyio.Event,
    listener: socket.socket,
    tokens: TokenSource | None,
    logins: BrowserLogins | None = None,
    *,
    resume_runs: bool = True,
) -> None:
    """Serve MCP, the HTTP API and the viewer until `is_stopping` is set.

    Without `tokens`, everybody is served. `logins` are the browsers that are logged in.
    """
    from ..service.api_services import ApiServices  # which stdio does not need
    from ..service.credential_pages import find_page_url
    from ..service.http_service import run_http_server
    from ..service.metrics import RuntimeMetrics, create_registry
    from ..service.operations import Operations
    from ..viewer.browser_logins import BrowserLogins
    from ..viewer.page_rendering import prepare_pages
    from ..viewer.page_routes import build_page_routes

    gc.freeze()  # what is imported stays: no garbage collection need examine it
    registry = create_registry()
    logins = logins or BrowserLogins()

    def create_observers(catalog: Catalog) -> Sequence[RuntimeObserver]:
        metrics = RuntimeMetrics(registry, catalog.name_target)
        return [metrics, *traces.create_observers(catalog)]

    async def open_mcp_server(principal: str, find_cursor: FindCursor) -> MCPServer[Any]:
        server = await app.open_mcp_server(principal, find_cursor)
        traces.read_context(server)
        return server

    async with (
        open_traces(config) as traces,
        open_app(
            config,
            resume_runs=resume_runs,
            create_observers=create_observers,
            credentials_url=find_page_url(config.http, listener),
        ) as app,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(app.catalog.refresh)
        tasks.start_soon(release_when_set, is_stopping, app.runtime)
        tasks.start_soon(prepare_pages)
        operations = Operations(
            registry,
            app.runtime,
            app.journal,
            app.backend.run_checks,
            lambda: [each.status.state for each in app.catalog.upstreams.values()],
            config.http.metrics_token.get_secret_value(),
            traces.wrap_app,
        )
        starter = RunStarter(config.sandbox, app.runtime, app.inputs)

        def keep_as_skill_later(run: Run, principal: str) -> None:
            tasks.start_soon(app.keep_when_finished, run, principal)

        api = ApiServices(
            config,
            app.runtime,
            Inspector(app.runtime),
            starter,
            keep_as_skill_later,
            app.catalog.package_names,
            is_stopping,
        )

        def build_pages(authentication: Authentication) -> Sequence[BaseRoute]:
            has_tokens = tokens is not None
            return build_page_routes(
                api, app.find_saver, logins, authentication, needs_token=has_tokens
            )

        await run_http_server(
            open_mcp_server,
            api,
            config.http,
            listener,
            tokens,
            operations,
            is_stopping,
            app.large_json,
            build_pages,
        )
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def open_traces(config: Config) -> AsyncIterator[Traces]:
    """Yield what records traces, which does nothing unless a collector is configured.

    Raises `ConfigError` if the settings name one and the packages for it are not installed.
    """
    if not sends_traces(config.telemetry):
        yield Traces()
        return
    try:
        from ..service.tracing import RuntimeTraces, TraceContextReader, open_tracer
    except ImportError as exc:
        if config.telemetry.traces_url:
            raise ConfigError(f"No traces can be sent: {exc}.", remedy=TRACES_REMEDY) from exc
        logger.warning("no traces are sent: %s. %s", exc, TRACES_REMEDY)
        yield Traces()
        return
    models = frozenset(filter(None, (config.llm.model, *config.llm.models)))
    context = TraceContextReader()
    async with open_tracer(config.telemetry.traces_url) as tracer:
        yield Traces(
            lambda catalog: [RuntimeTraces(tracer, catalog.name_target, models)],
            context.wrap_app,
            lambda server: server._lowlevel_server.middleware.append(context.handle_mcp_request),
        )


async def release_when_set(event: anyio.Event, runtime: Runtime) -> None:
    """End all requests with what is known of their runs when `event` is set."""
    await event.wait()
    runtime.release_requests()
