"""The routes that return recorded runs as files.

Rule 1: an export is written into a file without a name, and sent from there as fast as its client
reads. One that nobody reads holds no memory.
Rule 2: one export is written at a time. The others wait before they load anything.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from typing import IO, TextIO

import anyio
from anyio import from_thread, to_thread
from starlette.requests import Request
from starlette.responses import Response

from ..errors import Conflict, NotFound, Unavailable
from ..exports.csv_table import is_table, write_csv
from ..exports.frame_table import copy_guarded, is_frame, open_frame
from ..exports.notebook import NotebookWriter
from ..exports.run_page import write_run_page
from ..exports.text_output import open_text
from ..journal.events import RunFinished, RunValue
from ..journal.rows import RunRow, SessionRow
from ..runtime.run_history import RecordedRun, load_recorded_run
from ..server.run_lookup import RunLookup
from .api_services import ApiServices
from .authentication import check_scopes, find_caller, find_principal
from .event_stream import OpenResponses
from .file_response import FileContentResponse

MAX_OPEN_EXPORTS = 10  # of one principal at once: each takes disk until it has been read
MAX_NOTEBOOK_BYTES = 256 * 1024 * 1024  # more is of no use to the programs that open it
UNSAFE_NAME_CHARS = re.compile(r"[^A-Za-z0-9._-]")
NOTEBOOK_TYPE = "application/octet-stream"  # a file to save, which no client is to parse
EXPORT_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; "
    "img-src data:",
    "X-Content-Type-Options": "nosniff",
}

WriteExport = Callable[[TextIO], Awaitable[None]]


class ExportApi:
    """The handlers of the routes."""

    def __init__(self, services: ApiServices) -> None:
        self._runtime = services.runtime
        self._journal = services.runtime.journal
        self._inspector = services.inspector
        self._open_exports = OpenResponses("exports", MAX_OPEN_EXPORTS)
        self._turn = anyio.Lock()

    async def export_page(self, request: Request) -> Response:
        """Return a run as an HTML file."""
        row, session = await self._find_run(request)

        async def write(out: TextIO) -> None:
            run = await load_recorded_run(self._journal, row)
            await to_thread.run_sync(write_run_page, out, session, run)

        name = f"{session.name or session.id}-step-{row.step}.html"
        return await self._export(request, write, "text/html; charset=utf-8", name)

    async def export_table(self, request: Request) -> Response:
        """Return the value of a run as CSV; a data frame is asked for it."""
        row, session = await self._find_run(request)
        run = await self._load_frame(row)
        async with AsyncExitStack() as stack:
            frame: IO[bytes] | None = None
            if run is not None:
                check_scopes(find_caller(request.scope), frozenset(("run",)))  # it executes code
                asked = open_frame(self._inspector, run, find_principal(request.scope))
                frame = await stack.enter_async_context(asked)

            async def write(out: TextIO) -> None:
                if frame is not None:
                    await to_thread.run_sync(copy_guarded, out, frame, from_thread.check_cancelled)
                    return
                run = await load_recorded_run(self._journal, row)
                value = run.finished.value if run.finished else None
                await to_thread.run_sync(write_csv, out, value)

            name = f"{session.name or session.id}-step-{row.step}.csv"
            return await self._export(request, write, "text/csv; charset=utf-8", name)

    async def _load_frame(self, row: RunRow) -> RecordedRun | None:
        """Return a run without its output if its value is a data frame."""
        async with self._turn:
            for each in await self._journal.load_events(
                row.session_id, row.id, event_type=RunFinished, damage=[]
            ):
                if isinstance(each.event, RunFinished) and is_frame(each.event.value):
                    return replace(await load_recorded_run(self._journal, row), output={})
        return None

    async def export_notebook(self, request: Request) -> Response:
        """Return the steps of a session as a notebook."""
        handle = request.path_params["session"]
        try:
            session = await self._journal.find_session(handle, find_principal(request.scope))
        except NotFound:
            raise NotFound(
                f"There is no session {handle!r:.80}.", remedy="GET /sessions lists the sessions."
            ) from None

        async def write(out: TextIO) -> None:
            notebook = NotebookWriter(out, session)
            for row in await self._journal.load_lineage(session.tip):
                run = await load_recorded_run(self._journal, row)
                await to_thread.run_sync(notebook.add_step, run)
                if os.fstat(out.fileno()).st_size > MAX_NOTEBOOK_BYTES:
                    raise Conflict(
                        f"The notebook has more than {MAX_NOTEBOOK_BYTES:,} bytes.",
                        remedy="Export single steps, or an archive of the session.",
                    )
            notebook.finish()

        name = f"{session.name or session.id}.ipynb"
        return await self._export(request, write, NOTEBOOK_TYPE, name)

    async def _find_run(self, request: Request) -> tuple[RunRow, SessionRow]:
        lookup = RunLookup(self._runtime, find_principal(request.scope))
        return await lookup.load_run_rows(request.path_params["run_id"])

    async def _export(
        self, request: Request, write: WriteExport, media_type: str, name: str
    ) -> Response:
        """Return what `write` writes as a file that browsers save and do not show."""
        plain = UNSAFE_NAME_CHARS.sub("_", name)
        headers = {
            **EXPORT_HEADERS,
            "Content-Disposition": f'attachment; filename="{plain}"',
            "Content-Type": media_type,
        }
        with ExitStack() as held:
            held.enter_context(self._open_exports.admit(find_principal(request.scope)))
            try:
                file = held.enter_context(tempfile.TemporaryFile(dir=self._journal.blobs.drafts))
                async with self._turn:
                    with open_text(file) as out:
                        await write(out)
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
            except OSError as exc:
                raise Unavailable(
                    f"The export cannot be written to the disk: {exc.strerror}.",
                    remedy="Try again when the disk of the server has room.",
                ) from exc
            return FileContentResponse(file, size, 200, headers, held.pop_all())


def has_table(value: RunValue | None) -> bool:
    """Return whether `value.csv` of a run with this value has something."""
    try:
        return is_table(value)
    except (ValueError, RecursionError):  # sandboxed code has written it
        return False


def has_frame(value: RunValue | None) -> bool:
    """Return whether code has to write `value.csv` of a run with this value."""
    return is_frame(value)
