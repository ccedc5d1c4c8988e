"""Workspace files on their way from a sandbox: their chunks are joined, within a limit."""

from __future__ import annotations

from ..journal.events import FileEntry
from ..journal.store import Journal
from ..protocol import wire

FILE_OVERHEAD_BYTES = 64 * 1024 * 1024  # of the files of a run, beyond the size of the workspace


class FileReceiver:
    """Joins the chunks of files; a sandbox that sends more than `max_bytes` breaks the protocol."""

    def __init__(self, max_bytes: int) -> None:
        self.is_complete = False  # every file that can be read has arrived
        self.received_files: dict[str, tuple[int, bytes]] = {}  # mode and content, by path
        self.expected_files: set[str] = set()  # the paths of those that have changed
        self._bytes_left = max_bytes
        self._chunks: list[bytes] = []  # of the file that is arriving

    def receive_chunk(self, message: wire.FileData) -> None:
        """Keep one chunk; raises `WireError` for a file that was not announced, or too much."""
        if message.path not in self.expected_files:
            raise wire.WireError(f"content of a file that has not changed: {message.path!r:.80}")
        self._bytes_left -= len(message.data)
        if self._bytes_left < 0:
            raise wire.WireError("more file content than the workspace can hold")
        self._chunks.append(message.data)
        if message.is_last:
            self.received_files[message.path] = (message.mode & 0o777, b"".join(self._chunks))
            self._chunks = []

    async def store_blobs(self, journal: Journal) -> dict[str, FileEntry]:
        """Move the received files into the journal's blob store; raises `JournalFailed`."""
        files = self.received_files
        digests = await journal.put_blobs([data for _, data in files.values()])
        stored = {
            path: FileEntry(digest=digest, size=len(data), mode=mode)
            for (path, (mode, data)), digest in zip(files.items(), digests, strict=True)
        }
        files.clear()
        return stored
