"""The tables of the journal, their migrations, and how a connection to them is opened.

Rule 1: `MIGRATIONS` only grows; a migration that has been released is never edited.
Rule 2: rows of `events` are only added. `sessions` and `runs` summarise them and change in the
same transaction.
Rule 3: a commit survives the death of the process at any instant. The file is flushed to the disk
at checkpoints and by `disk_sync` only: a power failure may cost the last seconds, never the file.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from mcpruntime_server.errors import JournalFailed

BUSY_TIMEOUT_MS = 10_000  # to wait for another server's transaction, which takes milliseconds
LOCK_POLL_S = 0.01
WAL_SIZE_LIMIT_BYTES = 16 * 1024 * 1024  # of the write-ahead log that are kept for reuse
APPLICATION_ID = 0x6D637072  # "mcpr" in the header of the file says that it is a journal

# The number of migrations that a file has seen is its `user_version`.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE sessions (
        id               TEXT PRIMARY KEY,
        name             TEXT,                       -- the principal's own name for it
        principal        TEXT NOT NULL,
        created_at       REAL NOT NULL,              -- seconds since the epoch, as all times here
        last_used_at     REAL NOT NULL,              -- when its last run started or finished
        owner            TEXT,                       -- the server that may append
        tip              TEXT REFERENCES runs (id),  -- the run that the next one starts from
        origin           TEXT,                       -- the run that it was forked at
        purpose          TEXT NOT NULL DEFAULT '',
        UNIQUE (principal, name)
    );
    CREATE TABLE runs (
        id               TEXT PRIMARY KEY,
        session_id       TEXT NOT NULL REFERENCES sessions (id),
        parent_id        TEXT REFERENCES runs (id),  -- may be in another session
        step             INTEGER NOT NULL,           -- depth in its lineage
        name             TEXT NOT NULL,
        status           TEXT NOT NULL,              -- 'queued' or 'running' until it has finished
        started_at       REAL NOT NULL,
        finished_at      REAL,
        idempotency_key  TEXT,                       -- of the request that started it
        flags            TEXT NOT NULL DEFAULT '',   -- of its RunFinished, separated by spaces
        first_sequence   INTEGER NOT NULL,           -- of its first event
        last_sequence    INTEGER,                    -- of its RunFinished
        files_sequence   INTEGER                     -- of its newest FilesChanged
    );
    CREATE INDEX runs_by_session ON runs (session_id, started_at);
    CREATE INDEX runs_by_parent ON runs (parent_id) WHERE parent_id IS NOT NULL;
    CREATE INDEX runs_by_key ON runs (session_id, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    CREATE INDEX unfinished_runs ON runs (status) WHERE status IN ('running', 'queued');
    CREATE TABLE events (                            -- one tree, so that an event dirties one page
        session_id       TEXT NOT NULL REFERENCES sessions (id),
        sequence         INTEGER NOT NULL,           -- number in the session, from 1
        run_id           TEXT,                       -- undeclared: it would need an index
        recorded_at      REAL NOT NULL,
        kind             TEXT NOT NULL,
        version          INTEGER NOT NULL,
        body             TEXT NOT NULL,              -- the fields as JSON, without the large ones
        large_fields     TEXT,                       -- {field: digest of its JSON as a blob}
        PRIMARY KEY (session_id, sequence)
    ) WITHOUT ROWID;
    CREATE INDEX file_events ON events (session_id, run_id) WHERE kind = 'files_changed';
    CREATE INDEX sandbox_starts ON events (recorded_at) WHERE kind = 'sandbox_started';
    CREATE INDEX skill_uses ON events (session_id, run_id)
        WHERE kind = 'call_started' AND instr(body, '"target":"skills.used"') > 0;
    CREATE TABLE questions (                         -- what runs wait for, until it is answered
        run_id           TEXT NOT NULL,
        question_id      TEXT NOT NULL,
        session_id       TEXT NOT NULL,
        sequence         INTEGER NOT NULL,           -- of its QuestionAsked
        expires_at       REAL NOT NULL,
        answer_json      TEXT,                       -- from another process, for the owner
        PRIMARY KEY (run_id, question_id)
    ) WITHOUT ROWID;
    CREATE TABLE pins (
        run_id           TEXT PRIMARY KEY REFERENCES runs (id),
        reason           TEXT NOT NULL,
        pinned_at        REAL NOT NULL
    ) WITHOUT ROWID;
    """,
)


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open the journal at `path`, created or migrated as needed; raises `JournalFailed`.

    The connection waits for other writers and belongs to the writer's thread.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            read_version(connection, path)  # before anything is changed
            connection.execute(
                "PRAGMA auto_vacuum = INCREMENTAL"
            )  # takes effect in a new file only
            if enable_write_ahead_log(connection, BUSY_TIMEOUT_MS / 1000) != "wal":
                raise JournalFailed(
                    f"The file system of {path} does not support SQLite's write-ahead log.",
                    remedy="Use a local disk.",
                )
            configure_writes(connection)
            connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT_BYTES}")
            apply_migrations(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as exc:
        raise journal_error(exc, path) from exc
    return connection


def enable_write_ahead_log(connection: sqlite3.Connection, timeout_s: float) -> str:
    """Switch a database to the write-ahead log, and return the journal mode that it has then.

    Waits at most `timeout_s` for others. SQLite does not, if two connections switch a new file.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as exc:
            is_locked = exc.sqlite_errorcode == sqlite3.SQLITE_BUSY
            if not is_locked or time.monotonic() > deadline:
                raise
            time.sleep(LOCK_POLL_S)
        else:
            return str(mode)


def connect_nonblocking(path: Path) -> sqlite3.Connection:
    """Open a second connection for writing to a prepared journal, which never waits for others."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout = 0")
    configure_writes(connection)
    return connection


def configure_writes(connection: sqlite3.Connection) -> None:
    """Let commits return before the disk has them, and leave checkpoints to the writer."""
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA foreign_keys = ON")


def restart_log(connection: sqlite3.Connection) -> None:
    """Start the write-ahead log again if all of it is in the database; raises `sqlite3.Error`.

    The first commit of a log waits for the disk, because SQLite syncs the header. This one changes
    nothing and is made in a thread, so that the next one need not be.
    """
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that cannot write; raises `sqlite3.Error`."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def apply_migrations(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the tables to the newest version; raises `JournalFailed` for another format."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = read_version(connection, path)
        for script in MIGRATIONS[version:]:
            for statement in script.split(";\n"):
                connection.execute(statement)
        if version < len(MIGRATIONS):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def read_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the number of migrations that the file has seen; raises `JournalFailed`."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and application != APPLICATION_ID:
        raise JournalFailed(
            f"The file {path} is not a journal in the format of this program, version "
            f"{len(MIGRATIONS)}: a development version or another program wrote it.",
            remedy="Move it away, or give another data folder with --data-dir.",
        )
    if version > len(MIGRATIONS):
        raise JournalFailed(
            f"The journal {path} has format version {version}; this program knows up to "
            f"{len(MIGRATIONS)}.",
            remedy="Use the newer mcpruntime-server that wrote it, or give another data folder "
            "with --data-dir.",
        )
    return int(version)


def journal_error(exc: sqlite3.Error | OSError, path: Path) -> JournalFailed:
    """Return `exc` as an error that says what is wrong with the journal and what to do."""
    if isinstance(exc, OSError):
        known = DISK_FULL if exc.errno in NO_SPACE_ERRNOS else None
        detail = exc.strerror
    else:
        known = ERROR_REASONS.get(getattr(exc, "sqlite_errorcode", 0) & 0xFF)
        detail = str(exc)
    if known is None:
        return JournalFailed(f"The journal {path} failed: {detail}.")
    reason, remedy = known
    return JournalFailed(f"The journal {path} {reason}.", remedy=remedy)


DISK_FULL = (
    "cannot grow: the disk is full",
    "Free some space; waiting events are written as soon as there is room.",
)
FILE_DAMAGED = (
    "is damaged",
    "Restore it from a backup, or save what `sqlite3 journal.db .recover` can read and move the "
    "damaged file away.",
)
NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ERROR_REASONS = {
    sqlite3.SQLITE_FULL: DISK_FULL,
    sqlite3.SQLITE_IOERR: (
        "cannot be written",
        "Check the disk: it may be full, over a quota or failing.",
    ),
    sqlite3.SQLITE_CORRUPT: FILE_DAMAGED,
    sqlite3.SQLITE_NOTADB: FILE_DAMAGED,
    sqlite3.SQLITE_BUSY: (
        "is locked by another process",
        "End the program that keeps it open, then try again.",
    ),
    sqlite3.SQLITE_READONLY: (
        "is read-only",
        "Make the data folder writable, or give another with --data-dir.",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened",
        "Make the data folder writable, or give another with --data-dir.",
    ),
}
