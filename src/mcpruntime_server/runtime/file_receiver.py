"""Workspace files on their way from a sandbox: their chunks are kept in order, within a limit.

Few bytes are kept in memory, the rest in a file without a name beside the blobs, until all of them
are moved into the blob store. Its writes go to the page cache, like the small commits of the
journal.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import JournalFailed
from ..journal.events import FileEntry
from ..journal.store import Journal
from ..protocol import wire

FILE_OVERHEAD_BYTES = 64 * 1024 * 1024  # of the files of a run, beyond the size of the workspace
MAX_MEMORY_BYTES = 4 * 1024 * 1024  # of all files of a run together


class FileSpool:
    """Chunks of files: the first ones in memory, all others in a file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._memory_bytes = 0
        self._descriptor: int | None = None
        self._file_bytes = 0
        self._close: Callable[[], object] = lambda: None

    def add(self, data: bytes) -> bytes | range:
        """Keep a chunk; return it, or its place in the file. Raises `OSError`."""
        if self._memory_bytes + len(data) <= MAX_MEMORY_BYTES:
            self._memory_bytes += len(data)
            return data
        if self._descriptor is None:
            self._descriptor, name = tempfile.mkstemp(dir=self._folder)
            self._close = weakref.finalize(self, os.close, self._descriptor)
            os.unlink(name)
        place = range(self._file_bytes, self._file_bytes + len(data))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._file_bytes = place.stop
        return place

    def read(self, chunk: bytes | range) -> bytes:
        """Return a chunk, wherever it is; raises `OSError`."""
        if isinstance(chunk, bytes):
            return chunk
        assert self._descriptor is not None, "it has a place in the file"
        return os.pread(self._descriptor, len(chunk), chunk.start)

    def close(self) -> None:
        """Forget what is in the file."""
        self._close()


@dataclass
class ReceivedFile:
    """A file in the chunks in which it came."""

    mode: int
    spool: FileSpool
    chunks: list[bytes | range] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return sum(map(len, self.chunks))

    def read_chunks(self) -> Iterator[bytes]:
        """Yield its content; this blocks. Raises `OSError`."""
        return map(self.spool.read, self.chunks)


class FileReceiver:
    """Takes in the chunks of files; a sandbox that sends over `max_bytes` breaks the protocol."""

    def __init__(self, max_bytes: int, spool_folder: Path) -> None:
        self.is_complete = False  # every file that can be read has arrived
        self.received_files: dict[str, ReceivedFile] = {}  # by path
        self.expected_files: set[str] = set()  # the paths of those that have changed
        self._bytes_left = max_bytes
        self._spool = FileSpool(spool_folder)
        self._arriving: list[bytes | range] = []  # of the file that is arriving
        self._problem: OSError | None = None

    def receive_chunk(self, message: wire.FileData) -> None:
        """Keep one chunk; raises `WireError` for a file that was not announced, or too much."""
        if message.path not in self.expected_files:
            raise wire.WireError(f"content of a file that has not changed: {message.path!r:.80}")
        self._bytes_left -= len(message.data)
        if self._bytes_left < 0:
            raise wire.WireError("more file content than the workspace can hold")
        if self._problem is not None:
            return
        try:
            self._arriving.append(self._spool.add(message.data))
        except OSError as exc:  # the disk is full: what has arrived is of no use alone
            self._problem = exc
            return
        if message.is_last:
            file = ReceivedFile(message.mode & 0o777, self._spool, self._arriving)
            self.received_files[message.path] = file
            self._arriving = []

    def check_complete(self) -> None:
        """Raise `JournalFailed` if a file could not be kept."""
        if self._problem is not None:
            reason = self._problem.strerror
            raise JournalFailed(
                f"The files of the run cannot be kept: {reason}.", remedy="Free some space."
            )

    async def store_blobs(self, journal: Journal) -> dict[str, FileEntry]:
        """Move the received files into the journal's blob store; raises `JournalFailed`."""
        self.check_complete()
        files = self.received_files
        digests = await journal.put_streams([file.read_chunks for file in files.values()])
        stored = {
            path: FileEntry(digest=digest, size=file.size, mode=file.mode)
            for (path, file), digest in zip(files.items(), digests, strict=True)
        }
        self.close()
        return stored

    def close(self) -> None:
        """Forget the files."""
        self.received_files.clear()
        self._spool.close()
