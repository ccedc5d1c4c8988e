"""The composition root: builds every part from the settings and fits them together. No logic of its own."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import anyio
from anyio.abc import TaskStatus

from .config import Config
from .errors import McpRuntimeError
from .journal import lease
from .journal.lease import Lease
from .journal.store import Journal, open_journal
from .runtime.calls import Route, Router
from .runtime.session import Runtime, open_runtime
from .sandbox import Backend
from .sandbox.docker import DockerBackend
from .sandbox.link import KERNEL_ARGV, KERNEL_ENV
from .sandbox.local import LocalBackend
from .server.mcp import build_server
from .tools.catalog import Catalog
from .tools.upstream import open_upstreams

SWEEP_S = 300.0  # a crashed server's containers end by themselves; what is left of them can wait

logger = logging.getLogger(__name__)


def make_backend(config: Config, owner: str) -> Backend:
    """Return the backend that the settings name; `auto` is Docker, because nothing else isolates."""
    is_alive = partial(lease.alive, config.server.data_dir)
    if config.sandbox.backend == "local":
        root = config.server.data_dir / "sandboxes"
        return LocalBackend(config.sandbox, root, KERNEL_ARGV, KERNEL_ENV, owner, is_alive)
    return DockerBackend(config.sandbox, config.server.data_dir, KERNEL_ARGV, KERNEL_ENV, owner, is_alive)


@dataclass(frozen=True)
class App:
    """Everything that a running server consists of."""

    config: Config
    journal: Journal
    catalog: Catalog
    backend: Backend
    runtime: Runtime


@asynccontextmanager
async def open_app(config: Config) -> AsyncIterator[App]:
    """Bring everything up; leaving takes it down in the opposite order, sandboxes included."""
    folder = config.server.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    with Lease(folder) as held:
        async with (
            open_journal(folder, held) as journal,
            open_upstreams(config.mcpServers, folder / "logs") as upstreams,
            anyio.create_task_group() as background,
        ):
            catalog = Catalog(upstreams, config.server.shims_dir)
            router = Router(
                {
                    "tools": Route(catalog.call, catalog.effect),
                    "catalog": Route(catalog.call, catalog.effect, listed=False),
                }
            )
            backend = make_backend(config, held.owner)
            background.start_soon(sweep, backend)
            async with open_runtime(config.server, config.sandbox, journal, router, backend) as runtime:
                yield App(config, journal, catalog, backend, runtime)
            background.cancel_scope.cancel()


async def sweep(backend: Backend) -> None:
    """Remove what dead servers left behind, now and from time to time."""
    while True:
        try:
            if count := await backend.sweep():
                logger.info("removed %d sandboxes of servers that are gone", count)
        except McpRuntimeError as exc:
            logger.warning("nothing was swept: %s", exc)
        await anyio.sleep(SWEEP_S)


async def serve_stdio(config: Config) -> None:
    """Serve MCP on stdin and stdout until stdin ends or the process is told to stop."""
    async with open_app(config) as app:
        server = build_server(config, app.runtime, app.catalog.package_names(), isolated=app.backend.isolated)
        async with anyio.create_task_group() as tasks:
            await tasks.start(_until_signal, tasks.cancel_scope)
            await server.run_stdio_async()
            tasks.cancel_scope.cancel()


async def _until_signal(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            logger.info("stopping: %s", number.name)
            scope.cancel()
            return
