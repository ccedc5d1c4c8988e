"""The list of a session's steps, which may be thousands: short figures of all, and rows in windows.

The bar over all steps needs the figures of each, so these come at once, in columns. What the list
beside it shows, code above all, comes for the rows in view.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..journal import overviews
from ..journal.overviews import StepFigures
from ..journal.rows import SessionRow
from ..runtime.run_history import first_code_line
from .page_rendering import PAGE_SECURITY_HEADERS
from .viewer_services import ViewerServices

WINDOW_ROWS = 100
MAX_KNOWN_SESSIONS = 16
MAX_PLACE_DIGITS = 9


@dataclass(frozen=True)
class StepRow:
    """A step in the list, as the scripts of its page get it."""

    run: str
    code: str


class StepLists:
    """The handlers of the list."""

    def __init__(self, services: ViewerServices) -> None:
        self._services = services
        self._journal = services.journal
        # The runs of the last lists: a list only grows at its end.
        self._run_ids: OrderedDict[str, Sequence[str]] = OrderedDict()  # by session

    async def list_steps(self, request: Request) -> Response:
        """Return the figures of all steps, and the rows around the run in the query."""
        session = await self._services.find_session(request)
        sequence = await self._journal.load_last_sequence(session.id)  # later ones are changes
        figures = await self._load_figures(session)
        wanted = request.query_params.get("run", "") or session.tip
        place = len(figures.run_ids) - 1
        if wanted in figures.run_ids:
            place = figures.run_ids.index(wanted)
        rows = await self._load_window(figures.run_ids, place - WINDOW_ROWS // 2)

        def build() -> Response:
            columns = build_columns(figures, session.tip)
            document = {**columns, "sequence": sequence, "window": rows}
            return JSONResponse(document, headers=PAGE_SECURITY_HEADERS)

        return await to_thread.run_sync(build, limiter=self._services.renderer.turn)

    async def list_rows(self, request: Request) -> Response:
        """Return the window of rows that has the place in the query."""
        session = await self._services.find_session(request)
        text = request.query_params.get("place", "")
        place = int(text) if text.isdecimal() and len(text) <= MAX_PLACE_DIGITS else 0
        run_ids = self._run_ids.get(session.id, ())
        if place >= len(run_ids):
            run_ids = (await self._load_figures(session)).run_ids
        rows = await self._load_window(run_ids, place // WINDOW_ROWS * WINDOW_ROWS)
        return JSONResponse(rows, headers=PAGE_SECURITY_HEADERS)

    async def _load_figures(self, session: SessionRow) -> StepFigures:
        figures = await self._journal.read(
            lambda rows: overviews.load_step_figures(rows, session.id)
        )
        self._run_ids[session.id] = figures.run_ids
        self._run_ids.move_to_end(session.id)
        if len(self._run_ids) > MAX_KNOWN_SESSIONS:
            self._run_ids.popitem(last=False)
        return figures

    async def _load_window(self, run_ids: Sequence[str], first: int) -> Mapping[str, Any]:
        first = max(first, 0)
        shown = run_ids[first : first + WINDOW_ROWS]
        codes = await self._journal.read(lambda rows: overviews.load_code_starts(rows, shown))
        rows = [
            asdict(StepRow(run_id, first_code_line(code)))
            for run_id, code in zip(shown, codes, strict=True)
        ]
        return {"first": first, "rows": rows}


def build_columns(figures: StepFigures, tip: str | None) -> Mapping[str, Any]:
    """Return the figures of all steps as JSON data that is short: numbers are differences.

    `parents` are distances to an earlier step, 0 if there is none. `tip` is a place, -1 if the
    session is at its beginning.
    """
    statuses = list(dict.fromkeys(figures.statuses))
    codes = {status: number for number, status in enumerate(statuses)}
    return {
        "steps": [after - before for before, after in pairwise([0, *figures.steps])],
        "parents": [
            place - parent if parent >= 0 else 0 for place, parent in enumerate(figures.parents)
        ],
        "status_names": statuses,
        "statuses": [codes[status] for status in figures.statuses],
        "undone": [place for place, is_undone in enumerate(figures.are_undone) if is_undone],
        "durations": [
            None if each is None else max(round(each), 0) for each in figures.durations_ms
        ],
        "usd": figures.usd,
        "tip": figures.run_ids.index(tip) if tip in figures.run_ids else -1,
    }
