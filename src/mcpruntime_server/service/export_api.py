"""The routes that return recorded runs as files."""

from __future__ import annotations

import re

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from ..errors import NotFound
from ..exports.csv_table import build_csv
from ..exports.notebook import build_notebook
from ..exports.run_page import build_run_page
from ..journal.rows import SessionRow
from ..runtime.run_history import RecordedRun, load_recorded_run
from ..server.run_lookup import RunLookup
from .api_services import ApiServices
from .authentication import find_principal

UNSAFE_NAME_CHARS = re.compile(r"[^A-Za-z0-9._-]")
NOTEBOOK_TYPE = "application/octet-stream"  # a file to save, which no client is to parse
EXPORT_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; "
    "img-src data:",
    "X-Content-Type-Options": "nosniff",
}


class ExportApi:
    """The handlers of the routes."""

    def __init__(self, services: ApiServices) -> None:
        self._runtime = services.runtime
        self._journal = services.runtime.journal

    async def export_page(self, request: Request) -> Response:
        """Return a run as an HTML file."""
        run, session = await self._load_run(request)
        name = f"{session.name or session.id}-step-{run.row.step}.html"
        text = await to_thread.run_sync(build_run_page, session, run)
        return build_download(text, "text/html", name)

    async def export_table(self, request: Request) -> Response:
        """Return the value of a run as CSV."""
        run, session = await self._load_run(request)
        name = f"{session.name or session.id}-step-{run.row.step}.csv"
        text = await to_thread.run_sync(build_csv, run.report.value)
        return build_download(text, "text/csv", name)

    async def export_notebook(self, request: Request) -> Response:
        """Return the steps of a session as a notebook."""
        handle = request.path_params["session"]
        try:
            session = await self._journal.find_session(handle, find_principal(request.scope))
        except NotFound:
            raise NotFound(
                f"There is no session {handle!r:.80}.", remedy="GET /sessions lists the sessions."
            ) from None
        rows = await self._journal.load_lineage(session.tip)
        runs = [await load_recorded_run(self._journal, row) for row in rows]
        text = await to_thread.run_sync(build_notebook, session, runs)
        return build_download(text, NOTEBOOK_TYPE, f"{session.name or session.id}.ipynb")

    async def _load_run(self, request: Request) -> tuple[RecordedRun, SessionRow]:
        lookup = RunLookup(self._runtime, find_principal(request.scope))
        row, session = await lookup.load_run_rows(request.path_params["run_id"])
        return await load_recorded_run(self._journal, row), session


def build_download(text: str, media_type: str, name: str) -> Response:
    """Return a file that browsers save and do not show."""
    plain = UNSAFE_NAME_CHARS.sub("_", name)
    headers = {**EXPORT_HEADERS, "Content-Disposition": f'attachment; filename="{plain}"'}
    return Response(text.encode("utf-8", "backslashreplace"), 200, headers, media_type)
