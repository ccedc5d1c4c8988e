"""Saves the complete results of runs as files, where a client was shown only a part of them.

The files are in a hidden folder of the workspace, for code of the session to read. They are not the
session's files: they are neither journaled (the journal has the text already) nor restored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from anyio.lowlevel import checkpoint

from ..journal.events import RunValue
from ..sandbox.link import SandboxLink
from .run_report import display_value

HIDDEN_FOLDER = ".mcpruntime"  # the supervisor does not report changes in it
RESULT_WORKSPACE_SHARE = 4  # the files take at most this fraction of the workspace; oldest go first
OWNER_MODE = 0o600
PIECE_CHARS = 64 * 1024


class ResultFiles:
    """The files with complete results in one sandbox at a time.

    A text of more than `max_chars`, or a list or object of more than `max_items`, is not shown
    completely.
    """

    def __init__(self, workspace_bytes: int, max_chars: int, max_items: int) -> None:
        self._max_bytes = workspace_bytes // RESULT_WORKSPACE_SHARE
        self._max_chars = max_chars
        self._max_items = max_items
        self._link: SandboxLink | None = None
        self._files: deque[tuple[str, int]] = deque()  # path and size, oldest first

    async def save_long_results(
        self,
        link: SandboxLink,
        run_id: str,
        output: Mapping[str, str],
        value: RunValue | None,
    ) -> dict[str, str]:
        """Save the results of a run that are not shown completely; return the paths, by field.

        A result that is larger than all files may be together is not saved.
        """
        if link.closed.is_set():
            return {}
        long = {name: text for name, text in output.items() if len(text) > self._max_chars}
        if value is not None and not value["cut"]:
            is_cut = display_value(value, self._max_chars, self._max_items)[1]
            if is_cut:
                long["value"] = value["text"]
        saved = {}
        for name, text in long.items():
            size = await measure_bytes(text)
            if size <= self._max_bytes:
                saved[name] = await self._write_file(link, f"{run_id}.{name}", text, size)
        return saved

    async def _write_file(self, link: SandboxLink, name: str, text: str, size: int) -> str:
        if link is not self._link:
            self._link = link
            self._files.clear()
        while self._files and size + sum(each for _, each in self._files) > self._max_bytes:
            link.write_file(self._files.popleft()[0], OWNER_MODE, b"")
        path = f"{HIDDEN_FOLDER}/{name}"
        self._files.append((path, size))
        await link.write_large_file(path, OWNER_MODE, iter_pieces(text), size)
        return path


async def measure_bytes(text: str) -> int:
    """Return how many bytes a text has as a file, while others have their turn."""
    if text.isascii():
        return len(text)
    size = 0
    for piece in iter_pieces(text):
        size += len(piece)
        await checkpoint()
    return size


def iter_pieces(text: str) -> Iterator[bytes]:
    """Yield a text as bytes, never all of it: several runs may end at once."""
    for start in range(0, len(text), PIECE_CHARS):
        yield text[start : start + PIECE_CHARS].encode("utf-8", "backslashreplace")
