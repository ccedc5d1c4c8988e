"""SQLite databases in WAL mode, which cannot be opened where only the database file is, read-only.

Rule: an input is what a reader of the database would see now: the changes in its log are merged
into a copy, and the copy needs no log. This module is synchronous: call it from a worker thread.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from ...errors import InvalidRequest

WAL_SUFFIX = "-wal"
HEADER_BYTES = 20
MAGIC = b"SQLite format 3\0"
VERSIONS = slice(18, 20)  # of the formats for writing and reading
ROLLBACK_VERSIONS = b"\1\1"
WAL_VERSIONS = b"\2\2"


def is_wal_database(header: bytes) -> bool:
    """Return whether a file with this beginning is a SQLite database in WAL mode."""
    return header.startswith(MAGIC) and header[VERSIONS] == WAL_VERSIONS


def merge_log(database: bytes, log: bytes) -> bytes:
    """Return a database without WAL mode that has the changes in `log`; raises `InvalidRequest`."""
    if not log:
        return database[: VERSIONS.start] + ROLLBACK_VERSIONS + database[VERSIONS.stop :]
    with TemporaryDirectory(prefix="mcpruntime-") as folder:
        path = Path(folder, "database")
        path.write_bytes(database)
        path.with_name(path.name + WAL_SUFFIX).write_bytes(log)
        try:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        except sqlite3.Error as exc:
            raise InvalidRequest(
                f"The log of the SQLite database cannot be merged: {exc}.",
                remedy="Close the programs that use it, or run PRAGMA wal_checkpoint(TRUNCATE).",
            ) from None
        return path.read_bytes()


def remove_wal_mode(path: Path) -> None:
    """Mark the copy of a database, whose log is empty, as one without WAL mode."""
    with path.open("r+b") as file:
        info = os.fstat(file.fileno())
        file.seek(VERSIONS.start)
        file.write(ROLLBACK_VERSIONS)
        file.flush()
        os.utime(file.fileno(), ns=(info.st_atime_ns, info.st_mtime_ns))
