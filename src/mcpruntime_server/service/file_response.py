"""The response with the content of a file, which is hostile.

A browser must not execute it with the rights of this site: it is saved and not shown, its type is
not guessed, and a sandbox without scripts is around it.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from typing import IO
from urllib.parse import quote

import anyio
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..journal.events import FileEntry
from ..journal.store import Journal
from ..server.workspace_resources import guess_type

CHUNK_BYTES = 32 * 1024  # of which an unread response holds several
CLOSE_TIMEOUT_S = 5.0
RANGE = re.compile(r"bytes=(?P<first>\d{1,15})?-(?P<last>\d{1,15})?")
SAFE_HEADERS = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def select_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first byte that is wanted and the one after the last, None for the whole file.

    A range that is not understood is ignored, as the standard wants it. An empty result means that
    nothing of the file is in the range.
    """
    found = RANGE.fullmatch(header.replace(" ", ""))
    if found is None or (found["first"] is None and found["last"] is None):
        return None
    if found["first"] is None:
        return max(size - int(found["last"]), 0), size
    first = int(found["first"])
    last = size - 1 if found["last"] is None else min(int(found["last"]), size - 1)
    if found["last"] is not None and int(found["last"]) < first:
        return None
    return (first, last + 1) if first < size else (size, size)


class FileContentResponse(Response):
    """Streams bytes of an open file, and closes it; leaves the context `held` afterwards."""

    def __init__(
        self,
        file: IO[bytes],
        count: int,
        status: int,
        headers: dict[str, str],
        held: AbstractContextManager[object] = nullcontext(),  # noqa: B008 - it has no state
    ) -> None:
        super().__init__(None, status, headers)
        self.headers["content-length"] = str(count)
        self._file = file
        self._count = count
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file in chunks, as fast as the client takes them."""
        with self._held:
            await self._send_file(send)

    async def _send_file(self, send: Send) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            left = self._count
            while left:
                chunk = await to_thread.run_sync(self._file.read, min(left, CHUNK_BYTES))
                left -= len(chunk)
                if not chunk:
                    raise OSError("the file of a blob has become shorter")
                await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
            if not self._count:
                await send({"type": "http.response.body", "body": b""})
        finally:
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await to_thread.run_sync(self._file.close)


async def build_file_response(
    request: Request, journal: Journal, path: str, entry: FileEntry
) -> Response:
    """Return a file, or the part that is asked for, or that it is the one that the client has."""
    tag = f'"{entry["digest"]}"'
    name = quote(path.rpartition("/")[2], safe="")
    headers = {
        **SAFE_HEADERS,
        "ETag": tag,
        "Content-Type": guess_type(path),
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
    }
    known = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers={"ETag": tag, **SAFE_HEADERS})
    size, wanted = entry["size"], None
    if request.headers.get("if-range", tag) == tag:
        wanted = select_range(request.headers.get("range", ""), size)
    if wanted is not None and wanted[0] == wanted[1]:
        unsatisfied = {**SAFE_HEADERS, "Content-Range": f"bytes */{size}"}
        return Response(status_code=416, headers=unsatisfied)
    first, end = wanted or (0, size)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    if request.method == "HEAD":
        headers["Content-Length"] = str(end - first)
        return Response(status_code=200, headers=headers)
    file = await journal.open_blob(entry["digest"])
    await to_thread.run_sync(file.seek, first)
    return FileContentResponse(file, end - first, 200 if wanted is None else 206, headers)
