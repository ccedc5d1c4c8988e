"""The tools of one upstream: fetched within bounds, kept between connections, stored for a restart.

Rule: a new generation begins only when the tools are others than before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import anyio
from mcp import Client, types

from ...config import UpstreamSettings
from ..redaction import Credentials
from .catalogue_cache import Catalogue, CatalogueCache
from .large_answers import ToolContract
from .listed_tools import ListedTool, dump_tool, list_tool, parse_tool
from .output_checks import OutputChecks, ToolBounds
from .paged_lists import TOOLS, FetchPage, ListingCut, PagedList
from .repeatable_event import RepeatableEvent

SAVE_INTERVAL_S = 1.0  # at least, between two tool lists that are stored


class UpstreamToolList:
    """The tools of one upstream, as it listed them last."""

    def __init__(self, settings: UpstreamSettings, credentials: Credentials) -> None:
        self.generation = 0  # counts the changes of the tool list
        self.live_since: int | None = None
        self.cut: ListingCut | None = None
        self.output_checks = OutputChecks()
        self._settings = settings
        self._credentials = credentials
        self._tools: tuple[ListedTool, ...] | None = None
        self._preloaded_at: float | None = None
        self._listeners: list[Callable[[], None]] = []
        self._fetching = anyio.Lock()
        self._listed = RepeatableEvent()
        self._unsaved: Catalogue | None = None

    @property
    def tools(self) -> tuple[ListedTool, ...] | None:
        """The tools of the last listing, which may be of an earlier process; None without one."""
        return self._tools

    @property
    def preloaded_at(self) -> float | None:
        """The time (Unix) of the listing by an earlier process, while that is the last one."""
        return self._preloaded_at if self.live_since is None else None

    def has_wrapper(self, tool: str) -> bool:
        """Return whether the results of a tool are wrapped in an object."""
        return self.output_checks.has_wrapper(tool)

    def find_contract(self, tool: str) -> ToolContract:
        """Return what a tool has declared of its results."""
        return ToolContract(self.output_checks.find_schema(tool), self.has_wrapper(tool))

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the list changes."""
        self._listeners.append(listener)

    def preload(self, catalogue: Catalogue) -> None:
        """Use the tools of an earlier process until this one has listed them."""
        self._preloaded_at = catalogue.listed_at
        self._replace(catalogue.tools)

    async def fetch(self, client: Client, fetch_page: FetchPage) -> None:
        """Fetch the list; another one starts a new generation. Raises what `fetch_page` raises.

        One fetch follows the other: a notification and a subscription may report the same change,
        and an older list must not replace a newer one.
        """
        async with self._fetching:
            await self._fetch_and_replace(client, fetch_page)

    async def _fetch_and_replace(self, client: Client, fetch_page: FetchPage) -> None:
        bounds = ToolBounds(self._settings.max_schema_parts)
        keep = partial(self._keep_tool, bounds)
        fetched = await PagedList(TOOLS, self._settings, fetch_page, keep).fetch()
        self.output_checks.replace_schemas(bounds.outputs)
        self.cut = fetched.cut
        if fetched.items != self._tools:
            self._replace(fetched.items)
        if self.live_since is None:
            self.live_since = self.generation
        server = client.server_info
        version = self._credentials.redact_text(server.version) if server else ""
        self._unsaved = Catalogue(self._tools or (), version, time.time())
        self._listed.set()

    def _keep_tool(self, bounds: ToolBounds, tool: types.Tool) -> ListedTool:
        """Return what is kept of a listed tool; raises `ValidationError`."""
        return list_tool(self._redact_tool(bounds.bound_tool(tool)))

    def _replace(self, tools: tuple[ListedTool, ...]) -> None:
        self._tools = tools
        self.generation += 1
        for listener in self._listeners:
            listener()

    def _redact_tool(self, tool: types.Tool) -> types.Tool:
        """Return `tool` without the credentials of this upstream; raises `ValidationError`."""
        if not self._credentials:
            return tool
        data = dump_tool(tool)
        redacted = self._credentials.redact(data)
        return tool if redacted == data else parse_tool(redacted)

    async def keep_stored(self, cache: CatalogueCache, key: str) -> None:
        """Store the tools after each listing; runs until it is cancelled."""
        while True:
            await self._listed.wait()
            await self.store(cache, key)
            await anyio.sleep(SAVE_INTERVAL_S)

    async def store(self, cache: CatalogueCache, key: str) -> None:
        """Store the tools, if they were listed since they were stored last."""
        catalogue = self._unsaved
        if catalogue is None:
            return
        await anyio.to_thread.run_sync(cache.save, key, catalogue, abandon_on_cancel=True)
        if self._unsaved is catalogue:
            self._unsaved = None
