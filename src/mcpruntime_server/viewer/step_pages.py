"""The page of a session: its steps, and everything about the one that is selected."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from ..journal import overviews
from ..journal.events import FileEntry, FilesChanged, MediaEntry, RunFinished
from ..journal.rows import RunRow, SessionRow
from ..runtime.run_report import validate_media
from .output_windows import OutputReader, OutputWindow
from .page_rendering import PAGE_SECURITY_HEADERS, missing_page
from .page_text import write_count, write_size
from .session_stream import build_session_stream
from .step_views import SAFE_IMAGE_TYPES, StepView, build_step_view
from .viewer_services import ViewerServices

MAX_LINE_DIGITS = 10


@dataclass(frozen=True)
class SessionHeading:
    """What the page of a session says about it."""

    row: SessionRow
    step_count: int
    origin: RunRow | None

    @property
    def title(self) -> str:
        """What the page calls it."""
        return self.row.name or self.row.id


class StepPages:
    """The handlers of the page and of its parts."""

    def __init__(self, services: ViewerServices) -> None:
        self._services = services
        self._journal = services.journal
        self._output = OutputReader(services.journal, services.renderer.turn)

    # the page -------------------------------------------------------------------------------------

    async def show_session(self, request: Request) -> Response:
        """Return the page of a session, which shows its last step."""
        session = await self._services.find_session(request)
        newest = await self._journal.read(lambda rows: overviews.find_newest_run(rows, session.id))
        selected = newest or session.tip
        if selected is not None:
            address = f"/s/{session.id}/{selected}"
            return RedirectResponse(address, 303, {"Cache-Control": "no-store"})
        heading = SessionHeading(session, 0, None)
        return await self._render(request, "session.html", heading=heading, step=None, output=None)

    async def show_step(self, request: Request) -> Response:
        """Return the page of a session with a step selected."""
        session = await self._services.find_session(request)
        step = await self._load_step(request)
        origin = None
        if session.origin is not None:
            origin = await self._journal.load_run(session.origin)
        return await self._render(
            request,
            "session.html",
            heading=SessionHeading(session, session.run_count, origin),
            step=step,
            output=await self._read_output(request, step.run),
            is_pinned=step.run.id in await self._journal.load_pins(),
        )

    async def show_panel(self, request: Request) -> Response:
        """Return the part of the page that shows a step."""
        session = await self._services.find_session(request)
        step = await self._load_step(request)
        output = await self._read_output(request, step.run)
        heading = SessionHeading(session, session.run_count, None)
        is_pinned = step.run.id in await self._journal.load_pins()
        return await self._render(
            request, "panel.html", heading=heading, step=step, output=output, is_pinned=is_pinned
        )

    async def _render(self, request: Request, template: str, **values: Any) -> Response:
        context = self._services.access.describe_request(request)
        return await self._services.renderer.render_page(context, template, **values)

    async def _load_step(self, request: Request) -> StepView:
        row, owner = await self._services.find_run(request)
        damage: list[str] = []
        async with self._services.renderer.turn:  # what was recorded may be many times the page
            stored = await self._journal.load_run_parts(row, damage)
            before: dict[str, FileEntry] = {}
            if any(isinstance(each.event, FilesChanged) for each in stored):
                before, _ = await self._journal.load_files_at(row.parent_id, [])
            build = partial(build_step_view, row, owner, stored, before, damage)
            return await to_thread.run_sync(build)

    # parts of it ----------------------------------------------------------------------------------

    async def follow_session(self, request: Request) -> Response:
        """Stream the changes of a session: its page then loads what it shows again."""
        session = await self._services.find_session(request)
        return build_session_stream(self._journal, session, self._services.api.is_stopping)

    async def show_output(self, request: Request) -> Response:
        """Return a window of the output of a run."""
        row, _ = await self._services.find_run(request)
        output = await self._read_output(request, row)
        session_id = request.path_params["session"]
        return await self._render(
            request, "output_lines.html", output=output, run=row, session_id=session_id
        )

    async def _read_output(self, request: Request, row: RunRow) -> OutputWindow:
        line = request.query_params.get("line", "")
        if line.isdecimal() and len(line) <= MAX_LINE_DIGITS:
            return await self._output.read_window(row, int(line))
        if line == "last":
            return await self._output.read_window(row)
        return await self._output.read_soon(row)

    async def measure_output(self, request: Request) -> Response:
        """Return how many lines the output of a run has, which takes long if it is long."""
        row, _ = await self._services.find_run(request)
        size = await self._output.measure(row)
        dropped = f"{write_size(size.dropped_bytes)} were not recorded."
        document = {
            "count": size.line_count,
            "counted": write_count(size.line_count or 0, "line"),
            "dropped": dropped if size.dropped_bytes else "",
        }
        return JSONResponse(document, headers=PAGE_SECURITY_HEADERS)

    async def send_media(self, request: Request) -> Response:
        """Return an image that the code has shown; other media is saved and not shown."""
        row, _ = await self._services.find_run(request)
        number = request.path_params["number"]
        found = await self._journal.load_events(
            row.session_id, row.id, event_type=RunFinished, damage=[]
        )
        media: list[MediaEntry] = []
        if found and isinstance(found[0].event, RunFinished):
            media, _ = validate_media(found[0].event.media)
        if not 1 <= number <= len(media):
            raise missing_page("image")
        kind = media[number - 1]["mime_type"]
        headers = dict(PAGE_SECURITY_HEADERS)
        if kind not in SAFE_IMAGE_TYPES:
            headers["Content-Disposition"] = f"attachment; filename=media-{number}"
        headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
        return Response(base64.b64decode(media[number - 1]["data"]), 200, headers, kind)
