"""The journal's tables, how they came to be, and how a connection to them is opened.

Rule 1: `MIGRATIONS` only grows; a migration that has been released is never edited.
Rule 2: rows of `events` are only ever added. `sessions` and `runs` sum them up and change in the same transaction.
Rule 3: commits survive the death of the process at any instant; the file is flushed to the disk itself at checkpoints
only, so a power cut may cost the last seconds but never the file.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from mcpruntime_server.errors import JournalFailed

BUSY_TIMEOUT_MS = (
    10_000  # how long another server's transaction is waited for; they last milliseconds
)
WAL_SIZE_LIMIT_BYTES = 16 * 1024 * 1024  # bytes of the write-ahead log that are kept for reuse

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE sessions (
        id         TEXT PRIMARY KEY,
        name       TEXT,                          -- the principal's own word for it
        principal  TEXT NOT NULL,
        created    REAL NOT NULL,                 -- seconds since the epoch, as all times here
        used       REAL NOT NULL,                 -- when its last run started or ended
        owner      TEXT,                          -- the server that may append, see `lease`
        tip        TEXT REFERENCES runs (id),     -- the run that the next one starts from
        UNIQUE (principal, name)
    );
    CREATE TABLE runs (
        id         TEXT PRIMARY KEY,
        session    TEXT NOT NULL REFERENCES sessions (id),
        parent     TEXT REFERENCES runs (id),     -- may lie in another session: a fork copies nothing
        step       INTEGER NOT NULL,              -- depth in the line of parents
        name       TEXT NOT NULL,
        status     TEXT NOT NULL,                 -- 'queued', 'running' until the run has finished
        started    REAL NOT NULL,
        finished   REAL,
        request    TEXT,                          -- idempotency key of the request that started it
        first      INTEGER NOT NULL               -- ordinal of its first event
    );
    CREATE INDEX runs_of_session ON runs (session, started);
    CREATE INDEX runs_of_parent ON runs (parent) WHERE parent IS NOT NULL;
    CREATE INDEX runs_of_request ON runs (session, request) WHERE request IS NOT NULL;
    CREATE TABLE events (
        session    TEXT NOT NULL REFERENCES sessions (id),
        n          INTEGER NOT NULL,              -- ordinal in the session, from 1
        run        TEXT,                          -- undeclared reference: it would cost every event an index
        at         REAL NOT NULL,
        kind       TEXT NOT NULL,
        version    INTEGER NOT NULL,
        body       TEXT NOT NULL,                 -- the fields as JSON, without those in `large`
        large      TEXT,                          -- {field: digest of its JSON in the blob store}
        PRIMARY KEY (session, n)
    ) WITHOUT ROWID;                              -- one tree, so that an event dirties one page
    """,
    """
    -- those of its RunFinished, with spaces between
    ALTER TABLE runs ADD COLUMN flags TEXT NOT NULL DEFAULT '';
    -- ordinal of its RunFinished
    ALTER TABLE runs ADD COLUMN last INTEGER;
    -- ordinal of its newest FilesChanged
    ALTER TABLE runs ADD COLUMN files INTEGER;
    -- the run that it was forked at
    ALTER TABLE sessions ADD COLUMN origin TEXT;
    ALTER TABLE sessions ADD COLUMN purpose TEXT NOT NULL DEFAULT '';
    CREATE TABLE pins (
        run        TEXT PRIMARY KEY REFERENCES runs (id),
        reason     TEXT NOT NULL,
        at         REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX files_of_run ON events (session, run) WHERE kind = 'files_changed';
    UPDATE runs SET last = found.n, flags = found.flags FROM (
        SELECT session, run, max(n) AS n, CASE WHEN json_valid(body)
            THEN (SELECT coalesce(group_concat(value, ' '), '') FROM json_each(body, '$.flags')) ELSE '' END AS flags
        FROM events WHERE kind = 'run_finished' GROUP BY session, run
    ) AS found WHERE found.run = runs.id AND found.session = runs.session;
    UPDATE runs SET flags = trim('unseeded ' || flags);
    UPDATE runs SET files = found.n FROM (
        SELECT session, run, max(n) AS n FROM events WHERE kind = 'files_changed' GROUP BY session, run
    ) AS found WHERE found.run = runs.id AND found.session = runs.session;
    """,
    """
    -- what runs wait for, from the question to its answer
    CREATE TABLE questions (
        run        TEXT NOT NULL,
        question   TEXT NOT NULL,
        session    TEXT NOT NULL,
        n          INTEGER NOT NULL,              -- ordinal of its Asked
        expires    REAL NOT NULL,
        reply      TEXT,                          -- another process's answer, for the server that has the session
        PRIMARY KEY (run, question)
    ) WITHOUT ROWID;
    CREATE INDEX runs_unfinished ON runs (status) WHERE status IN ('running', 'queued');
    """,
    """
    -- calls by which code says that it has used a skill
    CREATE INDEX skill_uses ON events (session, run)
        WHERE kind = 'call_started' AND instr(body, '"target":"skills.used"') > 0;
    """,
)


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Return the connection that writes to `path`, made or migrated as needed; raises `JournalFailed`."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute(
                "PRAGMA auto_vacuum = INCREMENTAL"
            )  # of a new file; an old one's pages are used again
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise JournalFailed(
                    f"The file system of {path} cannot hold a journal.", remedy="Use a local disk."
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


def connect_nonblocking(path: Path) -> sqlite3.Connection:
    """Return a second connection that writes to `path`, which has been prepared, and never waits for another writer."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout = 0")
    configure_writes(connection)
    return connection


def configure_writes(connection: sqlite3.Connection) -> None:
    """Have commits reach the system and not wait for the disk, and leave checkpoints to the writer."""
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA foreign_keys = ON")


def connect_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that cannot write; raises `sqlite3.Error`."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def apply_migrations(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the tables to the newest version; raises `JournalFailed` if they are newer than that."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, applied REAL NOT NULL)"
        )
        (version,) = connection.execute(
            "SELECT coalesce(max(version), 0) FROM migrations"
        ).fetchone()
        if version > len(MIGRATIONS):
            raise JournalFailed(
                f"The journal {path} has schema version {version}; this program knows up to {len(MIGRATIONS)}.",
                remedy="Use the newer mcpruntime-server that wrote it, or give another data folder with --data-dir.",
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            for statement in script.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO migrations VALUES (?, ?)", (number, time.time()))
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def journal_error(exc: sqlite3.Error | OSError, path: Path) -> JournalFailed:
    """Return `exc` as an error that says what is wrong with the journal at `path` and what to do."""
    if isinstance(exc, OSError):
        reason, remedy = DISK_FULL if exc.errno in NO_SPACE_ERRNOS else (str(exc.strerror), "")
    else:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        reason, remedy = ERROR_REASONS.get(code, (str(exc), ""))
    return JournalFailed(
        f"The journal {path} {reason}." if remedy else f"The journal {path} failed: {reason}.",
        remedy=remedy,
    )


DISK_FULL = (
    "cannot grow: the disk is full",
    "Free some space; what is waiting is written as soon as there is room.",
)
FILE_DAMAGED = (
    "is damaged",
    "Restore it from a backup, or save what `sqlite3 journal.db .recover` can read and move the damaged file away.",
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
