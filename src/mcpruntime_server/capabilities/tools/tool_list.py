"""The tools of one upstream: fetched within bounds, kept between connections, stored for a restart.

Rule 1: a list ends. It may have so many pages, tools and bytes, and take so long; a page that has
nothing new ends it. What was listed until then is kept, and `cut` says that more was left out.
Rule 2: a new generation begins only when the tools are others than before.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from mcp import Client, MCPError, types

from ...config import UpstreamSettings
from ..schema_checks import SLICE_S, PreparedSchema
from .catalogue_cache import Catalogue, CatalogueCache, dump_tool, parse_tool
from .credentials import Credentials
from .large_answers import ListPage, PageBounds, ToolContract
from .message_limits import LIMIT_ERROR_CODE, MB, LimitExceeded
from .output_checks import OutputChecks, ToolBounds
from .repeatable_event import RepeatableEvent
from .tool_results import has_result_wrapper

MAX_CURSOR_CHARS = 4_096  # a longer one is not a place in a list
LISTING_TIME_SHARE = 0.5  # of the time that the upstream has to be ready
SAVE_INTERVAL_S = 1.0  # at least, between two tool lists that are stored


@dataclass(frozen=True)
class ListingCut:
    """Why a list of tools is not whole: the bound as a clause, and the setting that raises it."""

    bound: str
    setting: str = ""

    def describe(self, upstream: str, kept: int) -> str:
        """Return a note for people and for code."""
        note = f"The list of tools of {upstream} is cut after {kept:,}: {self.bound}."
        if not self.setting:
            return note
        return f"{note} `{self.setting}` under [mcpServers.{upstream}] raises that."


@dataclass(frozen=True)
class FetchedTools:
    """The tools that an upstream has listed, and why there are no more if it had a next page."""

    tools: tuple[types.Tool, ...]
    cut: ListingCut | None = None


@dataclass(frozen=True)
class PreparedTools:
    """Tools as the catalogue gets them, their output schemas, and whether they are new."""

    tools: tuple[types.Tool, ...]
    outputs: Mapping[str, PreparedSchema]
    is_new: bool


FetchPage = Callable[[str | None, PageBounds], Awaitable[ListPage]]  # that begins at a cursor


class ToolPages:
    """The tools on the pages of one listing, as many as the settings allow."""

    def __init__(self, settings: UpstreamSettings, fetch_page: FetchPage) -> None:
        self._settings = settings
        self._fetch_page = fetch_page
        self._found: dict[str, types.Tool] = {}
        self._bytes = 0

    async def fetch(self) -> FetchedTools:
        """Return the tools that a connected server lists; raises what its client raises."""
        limit_s = self._settings.timeout_s * LISTING_TIME_SHARE
        cut: ListingCut | None = ListingCut(f"it takes longer than {limit_s:g} s", "timeout_s")
        cursor, first_cut = await self._take_page(None)
        with anyio.move_on_after(limit_s):
            cut = first_cut or await self._take_more(cursor)
        return FetchedTools(tuple(self._found.values()), cut)

    async def _take_more(self, cursor: str | None) -> ListingCut | None:
        for number in range(2, self._settings.max_pages + 1):
            if not cursor:
                return None
            if len(cursor) > MAX_CURSOR_CHARS:
                return ListingCut(f"the address of page {number:,} is too long")
            known = len(self._found)
            try:
                cursor, cut = await self._take_page(cursor)
            except MCPError as error:
                if error.code == types.CONNECTION_CLOSED:
                    raise
                setting = "answer_mb" if error.code == LIMIT_ERROR_CODE else ""
                return ListingCut(f"page {number:,} could not be read", setting)
            except LimitExceeded as exc:
                return ListingCut(f"page {number:,} could not be read", exc.setting)
            except ValueError:
                return ListingCut(f"page {number:,} could not be read")
            if cut is not None:
                return cut
            if cursor and len(self._found) == known:
                return ListingCut(f"page {number:,} has nothing new, and yet a next page")
        if not cursor:
            return None
        return ListingCut(f"it has more than {self._settings.max_pages:,} pages", "max_pages")

    async def _take_page(self, cursor: str | None) -> tuple[str | None, ListingCut | None]:
        """Take in one page; return where the next one begins, and whether a bound is reached.

        Others have their turn in between: a page may have thousands of tools.
        """
        settings = self._settings
        bounds = PageBounds(
            settings.max_tools + 1, settings.tools_mb * MB, settings.max_schema_parts
        )
        page = await self._fetch_page(cursor, bounds)
        slice_end = perf_counter() + SLICE_S
        for item in page.items:
            tool, size = parse_item(item)
            if tool.name not in self._found and len(self._found) == settings.max_tools:
                return None, ListingCut(f"it has more than {settings.max_tools:,}", "max_tools")
            self._bytes += size
            if self._bytes > settings.tools_mb * MB:
                return None, ListingCut(f"it has more than {settings.tools_mb:,} MB", "tools_mb")
            self._found[tool.name] = tool
            if perf_counter() > slice_end:
                await checkpoint()
                slice_end = perf_counter() + SLICE_S
        return page.next_cursor, None


def parse_item(item: Any) -> tuple[types.Tool, int]:
    """Return a tool as a page has it, and the length of its JSON; raises `ValueError`."""
    if isinstance(item, bytes):
        return types.Tool.model_validate_json(item, by_name=False), len(item)
    tool = item if isinstance(item, types.Tool) else parse_tool(item)
    return tool, len(tool.model_dump_json(by_alias=True, exclude_unset=True))


class ToolList:
    """The tools of one upstream, as it listed them last."""

    def __init__(self, settings: UpstreamSettings, credentials: Credentials) -> None:
        self.generation = 0  # counts the changes of the tool list
        self.live_since: int | None = None
        self.cut: ListingCut | None = None
        self.output_checks = OutputChecks()
        self._settings = settings
        self._credentials = credentials
        self._tools: tuple[types.Tool, ...] | None = None
        self._preloaded_at: float | None = None
        self._wrapped_tools: frozenset[str] = frozenset()
        self._listeners: list[Callable[[], None]] = []
        self._listed = RepeatableEvent()
        self._unsaved: Catalogue | None = None

    @property
    def tools(self) -> tuple[types.Tool, ...] | None:
        """The tools of the last listing, which may be of an earlier process; None without one."""
        return self._tools

    @property
    def preloaded_at(self) -> float | None:
        """The time (Unix) of the listing by an earlier process, while that is the last one."""
        return self._preloaded_at if self.live_since is None else None

    def has_wrapper(self, tool: str) -> bool:
        """Return whether the results of a tool are wrapped in an object."""
        return tool in self._wrapped_tools

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
        """Fetch the list; another one starts a new generation. Raises what `fetch_page` raises."""
        fetched = await ToolPages(self._settings, fetch_page).fetch()
        prepared = await anyio.to_thread.run_sync(self._prepare, fetched.tools, self._tools)
        self.output_checks.replace_schemas(prepared.outputs)
        self.cut = fetched.cut
        if prepared.is_new:
            self._replace(prepared.tools)
        if self.live_since is None:
            self.live_since = self.generation
        tools = prepared.tools
        server = client.server_info
        version = self._credentials.redact_text(server.version) if server else ""
        self._unsaved = Catalogue(tools, version, time.time())
        self._listed.set()

    def _prepare(
        self, listed: Sequence[types.Tool], known: tuple[types.Tool, ...] | None
    ) -> PreparedTools:
        """Return the listed tools within their bounds, in a thread: there may be thousands."""
        bounded = ToolBounds(self._settings.max_schema_parts).apply(listed)
        tools = tuple(map(self._redact_tool, bounded.tools))
        return PreparedTools(tools, bounded.outputs, is_new=tools != known)

    def _replace(self, tools: tuple[types.Tool, ...]) -> None:
        self._tools = tools
        self._wrapped_tools = frozenset(tool.name for tool in tools if has_result_wrapper(tool))
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
