"""What an upstream lists page by page: tools, resources, templates of resources.

Rule: a list ends. It may have so many pages, items and bytes, and take so long; a page that has
nothing new ends it. What was listed until then is kept, and `cut` says that more was left out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio
from mcp import MCPError, types
from pydantic import BaseModel

from ...config import UpstreamSettings
from .large_answers import ListPage, PageBounds
from .message_limits import LIMIT_ERROR_CODE, MB, LimitExceeded

MAX_CURSOR_CHARS = 4_096  # a longer one is not a place in a list
LISTING_TIME_SHARE = 0.5  # of the time that a call may take

FetchPage = Callable[[str, str | None, PageBounds], Awaitable[ListPage]]  # of a list, at a cursor
ItemT = TypeVar("ItemT", bound=BaseModel)
KeptT = TypeVar("KeptT")


@dataclass(frozen=True)
class ListKind(Generic[ItemT]):
    """What is listed: `key` names it in a page, `words` for people.

    `max_items` and `max_mb` name the settings that bound it.
    """

    key: str
    words: str
    item: type[ItemT]
    find_key: Callable[[ItemT], str]  # of two items with one key, the last one counts
    max_items: str
    max_mb: str


TOOLS = ListKind("tools", "tools", types.Tool, lambda tool: tool.name, "max_tools", "tools_mb")
RESOURCES = ListKind(
    "resources",
    "resources",
    types.Resource,
    lambda resource: str(resource.uri),
    "max_resources",
    "resources_mb",
)
TEMPLATES = ListKind(
    "resourceTemplates",
    "resource templates",
    types.ResourceTemplate,
    lambda template: template.uri_template,
    "max_resources",
    "resources_mb",
)


LIST_KINDS: tuple[ListKind[Any], ...] = (TOOLS, RESOURCES, TEMPLATES)


def page_bounds(kind: ListKind[Any], settings: UpstreamSettings) -> PageBounds:
    """Return what is of use on one page of a list: what shows that there is too much, at most."""
    max_items, max_mb = getattr(settings, kind.max_items), getattr(settings, kind.max_mb)
    return PageBounds(max_items + 1, max_mb * MB, settings.max_schema_parts)


@dataclass(frozen=True)
class ListingCut:
    """Why a list is not whole: the bound as a clause, and the setting that raises it."""

    bound: str
    setting: str = ""

    def describe(self, words: str, upstream: str, kept: int) -> str:
        """Return a note for people and for code; `words` say what is listed."""
        note = f"The list of {words} of {upstream} is cut after {kept:,}: {self.bound}."
        if not self.setting:
            return note
        return f"{note} `{self.setting}` under [mcpServers.{upstream}] raises that."


@dataclass(frozen=True)
class FetchedList(Generic[KeptT]):
    """What an upstream has listed, and why there is no more if it had a next page."""

    items: tuple[KeptT, ...]
    cut: ListingCut | None = None


class PagedList(Generic[ItemT, KeptT]):
    """The items on the pages of one listing, as many as the settings allow.

    `keep` is called in a thread, and returns what is kept of an item.
    """

    def __init__(
        self,
        kind: ListKind[ItemT],
        settings: UpstreamSettings,
        fetch_page: FetchPage,
        keep: Callable[[ItemT], KeptT],
    ) -> None:
        self._kind = kind
        self._settings = settings
        self._fetch_page = fetch_page
        self._keep = keep
        self._max_items: int = getattr(settings, kind.max_items)
        self._max_mb: int = getattr(settings, kind.max_mb)
        self._found: dict[str, KeptT] = {}
        self._bytes = 0

    async def fetch(self) -> FetchedList[KeptT]:
        """Return the items that a connected server lists; raises what its client raises."""
        limit_s = self._settings.timeout_s * LISTING_TIME_SHARE
        cut: ListingCut | None = ListingCut(f"it takes longer than {limit_s:g} s", "timeout_s")
        cursor, first_cut = await self._take_page(None)
        with anyio.move_on_after(limit_s):
            cut = first_cut or await self._take_more(cursor)
        return FetchedList(tuple(self._found.values()), cut)

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
        """Take in one page; return where the next one begins, and whether a bound is reached."""
        bounds = page_bounds(self._kind, self._settings)
        page = await self._fetch_page(self._kind.key, cursor, bounds)
        cut = await anyio.to_thread.run_sync(self._take_items, page.items)
        return None if cut else page.next_cursor, cut

    def _take_items(self, items: Iterable[Any]) -> ListingCut | None:
        """Take in items, in a thread: there may be thousands. Return whether a bound is reached."""
        kind = self._kind
        for listed in items:
            item, size = parse_item(kind.item, listed)
            key = kind.find_key(item)
            if key not in self._found and len(self._found) == self._max_items:
                return ListingCut(f"it has more than {self._max_items:,}", kind.max_items)
            self._bytes += size
            if self._bytes > self._max_mb * MB:
                return ListingCut(f"it has more than {self._max_mb:,} MB", kind.max_mb)
            self._found[key] = self._keep(item)
        return None


def parse_item(item_type: type[ItemT], listed: Any) -> tuple[ItemT, int]:
    """Return an item as a page has it, and the length of its JSON; raises `ValueError`."""
    if isinstance(listed, bytes):
        return item_type.model_validate_json(listed, by_name=False), len(listed)
    if isinstance(listed, item_type):
        item = listed
    else:
        item = item_type.model_validate(listed, by_name=False)
    return item, len(item.model_dump_json(by_alias=True, exclude_unset=True))
