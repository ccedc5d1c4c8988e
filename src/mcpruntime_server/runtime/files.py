"""The content of workspace files on its way from a sandbox: pieces are put together, within limits."""

from __future__ import annotations

from ..journal.events import FileEntry
from ..journal.store import Journal
from ..kernel import wire


class Files:
    """Puts the pieces of files together; a sandbox that sends too much breaks the protocol."""

    have_come = False  # all of them, as far as they can be read

    def __init__(self, limit: int) -> None:
        self.complete: dict[str, tuple[int, bytes]] = {}
        self._room = limit
        self._pieces: list[bytes] = []

    def take(self, message: wire.FileData) -> None:
        """Take one piece; raises `WireError` beyond the limit."""
        if "\0" in message.path or not {"", ".", ".."}.isdisjoint(message.path.split("/")):
            raise wire.WireError(f"not a path in the workspace: {message.path!r:.80}")
        self._room -= len(message.data)
        if self._room < 0:
            raise wire.WireError("more file content than the workspace can hold")
        self._pieces.append(message.data)
        if message.last:
            self.complete[message.path] = (message.mode & 0o777, b"".join(self._pieces))
            self._pieces = []

    async def store(self, journal: Journal) -> dict[str, FileEntry]:
        """Put what has come into the journal's store of content, once; raises `JournalFailed`."""
        stored = {}
        for path, (mode, data) in self.complete.items():
            stored[path] = FileEntry(digest=await journal.put_blob(data), size=len(data), mode=mode)
        self.complete.clear()
        return stored
