"""The list of sessions, with a search over everything that their runs have said and done."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import anyio
from starlette.requests import Request
from starlette.responses import Response

from ..errors import RateLimited
from ..journal import overviews
from ..journal.overviews import SessionOverview, SessionState
from ..journal.rows import SessionRow
from ..journal.session_search import (
    EXCERPT_CHARS,
    MAX_SEARCH_S,
    SearchMatch,
    SearchResult,
    search_sessions,
)
from ..runtime.run_history import first_code_line
from ..service.authentication import find_principal
from .viewer_services import ViewerServices

PAGE_SESSIONS = 50
MAX_OFFSET = 1_000_000
MAX_SEARCH_CHARS = 200
MAX_FOUND_SESSIONS = 50
MAX_SEARCHES = 4  # of a principal: one under way, others that wait
MAX_SHOWN_MATCHES = 5
MATCH_NAMES = {
    "run_started": "code",
    "output_written": "output",
    "call_started": "call",
    "files_changed": "file",
}


@dataclass(frozen=True)
class SessionItem:
    """A session in the list; `depth` is how far it is indented below the one it was forked from.

    `earlier_failures` counts the steps that failed before the newest one.
    """

    row: SessionRow
    state: SessionState
    earlier_failures: int
    code: str
    depth: int = 0

    @property
    def title(self) -> str:
        """What the list calls it."""
        return self.row.name or self.row.id


@dataclass(frozen=True)
class FoundSession:
    """A session with matches."""

    row: SessionRow
    matches: tuple[SearchMatch, ...]

    @property
    def title(self) -> str:
        """What the list calls it."""
        return self.row.name or self.row.id


@dataclass(frozen=True)
class SessionList:
    """A page of sessions, and how many there are in each state."""

    items: tuple[SessionItem, ...]
    state: str
    counts: dict[str, int]
    offset: int
    next_offset: int | None

    @property
    def total(self) -> int:
        """How many sessions there are."""
        return sum(self.counts.values())


class SessionListPages:
    """The handlers of the list."""

    def __init__(self, services: ViewerServices) -> None:
        self._services = services
        self._journal = services.journal
        self._turn = anyio.CapacityLimiter(1)  # with more, the event loop would wait for each
        self._searches: Counter[str] = Counter()  # under way or waiting, by principal

    async def show_sessions(self, request: Request) -> Response:
        """Return the list of sessions, or what a search has found."""
        context = self._services.access.describe_request(request)
        text = request.query_params.get("q", "").strip()[:MAX_SEARCH_CHARS]
        principal = find_principal(request.scope)
        if text:
            result = await self._search(principal, text)
            found = [FoundSession(row, tuple(matches)) for row, matches in result.sessions]
            return await self._services.renderer.render_page(
                context,
                "search.html",
                query=text,
                result=result,
                found=found,
                kinds=MATCH_NAMES,
                excerpt_chars=EXCERPT_CHARS,
                max_matches=MAX_SHOWN_MATCHES,
            )
        sessions = await self._load_page(request, principal)
        return await self._services.renderer.render_page(
            context, "sessions.html", query="", sessions=sessions
        )

    async def _search(self, principal: str, text: str) -> SearchResult:
        """Return what a search finds; each waits until no other one is under way."""
        if self._searches[principal] >= MAX_SEARCHES:
            raise RateLimited(
                f"{MAX_SEARCHES} searches of yours are under way already.",
                remedy="Wait until they have ended.",
                retry_after_s=math.ceil(MAX_SEARCH_S),
            )
        self._searches[principal] += 1
        try:
            async with self._turn:
                return await self._journal.read(
                    lambda rows: search_sessions(
                        rows,
                        self._journal.blobs,
                        principal,
                        text,
                        MAX_FOUND_SESSIONS,
                        MAX_SHOWN_MATCHES,
                    )
                )
        finally:
            self._searches[principal] -= 1
            self._searches += Counter()  # forgets those that have none

    async def _load_page(self, request: Request, principal: str) -> SessionList:
        state = request.query_params.get("state", "")
        state = state if state in get_args(SessionState) else ""
        shown = request.query_params.get("offset", "0")
        offset = min(int(shown), MAX_OFFSET) if shown.isdecimal() and len(shown) < 9 else 0
        rows = await self._journal.read(
            lambda rows: overviews.page_session_overviews(
                rows, principal, state, PAGE_SESSIONS + 1, offset
            )
        )
        counts = await self._journal.read(
            lambda rows: overviews.count_session_states(rows, principal)
        )
        more = len(rows) > PAGE_SESSIONS
        return SessionList(
            tuple(await self._arrange(rows[:PAGE_SESSIONS])),
            state,
            counts,
            offset,
            offset + PAGE_SESSIONS if more else None,
        )

    async def _arrange(self, rows: Sequence[SessionOverview]) -> list[SessionItem]:
        """Return the sessions of a page, each below the one that it was forked from.

        What was forked from each other stands where the first of it would: a failure is not hidden
        below a session that has none.
        """
        origins = sorted({each.row.origin for each in rows if each.row.origin})
        owners = await self._journal.read(lambda found: overviews.find_run_owners(found, origins))
        known = {each.row.id: each for each in rows}
        parents = {each.row.id: owners.get(each.row.origin or "") for each in rows}
        children: dict[str, list[SessionOverview]] = {}
        for each in rows:
            children.setdefault(parents[each.row.id] or "", []).append(each)
        items: dict[str, SessionItem] = {}
        for each in rows:
            waiting = [(known[find_root(each.row.id, parents)], 0)]
            while waiting:
                shown, depth = waiting.pop()
                if shown.row.id not in items:
                    items[shown.row.id] = build_item(shown, depth)
                    below = reversed(children.get(shown.row.id, []))
                    waiting += [(child, depth + 1) for child in below]
        return list(items.values())


def find_root(session_id: str, parents: Mapping[str, str | None]) -> str:
    """Return the session of a page that others, this one among them, were forked from."""
    passed: set[str] = set()
    parent: str | None = session_id
    while parent is not None and parent in parents and parent not in passed:
        session_id = parent
        passed.add(session_id)
        parent = parents[session_id]
    return session_id


def build_item(overview: SessionOverview, depth: int) -> SessionItem:
    """Return a session as the list shows it."""
    earlier = overview.failed_count - (overview.state == "failed")
    code = first_code_line(overview.code)
    return SessionItem(overview.row, overview.state, earlier, code, depth)
