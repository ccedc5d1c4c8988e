"""Searches over the tools of the latest views, with an index for each principal."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping

import anyio

from .catalog_servers import CatalogServer, ServerView
from .catalog_tools import index_row
from .tool_index import ToolIndex

MAX_INDEXES = 100  # of principals that have servers of their own


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
                started = time.perf_counter()
                await anyio.to_thread.run_sync(self._index_view, name, view)
                server.upstream.add_listing_cost(time.perf_counter() - started)
            self._indexed[name] = server, view

    def _index_view(self, name: str, view: ServerView) -> None:
        """Index the tools of a view, in a thread: there may be thousands."""
        rows = [index_row(name, tool) for tool in view.tools.values()]
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
