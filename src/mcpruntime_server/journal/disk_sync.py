"""Put what was written on the disk, so that it survives the loss of the machine.

Rule 1: one fsync serves everyone who began to wait before it started.
Rule 2: it runs in a worker thread, never on the event loop.
Rule 3: after an fsync of the log has failed, nothing is on the disk for certain until the journal
is opened again: the system may forget what it could not write, and then report success.
This module does not know what the bytes mean.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import anyio
from anyio import to_thread

from mcpruntime_server.errors import JournalFailed

FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync leaves data in the disk's cache
sync_data = getattr(os, "fdatasync", os.fsync)  # the times of a file are not worth a write


def sync_file(descriptor: int) -> None:
    """Return when the disk has the content of an open file; raises `OSError`."""
    if FULL_SYNC is not None:
        fcntl.fcntl(descriptor, FULL_SYNC)
    else:
        sync_data(descriptor)


def sync_folder(path: Path) -> None:
    """Return when the disk has the names in a folder; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LogSync:
    """Syncs the write-ahead log of the journal at `path`, which must be open in SQLite."""

    def __init__(self, path: Path) -> None:
        """Open the log; raises `OSError`."""
        self._path = path
        # SQLite locks the database and not the log, so closing this descriptor frees no lock.
        self._descriptor = os.open(f"{path}-wal", os.O_RDONLY)
        self._lock = anyio.Lock()
        self._thread_limiter = anyio.CapacityLimiter(1)  # no blob that is stored delays a sync
        self._requested = 0
        self._completed = 0  # this many requests have been granted
        self._failure: OSError | None = None

    async def sync(self) -> None:
        """Return when the disk has what was committed before the call; raises `JournalFailed`."""
        self._requested += 1
        number = self._requested
        async with self._lock:
            if self._completed < number:
                covered = self._requested
                await to_thread.run_sync(self._sync_log, limiter=self._thread_limiter)
                self._completed = covered

    async def close(self) -> None:
        """Close the log, after a sync that is under way."""
        async with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1

    def _sync_log(self) -> None:
        if self._failure is None:
            try:
                sync_file(self._descriptor)
            except OSError as exc:
                self._failure = exc
        if self._failure is not None:
            raise JournalFailed(
                f"The journal {self._path} could not be put on the disk: "
                f"{self._failure.strerror}. What was written since is not safe.",
                remedy="Check the disk, and restart the server: it then writes the journal again.",
            ) from self._failure
