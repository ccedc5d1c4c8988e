"""The catalogue: every tool of every upstream under its Python name, found, described and called.

Rule 1: an upstream that fails is one line in an answer, never the end of it.
Rule 2: nothing is asked of an upstream that can be seen to be wrong here: unknown tools and parameters go no further.
Rule 3: whatever is asked comes from sandboxed code, so it is checked; what is answered is plain JSON data.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NoReturn

import anyio
from mcp import types

from ..errors import CallFailed
from ..journal.events import canonical_json
from ..kernel.guest import PUBLIC
from ..kernel.results import did_you_mean
from .index import Index, Row
from .names import collisions, unique
from .schemas import Document
from .shelf import Shelf
from .shims import Module, ToolShim, describe_module, digest, render
from .upstream import Signal, Upstream

WAIT_S = 20.0  # for an upstream that a search or a listing has to start; a slower one is named and left out
MAX_FOUND = 50  # tools in the answer to a search
SAVE_S = 2.0  # for the last of what was learned to reach the disk

Effect = Literal["read", "idempotent", "write"]
Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Tool:
    """One tool, ready to be called: the names of its parameters are its own, not Python's."""

    wire: str
    shim: ToolShim
    parameters: frozenset[str]
    required: frozenset[str]
    open: bool
    effect: Effect
    destructive: bool  # as it says itself
    closed: bool  # its answers hold nothing that strangers wrote, as it says itself
    learns: bool
    schema: str  # digest of what it takes and returns

    def check(self, server: str, arguments: Mapping[str, Any]) -> None:
        """Raise `CallFailed` if `arguments` lack something or have something that the tool does not know."""
        unknown = [name for name in arguments if name not in self.parameters]
        if unknown and not self.open:
            self._refuse(
                server, f"has no parameter {unknown[0]!r}. {did_you_mean(unknown[0], self.parameters)}".strip()
            )
        missing = sorted(self.required.difference(arguments))
        if missing:
            self._refuse(server, f"needs {', '.join(map(repr, missing))}.")

    def _refuse(self, server: str, problem: str) -> NoReturn:
        listed = ", ".join(p.wire + "*" * p.required for p in self.shim.parameters)
        listing = f"Parameters: {listed} (* = required)." if listed else "It takes no parameters."
        raise CallFailed("invalid_arguments", f"{server}.{self.shim.name} {problem} {listing}")


@dataclass(frozen=True)
class View:
    """One upstream's tools as of one generation of its list and one state of what was learned."""

    generation: int
    revision: int
    tools: dict[str, Tool]
    module: Module
    source: str
    digest: str


class Server:
    """One upstream under its Python name, and the latest view of it."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        self.name = name
        self.upstream = upstream
        self.view: View | None = None
        self.lock = anyio.Lock()


@dataclass(frozen=True)
class Report:
    """What `doctor` says of one upstream: `error` is empty where it answers."""

    server: str
    upstream: str
    tools: int
    error: str
    remedy: str
    problems: tuple[str, ...]


class Catalog:
    """All tools of all upstreams; make one with `open_catalog`."""

    def __init__(self, upstreams: Mapping[str, Upstream], shelf: Shelf) -> None:
        names = unique(upstreams, "server", PUBLIC.keys())
        self.problems = tuple(collisions(names, "server", PUBLIC.keys()))
        self.on_change: Callable[[str], None] = lambda _: None
        self._servers = {names[key]: Server(names[key], upstream) for key, upstream in upstreams.items()}
        self._shelf = shelf
        self._index = Index()
        self._learned = Signal()
        for server in self._servers.values():
            server.upstream.on_change = self._changed(server)

    # what others use ------------------------------------------------------------------------------

    @property
    def handlers(self) -> dict[str, Handler]:
        """What the router calls, by the first part of a call's target."""
        return {"tools": self.call, "catalog": self.answer}

    @property
    def upstreams(self) -> dict[str, Upstream]:
        """The upstreams by their Python names."""
        return {name: server.upstream for name, server in self._servers.items()}

    def package_names(self) -> list[str]:
        """Return the names under which upstreams are importable; starts none of them."""
        return list(self._servers)

    def named_in(self, code: str) -> list[str]:
        """Return the packages that `code` seems to use and that have not been started yet."""
        idle = (name for name, server in self._servers.items() if server.upstream.status.state == "idle")
        return [name for name in idle if re.search(rf"\b{name}\b", code)]

    async def start(self, names: Iterable[str]) -> None:
        """Start upstreams all at once, so that code which imports them waits for the slowest and not for each.

        What goes wrong is told when they are imported.
        """
        await self._views({name: self._servers[name] for name in names})

    def effect(self, target: str) -> Effect:
        """Return what a call of `tools.<server>.<tool>` may do, as far as the tool says; what is unknown may write."""
        tool = self._known(target)
        return tool.effect if tool else "write"

    def is_destructive(self, target: str) -> bool:
        """Return whether a tool says that a call of it may destroy something."""
        tool = self._known(target)
        return tool is not None and tool.destructive

    def schema(self, tool: str) -> str:
        """Return the digest of what a tool ("git.git_log") takes and returns; "" if that is not known now."""
        known = self._known(f"tools.{tool}")
        return f"sha256:{known.schema}" if known else ""

    def is_open(self, target: str) -> bool:
        """Return whether the answer to a call may hold what strangers wrote: unless the tool says that it does not."""
        tool = self._known(target)
        return tool is None or not tool.closed

    def _known(self, target: str) -> Tool | None:
        _, server, tool = (*target.split(".", 2), "", "")[:3]
        view = self._servers[server].view if server in self._servers else None
        return view.tools.get(tool) if view else None

    async def prepare(self, target: str) -> None:
        """Have it known what a call of `target` may do; what goes wrong is told to the call itself."""
        server = self._servers.get((*target.split(".", 2), "")[1])
        if server is not None and (server.view is None or server.view.generation != server.upstream.generation):
            with suppress(CallFailed):
                await self._view(server)

    async def call(self, target: str, args: dict[str, Any]) -> Any:
        """Call the tool that `target` (`tools.<server>.<tool>`) names; raises `CallFailed`."""
        _, name, tool_name = (*target.split(".", 2), "", "")[:3]
        server = self._server(name)
        view = server.view
        if view is None or view.generation != server.upstream.generation:
            view = await self._view(server)
        tool = view.tools.get(tool_name) or self._unknown_tool(view, tool_name)
        tool.check(name, args)
        value = await server.upstream.call(tool.wire, args)
        if tool.learns and self._shelf.learn(name, tool.wire, value):
            self._learned.set()
        return value

    async def answer(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `catalog.search {query, limit}`, `.list {server}`, `.shim {server, fresh}` or `.servers {}`."""
        if target == "catalog.servers":
            return self.package_names()
        if target == "catalog.search":
            return await self.search(_argument(args, "query", str, ""), _argument(args, "limit", int, 10))
        if target == "catalog.list":
            return await self.listing(_argument(args, "server", str, None))
        if target == "catalog.shim":
            return await self.shim(_argument(args, "server", str, ""), _argument(args, "fresh", bool, False))
        raise CallFailed("unknown_tool", f"The catalogue does not know {target!r}.")

    async def search(self, query: str, limit: int = 10) -> dict[str, Any]:
        """Return {"tools", "problems"}: the tools that match any word of `query`, best first."""
        views, problems = await self._views(self._servers)
        found = self._index.search(query, max(1, min(limit, MAX_FOUND)))
        tools = [entry(server, views[server].tools[tool]) for server, tool in found if server in views]
        return {"tools": tools, "problems": problems}

    async def listing(self, server: str | None = None) -> dict[str, Any]:
        """Return {"tools", "problems"}: all tools, or those of one server."""
        names = self._servers if server is None else {server: self._server(server)}
        views, problems = await self._views(names)
        tools = [entry(name, tool) for name, view in views.items() for tool in view.tools.values()]
        return {"tools": tools, "problems": problems}

    async def shim(self, server: str, fresh: bool = False) -> dict[str, str]:
        """Return {"server", "source", "digest"} of one server's module, listed anew if `fresh`; raises `CallFailed`."""
        if fresh:
            await self._server(server).upstream.relist()
        view = await self._view(self._server(server))
        return {"server": server, "source": view.source, "digest": view.digest}

    async def examine(self) -> list[Report]:
        """Start every upstream and say how it is, for `doctor`."""
        reports: dict[str, Report] = {}

        async def examine_one(server: Server) -> None:
            error, remedy, view = "", "", None
            try:
                view = await self._view(server)
            except CallFailed as failure:
                error, remedy = failure.message, failure.remedy
            tools, problems = (len(view.tools), view.module.problems) if view else (0, ())
            reports[server.name] = Report(server.name, server.upstream.name, tools, error, remedy, problems)

        async with anyio.create_task_group() as tasks:
            for server in self._servers.values():
                tasks.start_soon(examine_one, server)
        return [reports[name] for name in self._servers]

    # views ----------------------------------------------------------------------------------------

    def _server(self, name: str) -> Server:
        server = self._servers.get(name)
        if server is None:
            listed = ", ".join(list(self._servers)[:MAX_FOUND]) or "none"
            hint = did_you_mean(name, self._servers)
            raise CallFailed("unknown_tool", f"There is no MCP server {name[:80]!r} here. {hint}Servers: {listed}.")
        return server

    def _unknown_tool(self, view: View, name: str) -> NoReturn:
        listed = ", ".join(list(view.tools)[:MAX_FOUND]) or "none"
        hint = did_you_mean(name, view.tools)
        raise CallFailed("unknown_tool", f"{view.module.name} has no tool {name[:80]!r}. {hint}Tools: {listed}.")

    async def _views(self, names: Mapping[str, Server]) -> tuple[dict[str, View], list[str]]:
        """Return the views of servers that answer in time, and one sentence each on the others."""
        views: dict[str, View] = {}
        problems: dict[str, str] = {}

        async def look(server: Server) -> None:
            problems[server.name] = f"{server.name} is still starting; ask again in a moment."
            with anyio.move_on_after(WAIT_S):
                try:
                    views[server.name] = await self._view(server)
                    del problems[server.name]
                except CallFailed as error:
                    problems[server.name] = str(error)

        async with anyio.create_task_group() as tasks:
            for server in names.values():
                tasks.start_soon(look, server)
        ordered = {name: views[name] for name in names if name in views}
        return ordered, [problems[name] for name in names if name in problems]

    async def _view(self, server: Server) -> View:
        """Return the view of `server` that fits what is known now; raises `CallFailed`."""
        tools = await server.upstream.tools()
        async with server.lock:
            generation, revision = server.upstream.generation, self._shelf.revision(server.name)
            view = server.view
            if view is None or (view.generation, view.revision) != (generation, revision):
                tools = server.upstream.known_tools or tools
                view = await anyio.to_thread.run_sync(self._build, server, tools, generation, revision)
                server.view = view
                self._index.replace(server.name, [row(server.name, tool) for tool in view.tools.values()])
            return view

    def _build(self, server: Server, tools: tuple[types.Tool, ...], generation: int, revision: int) -> View:
        """Make the view of one generation; runs in a thread, because a hostile list may take a while."""
        module = describe_module(server.name, server.upstream.name, tools, self._shelf.observed(server.name))
        source = render(module)
        self._shelf.put(server.name, source)
        ready = {shim.name: ready_tool(tool, shim) for tool, shim in zip(tools, module.tools, strict=True)}
        return View(generation, revision, ready, module, source, digest(source))

    def _changed(self, server: Server) -> Callable[[Upstream], None]:
        def changed(_: Upstream) -> None:
            if server.view is not None:
                self.on_change(server.name)

        return changed

    async def keep_learned(self) -> None:
        """Write down what was learned, whenever there is something; runs until it is cancelled."""
        while True:
            await self._learned.wait()
            await anyio.to_thread.run_sync(self._shelf.save)

    def close(self) -> None:
        """Let go of the index."""
        self._index.close()


def ready_tool(tool: types.Tool, shim: ToolShim) -> Tool:
    """Return `tool` with what a call of it needs to be checked."""
    parts = Document(tool.input_schema).parts(tool.input_schema)
    names, learns = frozenset(parts.properties), not tool.output_schema
    hints = tool.annotations
    destructive = hints is not None and hints.destructive_hint is True and not hints.read_only_hint
    closed = hints is not None and hints.open_world_hint is False
    schema = sha256(canonical_json([tool.input_schema, tool.output_schema]).encode()).hexdigest()
    effect = effect_of(tool)
    return Tool(tool.name, shim, names, parts.required, parts.open, effect, destructive, closed, learns, schema)


def effect_of(tool: types.Tool) -> Effect:
    """Return what `tool` says that calling it does; one that does not say may write."""
    hints = tool.annotations
    if hints and hints.read_only_hint:
        return "read"
    return "idempotent" if hints and hints.idempotent_hint else "write"


def entry(server: str, tool: Tool) -> dict[str, str]:
    """Return one tool as a listing has it."""
    shim = tool.shim
    return {
        "server": server, "tool": shim.name, "signature": shim.signature, "summary": shim.summary, "effect": tool.effect
    }  # fmt: skip


def row(server: str, tool: Tool) -> Row:
    """Return one tool as the index takes it."""
    return server, tool.shim.name, tool.shim.doc, " ".join(parameter.name for parameter in tool.shim.parameters)


def _argument(args: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = args.get(name, default)
    if value is not default and type(value) is not kind:
        raise CallFailed("invalid_arguments", f"{name!r} must be of type {kind.__name__}, not {type(value).__name__}.")
    return value


@asynccontextmanager
async def open_catalog(upstreams: Mapping[str, Upstream], shims_dir: Path) -> AsyncIterator[Catalog]:
    """Yield the catalogue of `upstreams`; shims and what is learned of results are kept in `shims_dir`."""
    shelf = Shelf(shims_dir)
    await anyio.to_thread.run_sync(shelf.load)
    catalog = Catalog(upstreams, shelf)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(catalog.keep_learned)
        try:
            yield catalog
        finally:
            tasks.cancel_scope.cancel()
            with anyio.move_on_after(SAVE_S, shield=True):
                await anyio.to_thread.run_sync(shelf.save, abandon_on_cancel=True)
            catalog.close()
