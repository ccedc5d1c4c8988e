"""The upstreams under their Python names, for all principals and for each of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import anyio

from ...errors import CallFailed
from ...journal.call_scope import current_principal
from ...journal.events import EncodedJson
from ...protocol.library_names import TOOLS_NAMES
from ...protocol.suggestions import did_you_mean
from .catalog_tools import CatalogTool
from .principal_upstreams import PrincipalUpstreams
from .python_names import assign_names, describe_collisions
from .upstream import Upstream

MAX_OWN_SERVERS = 1_000  # of all principals, with their views; the others are built again
MAX_NAMED_SERVERS = 50  # in an error about an unknown one

ReportChange = Callable[[str, str | None], None]  # package, and the principal if it is its own


@dataclass(frozen=True)
class ServerView:
    """One upstream's tools at one generation of its list and one revision of observed shapes.

    `problems` says which names of tools had to change. `fetchers` are the names of tools that fetch
    from the network.
    """

    generation: int
    revision: int
    tools: dict[str, CatalogTool]
    problems: tuple[str, ...]
    fetchers: tuple[str, ...]


class CatalogServer:
    """One upstream under its Python name, with the latest view of its tools."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        self.name = name
        owner = upstream.owner_file_name
        self.file_name = f"{name}@{owner}" if owner else name  # of what is stored about it
        self.upstream = upstream
        self.view: ServerView | None = None
        self.shim: tuple[ServerView, EncodedJson] | None = None  # of a view, once it is needed
        self.lock = anyio.Lock()

    @property
    def live_view(self) -> ServerView | None:
        """The latest view, if it shows tools that the upstream has listed for this process."""
        live_since = self.upstream.live_since
        if self.view is None or live_since is None or self.view.generation < live_since:
            return None
        return self.view


class CatalogServers:
    """The upstreams that all principals share, and those that each of them has of its own.

    What is found is found for the principal for whom the task works, and for nobody else.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        own: Mapping[str, PrincipalUpstreams],
        on_change: ReportChange,
    ) -> None:
        names = assign_names([*upstreams, *own], "server", TOOLS_NAMES)
        self.problems = tuple(describe_collisions(names, "server", TOOLS_NAMES))
        self.shared = {
            names[key]: CatalogServer(names[key], upstream) for key, upstream in upstreams.items()
        }
        self._own_upstreams = {names[key]: upstream for key, upstream in own.items()}
        self._own_servers: OrderedDict[tuple[str, str | None], CatalogServer] = OrderedDict()
        self._on_change = on_change
        for server in self.shared.values():
            server.upstream.add_change_listener(partial(self._report_change, server, None))

    def package_names(self) -> list[str]:
        """Return the names under which upstreams are importable, without starting them."""
        return [*self.shared, *self._own_upstreams]

    @property
    def index_owner(self) -> str | None:
        """The principal of this task, or None where all principals have the same servers."""
        return current_principal() if self._own_upstreams else None

    def has_own(self, name: str) -> bool:
        """Return whether each principal has a server of its own under this name."""
        return name in self._own_upstreams

    async def load_all(self) -> dict[str, CatalogServer]:
        """Return the servers of the principal of this task, as its credentials are now."""
        principal = current_principal()
        own = {name: await each.find(principal) for name, each in self._own_upstreams.items()}
        return self.shared | {
            name: self._own_server(name, principal, upstream) for name, upstream in own.items()
        }

    async def load_one(self, name: str) -> CatalogServer | None:
        """Return one of the servers of the principal of this task; None if there is none."""
        if name not in self._own_upstreams:
            return self.shared.get(name)
        principal = current_principal()
        upstream = await self._own_upstreams[name].find(principal)
        return self._own_server(name, principal, upstream)

    def known(self) -> dict[str, CatalogServer]:
        """Return the servers of the principal of this task, as they were used last."""
        principal = current_principal()
        return self.shared | {
            name: self._own_server(name, principal, each.peek(principal))
            for name, each in self._own_upstreams.items()
        }

    async def find_for_call(self, name: str) -> CatalogServer:
        """Return the server that a call needs; where its credential is missing, a person is asked.

        Raises `CallFailed`.
        """
        if name in self._own_upstreams:
            principal = current_principal()
            upstream = await self._own_upstreams[name].find_or_ask(principal)
            return self._own_server(name, principal, upstream)
        server = self.shared.get(name)
        if server is None:
            packages = self.package_names()
            listed = ", ".join(packages[:MAX_NAMED_SERVERS]) or "none"
            hint = did_you_mean(name, packages)
            raise CallFailed(
                "unknown_tool",
                f"There is no MCP server {name[:80]!r}. {hint}Servers: {listed}.",
            )
        return server

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

    def _report_change(self, server: CatalogServer, principal: str | None) -> None:
        if server.upstream.generation > 1:  # code may have imported the first one
            self._on_change(server.name, principal)
