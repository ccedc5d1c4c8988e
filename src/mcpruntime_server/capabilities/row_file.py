"""A JSON file with a list of rows that several processes read and change.

Each process keeps what it has read, and reads again when the file is another one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import Unavailable
from ..protocol.payloads import JsonObject
from .atomic_files import write_atomically

FileVersion = tuple[int, int, int]


class RowFile:
    """The file at a path; what its rows mean is not known here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_version(self) -> FileVersion:
        """Return what differs between two versions of the file; raises `OSError`."""
        status = self.path.stat()
        return status.st_mtime_ns, status.st_ino, status.st_size

    def read_rows(self) -> list[JsonObject]:
        """Return the rows; raises `OSError`, `ValueError`."""
        rows: list[JsonObject] = json.loads(self.path.read_bytes())
        return rows

    def write_rows(self, rows: Iterable[JsonObject]) -> None:
        """Write all rows, inside of `lock`; raises `OSError`."""
        write_atomically(self.path, json.dumps(list(rows), indent=1).encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep others from changing the file; raises `Unavailable` if it cannot be written."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as exc:
            raise Unavailable(f"{self.path} cannot be written: {exc.strerror}.") from exc
