"""The files of a step: their content as downloads, and what the step has changed in them.

A file is hostile: it is saved and never shown by the browser, whatever its name says.
"""

from __future__ import annotations

from dataclasses import dataclass

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from ..errors import JournalFailed, NotFound
from ..journal.events import FileEntry
from ..service.file_response import build_file_response
from .page_rendering import missing_page
from .text_diffs import DiffLine, compare_texts
from .viewer_services import ViewerServices

MAX_COMPARED_BYTES = 1_000_000


@dataclass(frozen=True)
class FileDiff:
    """What a step has changed in a file, or why that cannot be shown."""

    lines: tuple[DiffLine, ...]
    problem: str


class FilePages:
    """The handlers for the files of a step."""

    def __init__(self, services: ViewerServices) -> None:
        self._services = services
        self._journal = services.journal

    async def download_file(self, request: Request) -> Response:
        """Return a file as it was at the end of a step, for the browser to save."""
        path = request.query_params.get("path", "")
        _, after = await self._find_entries(request, path)
        if after is None:
            raise missing_page("such file")
        return await build_file_response(request, self._journal, path, after)

    async def show_diff(self, request: Request) -> Response:
        """Return the part of a page that shows what a step has changed in a file."""
        path = request.query_params.get("path", "")
        before, after = await self._find_entries(request, path)
        if before is None and after is None:
            raise missing_page("such file")
        diff = await self._compare(before, after)
        context = self._services.access.describe_request(request)
        return await self._services.renderer.render_page(context, "file_diff.html", diff=diff)

    async def _find_entries(
        self, request: Request, path: str
    ) -> tuple[FileEntry | None, FileEntry | None]:
        """Return a file before and after a step of the caller; None where it is not there."""
        row, _ = await self._services.find_run(request)
        before, _ = await self._journal.load_files_at(row.parent_id, [])
        after, _ = await self._journal.load_files_at(row.id, [])
        return before.get(path), after.get(path)

    async def _compare(self, before: FileEntry | None, after: FileEntry | None) -> FileDiff:
        sizes = [each["size"] for each in (before, after) if each is not None]
        if max(sizes) > MAX_COMPARED_BYTES:
            return FileDiff((), "The file is too large to be compared here.")
        try:
            old, new = [
                "" if each is None else (await self._journal.get_blob(each["digest"])).decode()
                for each in (before, after)
            ]
        except UnicodeDecodeError:
            return FileDiff((), "The file is not text.")
        except (JournalFailed, NotFound) as exc:
            return FileDiff((), exc.message)
        if "\0" in old + new:
            return FileDiff((), "The file is not text.")
        turn = self._services.renderer.turn
        lines = await to_thread.run_sync(compare_texts, old, new, limiter=turn)
        return FileDiff(lines, "" if lines else "The text is the same.")
