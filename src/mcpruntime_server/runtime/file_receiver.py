"""The content of workspace files on its way from a sandbox: pieces are put together, within limits."""

from __future__ import annotations

from ..journal.events import FileEntry
from ..journal.store import Journal
from ..protocol import wire


class FileReceiver:
    """Puts the pieces of files together; a sandbox that sends too much breaks the protocol."""

    is_complete = False  # all of them, as far as they can be read

    def __init__(self, max_bytes: int) -> None:
        self.received_files: dict[str, tuple[int, bytes]] = {}
        self._bytes_left = max_bytes
        self._chunks: list[bytes] = []

    def receive_chunk(self, message: wire.FileData) -> None:
        """Take one piece; raises `WireError` beyond the limit."""
        if "\0" in message.path or not {"", ".", ".."}.isdisjoint(message.path.split("/")):
            raise wire.WireError(f"not a path in the workspace: {message.path!r:.80}")
        self._bytes_left -= len(message.data)
        if self._bytes_left < 0:
            raise wire.WireError("more file content than the workspace can hold")
        self._chunks.append(message.data)
        if message.is_last:
            self.received_files[message.path] = (message.mode & 0o777, b"".join(self._chunks))
            self._chunks = []

    async def store_blobs(self, journal: Journal) -> dict[str, FileEntry]:
        """Put what has come into the journal's store of content, once; raises `JournalFailed`."""
        stored = {}
        for path, (mode, data) in self.received_files.items():
            stored[path] = FileEntry(digest=await journal.put_blob(data), size=len(data), mode=mode)
        self.received_files.clear()
        return stored
