"""The catalogue: finds, describes and calls the tools of all upstreams by their Python names.

Rule 1: an upstream that fails costs one line of an answer, never the whole answer.
Rule 2: a call with an unknown tool or parameter is refused here and does not reach an upstream.
Rule 3: requests come from sandboxed code, so their arguments are checked. Answers are plain JSON
data.
Rule 4: an upstream with credentials of each principal is, for everything here, another one for each
of them: its tools, modules, observed shapes and search results are found for the principal for
whom the task works, and for nobody else.
Rule 5: what is only shown (searches, listings, modules) may come from the stored tool list of an
earlier process and waits for no upstream that has one. A call waits for its own upstream alone, and
its effect follows from the list of this process.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import anyio

from ...errors import CallFailed
from ...journal.call_scope import find_call_scope
from ...journal.events import Effect, EncodedJson
from ...protocol.payloads import JsonObject, ToolDescription, ToolListing
from ...protocol.suggestions import did_you_mean
from ..call_arguments import get_argument
from .catalog_servers import CatalogServer, CatalogServers, ReportChange, ServerView
from .catalog_tools import CatalogTool, listing_entry
from .principal_upstreams import PrincipalUpstreams
from .server_description import Shim, format_brief_signatures
from .server_views import MAX_FETCHERS, ViewLoader, describe_listing_problem
from .shim_store import ShimStore
from .upstream import Upstream
from .view_index import IndexPool, ViewIndex

REFRESH_DELAY_S = 1.0  # after the start of the server, when a client is waiting
REFRESH_CONCURRENCY = 2  # upstreams that start early at a time; one that is needed does not wait
MAX_SEARCH_RESULTS = 50  # tools in the answer to a search
MAX_DETAILED_RESULTS = 3  # of them, the best ones, with all fields of the records that they take
MAX_NAMED_SESSIONS = 1_000  # whose last named problems are remembered
MAX_BRIEF_TOOLS = 16  # whose signatures might fit into the description of a tool
SAVE_TIMEOUT_S = 2.0  # for the last observed shapes to reach the disk at shutdown

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpstreamReport:
    """What `doctor` reports about one upstream; `error` is empty if it answers."""

    server: str
    upstream: str
    tools: int
    error: str
    remedy: str
    problems: tuple[str, ...]
    undeclared: tuple[str, ...] = ()  # tools whose effects nobody has declared


class Catalog:
    """All tools of all upstreams; created by `open_catalog`."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        shims: ShimStore,
        on_change: ReportChange,
        declares_read: Callable[[str], bool],
        own: Mapping[str, PrincipalUpstreams],
    ) -> None:
        self._servers = CatalogServers(upstreams, own, on_change)
        self._views = ViewLoader(shims, declares_read)
        self._indexes = IndexPool()
        self._named_problems: dict[str, dict[str, str]] = {}  # by session, then by server

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the names of upstreams."""
        return self._servers.problems

    @property
    def upstreams(self) -> dict[str, Upstream]:
        """The shared upstreams by their Python names."""
        return {name: server.upstream for name, server in self._servers.shared.items()}

    async def find_upstreams(self) -> dict[str, Upstream]:
        """Return the upstreams of the principal of this task by their Python names."""
        return {name: server.upstream for name, server in (await self._servers.load_all()).items()}

    def package_names(self) -> list[str]:
        """Return the names under which upstreams are importable, without starting them."""
        return self._servers.package_names()

    async def describe_briefly(self) -> list[str]:
        """Return the signatures of all tools if they are few and already known, else nothing.

        No upstream is started.
        """
        servers = await self._servers.load_all()
        known = {name: server.upstream.known_tools for name, server in servers.items()}
        if sum(len(tools or ()) for tools in known.values()) > MAX_BRIEF_TOOLS:
            return []
        found: list[str | None] = []
        for name, tools in known.items():
            if tools is None:
                return []
            found += await anyio.to_thread.run_sync(format_brief_signatures, name, tools)
        signatures = [each for each in found if each is not None]
        return signatures if len(signatures) == len(found) else []

    def find_fetchers(self) -> list[str]:
        """Return the known tools whose names say that they fetch from the network.

        Each run needs them, so nothing is computed here.
        """
        servers = self._servers.known()
        views = {name: server.view for name, server in servers.items() if server.view}
        found = (f"{name}.{tool}" for name, view in views.items() for tool in view.fetchers)
        return list(islice(found, MAX_FETCHERS))

    def find_idle_packages(self, code: str) -> list[str]:
        """Return the packages that `code` appears to use and that have not been started yet."""
        servers = self._servers.known()
        idle = (
            name
            for name, server in servers.items()
            if self._servers.has_own(name) or server.upstream.status.state == "idle"
        )
        return [name for name in idle if self._is_named(name, code)]

    def _is_named(self, package: str, code: str) -> bool:
        return re.search(rf"\b{package}\b", code) is not None

    async def start_upstreams(self, names: Iterable[str]) -> None:
        """Start upstreams concurrently, so that code that calls them waits only for the slowest.

        A failure is reported when the package is imported or called.
        """
        servers = await self._servers.load_all()
        await self._views.load_live_views({name: servers[name] for name in names})

    async def prepare_stored(self, code: str) -> None:
        """Prepare what is known for searches, and the modules of the packages that `code` names."""
        servers = await self._servers.load_all()
        for server in servers.values():
            if server.upstream.known_tools is not None:
                with suppress(CallFailed):  # it is reported to code that needs it
                    await self._views.load_view(server)
                    if self._is_named(server.name, code):
                        await self._views.load_shim(server)
        await self._find_index().update(servers)

    async def refresh(self) -> None:
        """Start every shared upstream to list its tools, soon after the start of the server.

        Those without stored tools are started first. A failure is reported when it matters.
        """
        await anyio.sleep(REFRESH_DELAY_S)
        slots = anyio.Semaphore(REFRESH_CONCURRENCY)

        async def start_one(server: CatalogServer) -> None:
            try:
                if server.upstream.known_tools is not None:
                    await self._views.load_view(
                        server
                    )  # searches use it until the upstream answers
                async with slots:
                    await self._views.load_live_views({server.name: server})
            except Exception:  # the others are started after any failure
                logger.exception("could not refresh the tools of %s", server.name)

        async with anyio.create_task_group() as tasks:
            for server in sorted(
                self._servers.shared.values(),
                key=lambda each: each.upstream.known_tools is not None,
            ):
                tasks.start_soon(start_one, server)

    def effect(self, target: str) -> Effect:
        """Return the effect of `tools.<server>.<tool>`, as the settings or the tool declare it.

        An unknown tool may write.
        """
        tool = self._find_known_tool(target)
        return tool.effect if tool else "write"

    def is_destructive(self, target: str) -> bool:
        """Return whether the tool declares that a call may destroy something."""
        tool = self._find_known_tool(target)
        return tool is not None and tool.is_destructive

    def name_target(self, target: str) -> tuple[str, str]:
        """Return the server and the tool that `target` names, each "" if it is unknown."""
        name = (*target.split(".", 2), "")[1]
        tool = self._find_known_tool(target)
        return (
            name if name in self._servers.known() else "",
            tool.function_name if tool else "",
        )

    def schema_digest(self, tool: str) -> str:
        """Return the digest of the schemas of a tool ("git.git_log"), or "" if it is unknown."""
        known = self._find_known_tool(f"tools.{tool}")
        return f"sha256:{known.schema_digest}" if known else ""

    def is_open_world(self, target: str) -> bool:
        """Return whether the answer to a call may contain third-party text.

        It may unless the tool declares a closed world.
        """
        tool = self._find_known_tool(target)
        return tool is None or not tool.is_closed_world

    def _find_known_tool(self, target: str) -> CatalogTool | None:
        """Return a tool that its upstream has listed for this process."""
        _, name, tool = (*target.split(".", 2), "", "")[:3]
        server = self._servers.known().get(name)
        view = server.live_view if server else None
        if view is None:
            return None
        # Skills name a tool as they import it.
        same = (each for each in view.tools.values() if each.function_name == tool)
        return view.tools.get(tool) or next(same, None)

    async def prepare_call(self, target: str) -> None:
        """Load the tool list, so that the effect of `target` is known; ignore failures."""
        server = await self._servers.load_one((*target.split(".", 2), "")[1])
        if server is not None:
            with suppress(CallFailed):
                await self._views.load_live_view(server)

    async def call_tool(self, target: str, args: Mapping[str, Any]) -> Any:
        """Call the tool that `target` (`tools.<server>.<tool>`) names; raises `CallFailed`."""
        _, name, tool_name = (*target.split(".", 2), "", "")[:3]
        server = await self._servers.find_for_call(name)
        view = await self._views.load_live_view(server)
        tool = view.tools.get(tool_name) or self._raise_unknown_tool(server, view, tool_name)
        tool.check_arguments(name, args)
        value = await server.upstream.call_tool(tool.upstream_name, args)
        self._views.observe_result(server, tool, value)
        return value

    async def handle_call(self, target: str, args: JsonObject) -> Any:
        """Answer a call from the sandbox; raises `CallFailed`.

        The targets are `catalog.search {query, limit}`, `catalog.list {server}`,
        `catalog.shim {server, fresh}` and `catalog.servers {}`.
        """
        if target == "catalog.servers":
            return self.package_names()
        if target == "catalog.search":
            return await self.search_tools(
                get_argument(args, "query", str, ""), get_argument(args, "limit", int, 10)
            )
        if target == "catalog.list":
            return await self.list_tools(get_argument(args, "server", str, None))
        if target == "catalog.shim":
            return await self.load_shim(
                get_argument(args, "server", str, ""), get_argument(args, "fresh", bool, False)
            )
        raise CallFailed("unknown_tool", f"The catalogue has no function {target!r}.")

    async def search_tools(self, query: str, limit: int = 10) -> ToolListing:
        """Return the tools that match any word of `query`, best first."""
        servers = await self._servers.load_all()
        _, problems = await self._views.load_views(servers)
        count = max(1, min(limit, MAX_SEARCH_RESULTS))
        found, views = await self._find_index().search(servers, query, count)
        tools = [
            listing_entry(server, views[server].tools[tool], in_full=place < MAX_DETAILED_RESULTS)
            for place, (server, tool) in enumerate(found)
        ]
        shown = self._select_problems(servers, problems, is_empty=not tools)
        return {"tools": tools, "problems": shown}

    def _find_index(self) -> ViewIndex:
        """Return the index of the principal of this task; where all have the same, of all."""
        return self._indexes.find_index(self._servers.index_owner)

    async def list_tools(self, server: str | None = None) -> ToolListing:
        """Return all tools, or those of one server."""
        if server is None:
            names = await self._servers.load_all()
        else:
            names = {server: await self._servers.find_for_call(server)}
        views, problems = await self._views.load_views(names)
        tools = build_listing(views)
        shown = self._select_problems(names, problems, is_empty=server is not None or not tools)
        return {"tools": tools, "problems": shown}

    async def list_live_tools(self) -> ToolListing:
        """Start every upstream and return all tools; those of a broken one are the stored ones."""
        servers = await self._servers.load_all()
        problems = await self._views.load_live_views(servers)
        views: dict[str, ServerView] = {}
        for name, server in servers.items():
            if server.upstream.known_tools is None:
                continue
            try:
                views[name] = await self._views.load_view(server)
            except CallFailed as error:
                problems.setdefault(name, str(error))
            if note := server.upstream.listing_note:
                problems.setdefault(name, note)
        return {"tools": build_listing(views), "problems": list(problems.values())}

    async def load_shim(self, server: str, fresh: bool = False) -> EncodedJson:
        """Return one server's module (`Shim`), from a fresh tool list if `fresh`.

        Raises `CallFailed`.
        """
        found = await self._servers.find_for_call(server)
        if fresh:
            with suppress(CallFailed):  # the stored tools, if any, are all that is known
                await found.upstream.list_tools()
            await found.upstream.refresh_tools()
        return await self._views.load_shim(found)

    async def load_live_shim(self, server: str) -> Shim:
        """Start a server, if needed, and return the module of its tools; raises `CallFailed`."""
        found = await self._servers.find_for_call(server)
        await self._views.load_live_view(found)
        shim: Shim = (await self._views.load_shim(found)).decode()
        return shim

    async def examine_upstreams(self) -> list[UpstreamReport]:
        """Start every upstream and report its state, for `doctor`."""
        reports: dict[str, UpstreamReport] = {}

        async def examine_one(server: CatalogServer) -> None:
            error, remedy, view = "", "", None
            try:
                view = await self._views.load_live_view(server)
            except CallFailed as failure:
                error = describe_listing_problem(server.upstream, failure.message)
                remedy = failure.remedy
            tools = view.tools if view else {}
            reports[server.name] = UpstreamReport(
                server.name,
                server.upstream.name,
                len(tools),
                error,
                remedy,
                (
                    *filter(None, [server.upstream.listing_note]),
                    *(view.problems if view else ()),
                ),
                tuple(name for name, tool in tools.items() if not tool.declares_effect),
            )

        async with anyio.create_task_group() as tasks:
            for server in self._servers.shared.values():
                tasks.start_soon(examine_one, server)
        return [reports[name] for name in self._servers.shared]

    def _raise_unknown_tool(self, server: CatalogServer, view: ServerView, name: str) -> NoReturn:
        listed = ", ".join(list(view.tools)[:MAX_SEARCH_RESULTS]) or "none"
        hint = did_you_mean(name, view.tools)
        raise CallFailed(
            "unknown_tool",
            f"{server.name} has no tool {name[:80]!r}. {hint}Tools: {listed}.",
            remedy=server.upstream.listing_note,
        )

    def _select_problems(
        self, asked: Iterable[str], problems: Mapping[str, str], *, is_empty: bool
    ) -> list[str]:
        """Return the problems to name: each one once in a session, or all if nothing was found."""
        scope = find_call_scope()
        if scope is None:
            return list(problems.values())
        known = self._named_problems.pop(scope.session_id, {})
        others = {name: text for name, text in known.items() if name not in asked}
        self._named_problems[scope.session_id] = {**others, **problems}
        if len(self._named_problems) > MAX_NAMED_SESSIONS:
            self._named_problems.pop(next(iter(self._named_problems)))
        return [text for name, text in problems.items() if is_empty or known.get(name) != text]

    async def save_observations(self) -> None:
        """Save observed shapes whenever there are new ones; runs until it is cancelled."""
        await self._views.save_observations()

    async def close(self) -> None:
        """Close the search indexes, and end what describes tools."""
        self._indexes.close()
        await self._views.close()


def build_listing(views: Mapping[str, ServerView]) -> list[ToolDescription]:
    """Return the tools of all `views` as entries of a listing."""
    return [
        listing_entry(name, tool) for name, view in views.items() for tool in view.tools.values()
    ]


@asynccontextmanager
async def open_catalog(
    upstreams: Mapping[str, Upstream],
    shims_dir: Path,
    on_change: ReportChange = lambda *_: None,
    declares_read: Callable[[str], bool] = lambda _: False,
    own: Mapping[str, PrincipalUpstreams] | None = None,
) -> AsyncIterator[Catalog]:
    """Yield the catalogue of `upstreams`, and of those that each principal has of its `own`.

    Shims and observed shapes are stored in `shims_dir`. `on_change` is called with the package of
    a server whose tools have changed since they were imported first, and with the principal if the
    server is its own. `declares_read` says of a tool ("git.git_log") whether the user has declared
    that it only reads.
    """
    shims = ShimStore(shims_dir)
    await anyio.to_thread.run_sync(shims.load_observed)
    catalog = Catalog(upstreams, shims, on_change, declares_read, own or {})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(catalog.save_observations)
        try:
            yield catalog
        finally:
            tasks.cancel_scope.cancel()
            with anyio.move_on_after(SAVE_TIMEOUT_S, shield=True):
                await anyio.to_thread.run_sync(shims.save_observed, abandon_on_cancel=True)
                await catalog.close()
