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
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import anyio
from mcp import types

from ...errors import CallFailed
from ...journal.call_scope import current_principal, find_call_scope
from ...journal.events import Effect, canonical_json
from ...protocol.library_names import TOOLS_NAMES
from ...protocol.payloads import JsonObject, ToolDescription, ToolListing
from ...protocol.suggestions import did_you_mean, find_misspelled
from ..call_arguments import get_argument
from .principal_upstreams import PrincipalUpstreams
from .python_names import assign_names, describe_collisions
from .repeatable_event import RepeatableEvent
from .schema_annotations import SchemaDocument
from .shim_generator import (
    ShimModule,
    ToolShim,
    describe_module,
    render_shim,
    source_digest,
)
from .shim_store import ShimStore
from .signatures import MAX_RECORD_CHARS, format_brief_signature, format_signature
from .tool_index import ToolIndex, ToolRow
from .upstream import Upstream

START_TIMEOUT_S = 20.0  # for an upstream to start for a search or a listing; else it is left out
REFRESH_DELAY_S = 1.0  # after the start of the server, when a client is waiting
REFRESH_CONCURRENCY = 2  # upstreams that start early at a time; one that is needed does not wait
MAX_SEARCH_RESULTS = 50  # tools in the answer to a search
MAX_DETAILED_RESULTS = 3  # of them, the best ones, with all fields of the records that they take
EFFECT_HINTS = ("read_only_hint", "destructive_hint", "idempotent_hint")
MAX_NAMED_SESSIONS = 1_000  # whose last named problems are remembered
FETCHING = re.compile(r"(?i)(?:^|_)(?:fetch|browse|navigate|crawl|scrape|download|http|url)(?:_|$)")
MAX_FETCHERS = 5  # that a hint may name
MAX_OWN_SERVERS = 1_000  # of all principals, with their views; the others are built again
MAX_INDEXES = 100  # of principals that have servers of their own
MAX_BRIEF_TOOLS = 16  # whose signatures might fit into the description of a tool
SAVE_TIMEOUT_S = 2.0  # for the last observed shapes to reach the disk at shutdown

ReportChange = Callable[[str, str | None], None]  # package, and the principal if it is its own

logger = logging.getLogger(__name__)


class Shim(TypedDict):
    """The generated module of one server."""

    server: str
    source: str
    digest: str


@dataclass(frozen=True)
class CatalogTool:
    """One tool, ready to be called; `parameters` and `required` hold the upstream's own names."""

    upstream_name: str
    shim: ToolShim
    signature: str  # as listings show it
    parameters: frozenset[str]
    required: frozenset[str]
    accepts_extra: bool
    effect: Effect
    is_destructive: bool  # as the tool declares
    declares_effect: bool  # the effect is known: from annotations, or from the settings
    is_closed_world: bool  # as the tool declares: its answers contain no third-party text
    learns_results: bool  # the tool declares no output schema, so results are observed
    schema_digest: str  # of the input and output schemas

    def check_arguments(self, server: str, arguments: Mapping[str, Any]) -> None:
        """Raise `CallFailed` if a required argument is missing or an argument is unknown."""
        names = [parameter.upstream_name for parameter in self.shim.parameters]
        for name in arguments:
            if name in self.parameters:
                continue
            if self.accepts_extra and not find_misspelled(name, names, arguments):
                continue
            hint = did_you_mean(name, names)
            problem = f"has no parameter {name[:80]!r}. {hint}"
            self._raise_invalid_arguments(server, problem.strip())
        missing = sorted(self.required.difference(arguments))
        if missing:
            self._raise_invalid_arguments(server, f"needs {', '.join(map(repr, missing))}.")

    def _raise_invalid_arguments(self, server: str, problem: str) -> NoReturn:
        listed = ", ".join(p.upstream_name + "*" * p.is_required for p in self.shim.parameters)
        listing = f"Parameters: {listed} (* = required)." if listed else "It takes no parameters."
        raise CallFailed("invalid_arguments", f"{server}.{self.shim.name} {problem} {listing}")


@dataclass(frozen=True)
class ServerView:
    """One upstream's tools at one generation of its list and one revision of observed shapes.

    `fetchers` are the names of tools that fetch from the network.
    """

    generation: int
    revision: int
    tools: dict[str, CatalogTool]
    module: ShimModule
    fetchers: tuple[str, ...]


class CatalogServer:
    """One upstream under its Python name, with the latest view of its tools."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        self.name = name
        owner = upstream.owner_file_name
        self.file_name = f"{name}@{owner}" if owner else name  # of what is stored about it
        self.upstream = upstream
        self.view: ServerView | None = None
        self.shim: tuple[ServerView, Shim] | None = None  # the module of a view, once it is needed
        self.lock = anyio.Lock()

    @property
    def live_view(self) -> ServerView | None:
        """The latest view, if it shows tools that the upstream has listed for this process."""
        live_since = self.upstream.live_since
        if self.view is None or live_since is None or self.view.generation < live_since:
            return None
        return self.view


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
        names = assign_names([*upstreams, *own], "server", TOOLS_NAMES)
        self.problems = tuple(describe_collisions(names, "server", TOOLS_NAMES))
        self._on_change = on_change
        self._declares_read = declares_read
        self._shared = {
            names[key]: CatalogServer(names[key], upstream) for key, upstream in upstreams.items()
        }
        self._own = {names[key]: upstream for key, upstream in own.items()}
        self._own_servers: OrderedDict[tuple[str, str | None], CatalogServer] = OrderedDict()
        self._shims = shims
        self._indexes = IndexPool()
        self._named_problems: dict[str, dict[str, str]] = {}  # by session, then by server
        self._observations_changed = RepeatableEvent()
        for server in self._shared.values():
            server.upstream.add_change_listener(partial(self._report_change, server, None))

    # public interface -----------------------------------------------------------------------------

    @property
    def upstreams(self) -> dict[str, Upstream]:
        """The shared upstreams by their Python names."""
        return {name: server.upstream for name, server in self._shared.items()}

    async def find_upstreams(self) -> dict[str, Upstream]:
        """Return the upstreams of the principal of this task by their Python names."""
        return {name: server.upstream for name, server in (await self._load_servers()).items()}

    def package_names(self) -> list[str]:
        """Return the names under which upstreams are importable, without starting them."""
        return [*self._shared, *self._own]

    async def describe_briefly(self) -> list[str]:
        """Return the signatures of all tools if they are few and already known, else nothing.

        No upstream is started.
        """
        servers = await self._load_servers()
        known = {name: server.upstream.known_tools for name, server in servers.items()}
        if sum(len(tools or ()) for tools in known.values()) > MAX_BRIEF_TOOLS:
            return []
        found: list[str | None] = []
        for name, tools in known.items():
            if tools is None:
                return []
            module = await anyio.to_thread.run_sync(describe_module, name, name, tools)
            found += [format_brief_signature(name, tool) for tool in module.tools]
        signatures = [each for each in found if each is not None]
        return signatures if len(signatures) == len(found) else []

    def find_fetchers(self) -> list[str]:
        """Return the known tools whose names say that they fetch from the network.

        Each run needs them, so nothing is computed here.
        """
        servers = self._known_servers()
        views = {name: server.view for name, server in servers.items() if server.view}
        found = (f"{name}.{tool}" for name, view in views.items() for tool in view.fetchers)
        return list(islice(found, MAX_FETCHERS))

    def find_idle_packages(self, code: str) -> list[str]:
        """Return the packages that `code` appears to use and that have not been started yet."""
        servers = self._known_servers()
        idle = (
            name
            for name, server in servers.items()
            if name in self._own or server.upstream.status.state == "idle"
        )
        return [name for name in idle if self._is_named(name, code)]

    def _is_named(self, package: str, code: str) -> bool:
        return re.search(rf"\b{package}\b", code) is not None

    async def start_upstreams(self, names: Iterable[str]) -> None:
        """Start upstreams concurrently, so that code that calls them waits only for the slowest.

        A failure is reported when the package is imported or called.
        """
        servers = await self._load_servers()
        await self._load_live_views({name: servers[name] for name in names})

    async def prepare_stored(self, code: str) -> None:
        """Prepare what is known for searches, and the modules of the packages that `code` names."""
        servers = await self._load_servers()
        for server in servers.values():
            if server.upstream.known_tools is not None:
                view = await self._load_view(server)
                if self._is_named(server.name, code):
                    await self._load_shim(server, view)
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
                    await self._load_view(server)  # searches use it until the upstream answers
                async with slots:
                    await self._load_live_views({server.name: server})
            except Exception:  # the others are started after any failure
                logger.exception("could not refresh the tools of %s", server.name)

        async with anyio.create_task_group() as tasks:
            for server in sorted(
                self._shared.values(), key=lambda each: each.upstream.known_tools is not None
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
            name if name in self._known_servers() else "",
            tool.shim.function_name if tool else "",
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
        server = self._known_servers().get(name)
        view = server.live_view if server else None
        if view is None:
            return None
        # Skills name a tool as they import it.
        same = (each for each in view.tools.values() if each.shim.function_name == tool)
        return view.tools.get(tool) or next(same, None)

    async def prepare_call(self, target: str) -> None:
        """Load the tool list, so that the effect of `target` is known; ignore failures."""
        server = await self._load_server((*target.split(".", 2), "")[1])
        if server is not None:
            with suppress(CallFailed):
                await self._load_live_view(server)

    async def call_tool(self, target: str, args: JsonObject) -> Any:
        """Call the tool that `target` (`tools.<server>.<tool>`) names; raises `CallFailed`."""
        _, name, tool_name = (*target.split(".", 2), "", "")[:3]
        server = await self._find_server(name)
        view = await self._load_live_view(server)
        tool = view.tools.get(tool_name) or self._raise_unknown_tool(server, view, tool_name)
        tool.check_arguments(name, args)
        value = await server.upstream.call_tool(tool.upstream_name, args)
        if tool.learns_results and self._shims.observe_result(
            server.file_name, tool.upstream_name, value
        ):
            self._observations_changed.set()
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
        servers = await self._load_servers()
        _, problems = await self._load_views(servers)
        count = max(1, min(limit, MAX_SEARCH_RESULTS))
        found, views = await self._find_index().search(servers, query, count)
        tools = [listing_entry(server, views[server].tools[tool]) for server, tool in found]
        for entry in tools[:MAX_DETAILED_RESULTS]:
            module = views[entry["server"]].module
            shim = views[entry["server"]].tools[entry["tool"]].shim
            entry["signature"] = format_signature(module, shim, MAX_RECORD_CHARS)
        shown = self._select_problems(servers, problems, is_empty=not tools)
        return {"tools": tools, "problems": shown}

    def _find_index(self) -> ViewIndex:
        """Return the index of the principal of this task; where all have the same, of all."""
        return self._indexes.find_index(current_principal() if self._own else None)

    async def list_tools(self, server: str | None = None) -> ToolListing:
        """Return all tools, or those of one server."""
        if server is None:
            names = await self._load_servers()
        else:
            names = {server: await self._find_server(server)}
        views, problems = await self._load_views(names)
        tools = build_listing(views)
        shown = self._select_problems(names, problems, is_empty=server is not None or not tools)
        return {"tools": tools, "problems": shown}

    async def list_live_tools(self) -> ToolListing:
        """Start every upstream and return all tools; those of a broken one are the stored ones."""
        servers = await self._load_servers()
        problems = await self._load_live_views(servers)
        known = {
            name: server
            for name, server in servers.items()
            if server.upstream.known_tools is not None
        }
        views = {name: await self._load_view(server) for name, server in known.items()}
        for name, server in known.items():
            if note := server.upstream.listing_note:
                problems.setdefault(name, note)
        return {"tools": build_listing(views), "problems": list(problems.values())}

    async def load_shim(self, server: str, fresh: bool = False) -> Shim:
        """Return one server's module, from a fresh tool list if `fresh`; raises `CallFailed`."""
        found = await self._find_server(server)
        if fresh:
            with suppress(CallFailed):  # the stored tools, if any, are all that is known
                await found.upstream.list_tools()
            await found.upstream.refresh_tools()
        return await self._load_shim(found, await self._load_view(found))

    async def load_live_shim(self, server: str) -> Shim:
        """Start a server, if needed, and return the module of its tools; raises `CallFailed`."""
        found = await self._find_server(server)
        return await self._load_shim(found, await self._load_live_view(found))

    async def examine_upstreams(self) -> list[UpstreamReport]:
        """Start every upstream and report its state, for `doctor`."""
        reports: dict[str, UpstreamReport] = {}

        async def examine_one(server: CatalogServer) -> None:
            error, remedy, view = "", "", None
            try:
                view = await self._load_live_view(server)
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
                    *(view.module.problems if view else ()),
                ),
                tuple(name for name, tool in tools.items() if not tool.declares_effect),
            )

        async with anyio.create_task_group() as tasks:
            for server in self._shared.values():
                tasks.start_soon(examine_one, server)
        return [reports[name] for name in self._shared]

    # servers --------------------------------------------------------------------------------------

    async def _load_servers(self) -> dict[str, CatalogServer]:
        """Return the servers of the principal of this task, as its credentials are now."""
        principal = current_principal()
        own = {name: await each.find(principal) for name, each in self._own.items()}
        return self._shared | {
            name: self._own_server(name, principal, upstream) for name, upstream in own.items()
        }

    async def _load_server(self, name: str) -> CatalogServer | None:
        """Return one of the servers of the principal of this task; None if there is none."""
        if name not in self._own:
            return self._shared.get(name)
        principal = current_principal()
        return self._own_server(name, principal, await self._own[name].find(principal))

    def _known_servers(self) -> dict[str, CatalogServer]:
        """Return the servers of the principal of this task, as they were used last."""
        principal = current_principal()
        return self._shared | {
            name: self._own_server(name, principal, each.peek(principal))
            for name, each in self._own.items()
        }

    def _own_server(self, name: str, principal: str | None, upstream: Upstream) -> CatalogServer:
        """Return a principal's own server; with another connection it is a new one."""
        known = self._own_servers.get((name, principal))
        server = known
        if server is None or server.upstream is not upstream:
            server = self._own_servers[name, principal] = CatalogServer(name, upstream)
            upstream.add_change_listener(partial(self._report_change, server, principal))
            if known is not None:
                self._on_change(name, principal)
        self._own_servers.move_to_end((name, principal))
        if len(self._own_servers) > MAX_OWN_SERVERS:
            self._own_servers.popitem(last=False)
        return server

    async def _find_server(self, name: str) -> CatalogServer:
        """Return the server that a call needs; where its credential is missing, a person is asked.

        Raises `CallFailed`.
        """
        if name in self._own:
            principal = current_principal()
            return self._own_server(name, principal, await self._own[name].find_or_ask(principal))
        server = self._shared.get(name)
        if server is None:
            packages = self.package_names()
            listed = ", ".join(packages[:MAX_SEARCH_RESULTS]) or "none"
            hint = did_you_mean(name, packages)
            raise CallFailed(
                "unknown_tool",
                f"There is no MCP server {name[:80]!r}. {hint}Servers: {listed}.",
            )
        return server

    def _raise_unknown_tool(self, server: CatalogServer, view: ServerView, name: str) -> NoReturn:
        listed = ", ".join(list(view.tools)[:MAX_SEARCH_RESULTS]) or "none"
        hint = did_you_mean(name, view.tools)
        raise CallFailed(
            "unknown_tool",
            f"{view.module.name} has no tool {name[:80]!r}. {hint}Tools: {listed}.",
            remedy=server.upstream.listing_note,
        )

    # views ----------------------------------------------------------------------------------------

    async def _load_views(
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
            views[server.name] = await self._load_view(server)

        async with anyio.create_task_group() as tasks:
            for server in names.values():
                tasks.start_soon(load, server)
        ordered = {name: views[name] for name in names if name in views}
        return ordered, {name: problems[name] for name in names if name in problems}

    async def _load_live_views(self, names: Mapping[str, CatalogServer]) -> dict[str, str]:
        """Start servers, and return one sentence about each that does not answer in time."""
        problems: dict[str, str] = {}

        async def load(server: CatalogServer) -> None:
            if problem := await self._wait_for_tools(server, START_TIMEOUT_S):
                problems[server.name] = problem
            else:
                await self._load_live_view(server)

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

    async def _load_live_view(self, server: CatalogServer) -> ServerView:
        """Return a view of what `server` has listed for this process; raises `CallFailed`."""
        await server.upstream.list_tools()
        view = server.view
        if view is not None and view.generation == server.upstream.generation:
            return view
        return await self._load_view(server)

    async def _load_view(self, server: CatalogServer) -> ServerView:
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
                built = await anyio.to_thread.run_sync(
                    self._build_view, server, tools, generation, revision
                )
                server.view = view = built
                server.upstream.add_listing_cost(time.perf_counter() - started)
            return view

    def _build_view(
        self, server: CatalogServer, tools: tuple[types.Tool, ...], generation: int, revision: int
    ) -> ServerView:
        """Build the view of one generation.

        This runs in a thread, because a hostile tool list may take a while.
        """
        module = describe_module(
            server.name, server.upstream.name, tools, self._shims.observed_shapes(server.file_name)
        )
        by_name = {
            shim.name: build_catalog_tool(
                tool,
                shim,
                format_signature(module, shim),
                only_reads=self._declares_read(f"{server.name}.{shim.name}"),
            )
            for tool, shim in zip(tools, module.tools, strict=True)
        }
        fetchers = (name for name in by_name if FETCHING.search(name))
        return ServerView(
            generation, revision, by_name, module, tuple(islice(fetchers, MAX_FETCHERS))
        )

    async def _load_shim(self, server: CatalogServer, view: ServerView) -> Shim:
        """Return the module of a view, which is generated once."""
        async with server.lock:
            if server.shim is None or server.shim[0] is not view:
                started = time.perf_counter()
                built = await anyio.to_thread.run_sync(self._build_shim, server, view)
                server.shim = (view, built)
                server.upstream.add_listing_cost(time.perf_counter() - started)
            return server.shim[1]

    def _build_shim(self, server: CatalogServer, view: ServerView) -> Shim:
        name, source = view.module.name, render_shim(view.module)
        self._shims.save_shim(server.file_name, source)
        return {"server": name, "source": source, "digest": source_digest(source)}

    def _report_change(self, server: CatalogServer, principal: str | None) -> None:
        if server.upstream.generation > 1:  # code may have imported the first one
            self._on_change(server.name, principal)

    async def save_observations(self) -> None:
        """Save observed shapes whenever there are new ones; runs until it is cancelled."""
        while True:
            await self._observations_changed.wait()
            await anyio.to_thread.run_sync(self._shims.save_observed)

    def close(self) -> None:
        """Close the search indexes."""
        self._indexes.close()


class ViewIndex:
    """The tools of the latest views of some servers, for searches; used by one thread at a time."""

    def __init__(self) -> None:
        self._index = ToolIndex()
        self._indexed: dict[str, tuple[CatalogServer, ServerView]] = {}
        self._lock = anyio.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether a thread uses the index."""
        return self._lock.locked()

    async def update(self, servers: Mapping[str, CatalogServer]) -> None:
        """Let searches find the tools of the latest views, and no others."""
        async with self._lock:
            await self._update(servers)

    async def search(
        self, servers: Mapping[str, CatalogServer], query: str, limit: int
    ) -> tuple[list[tuple[str, str]], dict[str, ServerView]]:
        """Return (server, tool) of the tools that match any word of `query`, best first.

        The second value has the views in which they are.
        """
        async with self._lock:
            await self._update(servers)
            found = await anyio.to_thread.run_sync(self._index.search, query, limit)
            return found, {name: view for name, (_, view) in self._indexed.items()}

    async def _update(self, servers: Mapping[str, CatalogServer]) -> None:
        latest = {name: (each, each.view) for name, each in servers.items() if each.view}
        for name in self._indexed.keys() - latest.keys():
            await anyio.to_thread.run_sync(self._index.replace_server, name, [])
            del self._indexed[name]
        for name, (server, view) in latest.items():
            known = self._indexed.get(name)
            is_listed = known and (known[0], known[1].generation) == (server, view.generation)
            if not is_listed:
                await anyio.to_thread.run_sync(self._index_view, name, view)
            self._indexed[name] = server, view

    def _index_view(self, name: str, view: ServerView) -> None:
        """Index the tools of a view, in a thread: there may be thousands."""
        rows = [index_row(name, tool.shim) for tool in view.tools.values()]
        self._index.replace_server(name, rows)

    def close(self) -> None:
        """Close the index."""
        self._index.close()


class IndexPool:
    """An index for each principal that searched last.

    What one principal's servers list must not change the ranks of another's.
    """

    def __init__(self) -> None:
        self._indexes: OrderedDict[str | None, ViewIndex] = OrderedDict()

    def find_index(self, principal: str | None) -> ViewIndex:
        """Return the index of a principal; None stands for all, where all have the same tools."""
        index = self._indexes.get(principal)
        if index is None:
            index = self._indexes[principal] = ViewIndex()
        self._indexes.move_to_end(principal)
        self._close_unused()
        return index

    def _close_unused(self) -> None:
        """Close the indexes that were used longest ago, if there are too many."""
        for principal, index in list(self._indexes.items())[:-1]:
            if len(self._indexes) <= MAX_INDEXES:
                return
            if not index.is_busy:
                index.close()
                del self._indexes[principal]

    def close(self) -> None:
        """Close all indexes."""
        for each in self._indexes.values():
            each.close()


def build_catalog_tool(
    tool: types.Tool, shim: ToolShim, signature: str, *, only_reads: bool = False
) -> CatalogTool:
    """Return `tool` with everything that is needed to check a call.

    With `only_reads`, the user has declared that it changes nothing.
    """
    parts = SchemaDocument(tool.input_schema).object_schema(tool.input_schema)
    hints = tool.annotations or types.ToolAnnotations()
    schemas = canonical_json([tool.input_schema, tool.output_schema])
    return CatalogTool(
        upstream_name=tool.name,
        shim=shim,
        signature=signature,
        parameters=frozenset(parts.properties),
        required=parts.required,
        accepts_extra=parts.accepts_extra,
        effect="read" if only_reads else declared_effect(tool),
        is_destructive=hints.destructive_hint is True and not hints.read_only_hint,
        declares_effect=only_reads
        or any(getattr(hints, name) is not None for name in EFFECT_HINTS),
        is_closed_world=hints.open_world_hint is False,
        learns_results=not tool.output_schema,
        schema_digest=sha256(schemas.encode()).hexdigest(),
    )


def declared_effect(tool: types.Tool) -> Effect:
    """Return the effect that `tool` declares; a tool without annotations may write."""
    hints = tool.annotations
    if hints and hints.read_only_hint:
        return "read"
    return "idempotent" if hints and hints.idempotent_hint else "write"


def describe_listing_problem(upstream: Upstream, problem: object) -> str:
    """Return `problem`, and that a listing shows the tools of `upstream` although calls fail."""
    if upstream.preloaded_at is None:
        return str(problem)
    listed = datetime.fromtimestamp(upstream.preloaded_at, UTC)
    return f"{problem} Its tools are those of {listed:%Y-%m-%d %H:%M} UTC; calls fail."


def build_listing(views: Mapping[str, ServerView]) -> list[ToolDescription]:
    """Return the tools of all `views` as entries of a listing."""
    return [
        listing_entry(name, tool) for name, view in views.items() for tool in view.tools.values()
    ]


def listing_entry(server: str, tool: CatalogTool) -> ToolDescription:
    """Return one tool as an entry of a listing."""
    shim = tool.shim
    summary = shim.summary
    if shim.function_name != shim.name:
        summary = f"import {shim.function_name}: {summary}"
    return {
        "server": server,
        "tool": shim.name,
        "signature": tool.signature,
        "summary": summary,
        "effect": tool.effect,
    }


def index_row(server: str, shim: ToolShim) -> ToolRow:
    """Return one tool as a row of the search index."""
    return ToolRow(
        server,
        shim.name,
        shim.summary,
        shim.description.removeprefix(shim.summary),
        " ".join(parameter.name for parameter in shim.parameters),
        " ".join(parameter.note for parameter in shim.parameters),
    )


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
            catalog.close()
