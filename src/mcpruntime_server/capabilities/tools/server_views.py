"""Builds views of upstreams: the tools that one has listed, ready to be called, and its module."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NoReturn

import anyio

from ...errors import CallFailed
from ...journal.events import EncodedJson
from .catalog_servers import CatalogServer, ServerView
from .catalog_tools import CatalogTool
from .listed_tools import ListedTool
from .repeatable_event import RepeatableEvent
from .server_description import (
    DescribedServer,
    DescriptionProcess,
    ListedServer,
    describe_server,
    encode_shapes,
    render_module,
)
from .shim_store import ShimStore
from .upstream import Upstream

START_TIMEOUT_S = 20.0  # for an upstream to start for a search or a listing; else it is left out
FETCHING = re.compile(r"(?i)(?:^|_)(?:fetch|browse|navigate|crawl|scrape|download|http|url)(?:_|$)")
MAX_FETCHERS = 5  # that a hint may name


class ViewLoader:
    """Loads the views of servers; a view is built once for each tool list and set of shapes.

    `declares_read` says of a tool ("git.git_log") whether the user has declared that it only reads.
    """

    def __init__(self, shims: ShimStore, declares_read: Callable[[str], bool]) -> None:
        self._shims = shims
        self._declares_read = declares_read
        self._observations_changed = RepeatableEvent()
        self._process = DescriptionProcess()

    async def close(self) -> None:
        """End what describes long lists of tools."""
        await self._process.close()

    async def load_views(
        self, names: Mapping[str, CatalogServer]
    ) -> tuple[dict[str, ServerView], dict[str, str]]:
        """Return the views of servers whose tools are known or arrive in time.

        The second value has one sentence about each server that is broken or not there yet.
        """
        views: dict[str, ServerView] = {}
        problems: dict[str, str] = {}

        async def load(server: CatalogServer) -> None:
            upstream = server.upstream
            failure = upstream.failure
            if upstream.live_since is None and failure is not None:
                upstream.request_connection()  # it may work by the next time
                problems[server.name] = describe_listing_problem(upstream, failure)
                if upstream.known_tools is None:
                    return
            if upstream.known_tools is None:
                wait_s = max(0.0, START_TIMEOUT_S - upstream.connecting_s)
                if problem := await self._wait_for_tools(server, wait_s):
                    problems[server.name] = problem
                    return
            if note := upstream.listing_note:
                problems[server.name] = note
            try:
                views[server.name] = await self.load_view(server)
            except CallFailed as error:
                problems[server.name] = str(error)

        async with anyio.create_task_group() as tasks:
            for server in names.values():
                tasks.start_soon(load, server)
        ordered = {name: views[name] for name in names if name in views}
        return ordered, {name: problems[name] for name in names if name in problems}

    async def load_live_views(self, names: Mapping[str, CatalogServer]) -> dict[str, str]:
        """Start servers, and return one sentence about each that does not answer in time."""
        problems: dict[str, str] = {}

        async def load(server: CatalogServer) -> None:
            if problem := await self._wait_for_tools(server, START_TIMEOUT_S):
                problems[server.name] = problem
                return
            try:
                await self.load_live_view(server)
            except CallFailed as error:
                problems[server.name] = str(error)

        async with anyio.create_task_group() as tasks:
            for server in names.values():
                tasks.start_soon(load, server)
        return {name: problems[name] for name in names if name in problems}

    async def _wait_for_tools(self, server: CatalogServer, wait_s: float) -> str:
        """Wait until `server` has listed its tools; return why it has not, or "" if it has."""
        with anyio.move_on_after(wait_s):
            try:
                await server.upstream.list_tools()
            except CallFailed as error:
                return describe_listing_problem(server.upstream, error)
            return ""
        return f"{server.name} is still starting. Try again in a moment."

    async def load_live_view(self, server: CatalogServer) -> ServerView:
        """Return a view of what `server` has listed for this process; raises `CallFailed`."""
        await server.upstream.list_tools()
        view = server.view
        if view is not None and view.generation == server.upstream.generation:
            return view
        return await self.load_view(server)

    async def load_view(self, server: CatalogServer) -> ServerView:
        """Return a view of the tools that are known, which may be stored ones.

        If none are known, the upstream starts. Raises `CallFailed`.
        """
        tools = server.upstream.known_tools
        if tools is None:
            tools = await server.upstream.list_tools()
        async with server.lock:
            generation = server.upstream.generation
            revision = self._shims.shapes_revision(server.file_name)
            view = server.view
            if view is None or (view.generation, view.revision) != (generation, revision):
                tools = server.upstream.known_tools or tools
                started = time.perf_counter()
                described = await self._describe(server, tools)
                view = await anyio.to_thread.run_sync(
                    self._build_view, server.name, described, generation, revision
                )
                server.view = view
                server.upstream.add_listing_cost(time.perf_counter() - started)
            return view

    async def _describe(
        self, server: CatalogServer, tools: Sequence[ListedTool]
    ) -> DescribedServer:
        listed = await self._list_server(server, tools)
        if not listed.is_long:
            return await anyio.to_thread.run_sync(describe_server, listed)
        try:
            return await self._process.describe(listed)
        except ValueError as error:
            raise_not_described(server, error)

    async def _render(self, server: CatalogServer) -> EncodedJson:
        listed = await self._list_server(server, server.upstream.known_tools or ())
        if not listed.is_long:
            return await anyio.to_thread.run_sync(render_module, listed, self._shims)
        try:
            return await self._process.render(listed, self._shims.folder)
        except ValueError as error:
            raise_not_described(server, error)

    async def _list_server(
        self, server: CatalogServer, tools: Sequence[ListedTool]
    ) -> ListedServer:
        observed = self._shims.observed_shapes(server.file_name)
        shapes = await anyio.to_thread.run_sync(encode_shapes, tools, observed)
        return ListedServer(server.name, server.upstream.name, server.file_name, tools, shapes)

    def _build_view(
        self, server: str, described: DescribedServer, generation: int, revision: int
    ) -> ServerView:
        """Build the view of one generation, in a thread: there may be thousands of tools."""
        tools: dict[str, CatalogTool] = {}
        for tool in described.tools:
            only_reads = self._declares_read(f"{server}.{tool.name}")
            declared = replace(tool, effect="read", declares_effect=True) if only_reads else tool
            tools[tool.name] = declared
        fetchers = (name for name in tools if FETCHING.search(name))
        return ServerView(
            generation,
            revision,
            tools,
            described.problems,
            tuple(islice(fetchers, MAX_FETCHERS)),
        )

    async def load_shim(self, server: CatalogServer) -> EncodedJson:
        """Return the module of the tools that are known (`Shim`), which is generated once.

        Raises `CallFailed`.
        """
        view = await self.load_view(server)
        async with server.lock:
            if server.shim is None or server.shim[0] is not view:
                started = time.perf_counter()
                server.shim = (view, await self._render(server))
                server.upstream.add_listing_cost(time.perf_counter() - started)
            return server.shim[1]

    def observe_result(self, server: CatalogServer, tool: CatalogTool, value: Any) -> None:
        """Learn the shape of a result, if the tool declares none."""
        if tool.learns_results and self._shims.observe_result(
            server.file_name, tool.upstream_name, value
        ):
            self._observations_changed.set()

    async def save_observations(self) -> None:
        """Save observed shapes whenever there are new ones; runs until it is cancelled."""
        while True:
            await self._observations_changed.wait()
            await anyio.to_thread.run_sync(self._shims.save_observed)


def describe_listing_problem(upstream: Upstream, problem: object) -> str:
    """Return `problem`, and that a listing shows the tools of `upstream` although calls fail."""
    if upstream.preloaded_at is None:
        return str(problem)
    listed = datetime.fromtimestamp(upstream.preloaded_at, UTC)
    return f"{problem} Its tools are those of {listed:%Y-%m-%d %H:%M} UTC; calls fail."


def raise_not_described(server: CatalogServer, problem: ValueError) -> NoReturn:
    """Raise why the tools of a server cannot be described."""
    raise CallFailed(
        "too_large",
        f"The tools of {server.name} cannot be described: {problem}.",
        remedy=f"Lower `tools_mb` under [mcpServers.{server.upstream.name}], or try again.",
    ) from None
