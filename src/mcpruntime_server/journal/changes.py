"""What each event and each request changes in the tables: every statement that writes rows, bar the collector's.

Rule 1: each function is one step of a transaction that the writer has begun; what it raises undoes that step's job.
Rule 2: `sessions` and `runs` follow the events in the same transaction, so that they never contradict them.
A stranger's text is kept with its lone surrogates escaped, because SQLite takes none.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from sqlite3 import Connection, IntegrityError

from ..errors import InvalidRequest, JournalFailed, NotFound, Unavailable
from . import lease as leases
from .blobs import BlobStore
from .events import (
    VERSION,
    Answered,
    Asked,
    Event,
    FilesChanged,
    RunFinished,
    RunQueued,
    RunStarted,
    TipMoved,
    fields_of,
    kind_of,
    text_of,
)
from .queries import has_run, last_event, plain, session_row
from .rows import SessionRow, Stored

INLINE = 16 * 1024  # characters; longer fields go to the blob store, where equal ones are kept once
PARTIAL = "partial"  # the purpose of a session that is not all there
UNDONE = "undone"  # the flag of a run whose end is not a state of its session
UNSEEDED = "unseeded"  # the flag of a run whose chance was not recorded


def write_event(connection: Connection, stored: Stored, body: str, large: str | None) -> None:
    """Add the row of `stored`, and have the rows that sum events up follow it."""
    event = stored.event
    connection.execute(
        "INSERT INTO events (session, n, run, at, kind, version, body, large) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (stored.session, stored.n, stored.run, stored.at, kind_of(event), VERSION, body, large),
    )
    if isinstance(event, RunStarted):
        _start_run(connection, stored, event)
    elif isinstance(event, RunQueued):
        _queue_run(connection, stored, event)
    elif isinstance(event, Asked):
        values = (stored.run, plain(event.question), stored.session, stored.n, event.expires)
        connection.execute("INSERT OR REPLACE INTO questions VALUES (?, ?, ?, ?, ?, NULL)", values)
    elif isinstance(event, Answered):
        gone = "DELETE FROM questions WHERE run = ? AND question = ?"
        connection.execute(gone, (stored.run, plain(event.question)))
    elif isinstance(event, RunFinished):
        _finish_run(connection, stored, event)
    elif isinstance(event, FilesChanged):
        connection.execute("UPDATE runs SET files = ? WHERE id = ?", (stored.n, stored.run))
    elif isinstance(event, TipMoved):
        _move_tip(connection, stored, event)


def split(blobs: BlobStore, event: Event, text: str) -> tuple[str, str | None]:
    """Return the `body` and `large` of an event whose fields are `text`, and keep those that are long as blobs."""
    if len(text) <= INLINE:
        return text, None
    fields = dict(fields_of(event))
    large = {}
    for name, value in list(fields.items()):
        part = text_of(value)
        if len(part) > INLINE:
            large[name] = blobs.put(part.encode("ascii"))
            del fields[name]
    return (text_of(fields), text_of(large)) if large else (text, None)


def _queue_run(connection: Connection, stored: Stored, event: RunQueued) -> None:
    key = event.idempotency_key
    connection.execute(
        """INSERT INTO runs (id, session, step, name, status, started, request, first)
        VALUES (?, ?, 0, '', 'queued', ?, ?, ?)""",
        (event.run, stored.session, stored.at, key and plain(key), stored.n),
    )


def _start_run(connection: Connection, stored: Stored, event: RunStarted) -> None:
    if event.parent == event.run:  # any other parent is there already, so lines have no cycles
        raise JournalFailed(f"The run {event.run!r} cannot start from its own end.")
    key = event.idempotency_key
    started = connection.execute(
        """INSERT INTO runs (id, session, parent, step, name, status, started, request, first, flags)
        VALUES (?1, ?2, ?3, ?4, ?5, 'running', ?6, ?7, ?8, ?9)
        ON CONFLICT (id) DO UPDATE SET parent = ?3, step = ?4, name = ?5, status = 'running', started = ?6, flags = ?9
        WHERE session = ?2 AND status = 'queued'""",
        (
            *(event.run, stored.session, event.parent, event.step, plain(event.name), stored.at),
            *(key and plain(key), stored.n, "" if event.seed else UNSEEDED),
        ),
    )
    if not started.rowcount:
        raise JournalFailed(f"There is a run {event.run!r} already.")
    _set_tip(connection, stored, event.run)


def _finish_run(connection: Connection, stored: Stored, event: RunFinished) -> None:
    flags = plain(" ".join(event.flags)).split()
    change = "UPDATE runs SET status = ?, finished = ?, flags = trim(flags || ' ' || ?), last = ? WHERE id = ?"
    connection.execute(change, (plain(event.status), stored.at, " ".join(flags), stored.n, stored.run))
    connection.execute("UPDATE sessions SET used = ? WHERE id = ?", (stored.at, stored.session))
    connection.execute("DELETE FROM questions WHERE run = ?", (stored.run,))
    if UNDONE in flags:  # the tip may have been moved since; then that holds
        back = "UPDATE sessions SET tip = (SELECT parent FROM runs WHERE id = ?1) WHERE id = ?2 AND tip = ?1"
        connection.execute(back, (stored.run, stored.session))


def _move_tip(connection: Connection, stored: Stored, event: TipMoved) -> None:
    if event.tip is not None and not has_run(connection, event.tip):
        raise NotFound(f"The session {stored.session!r} cannot go to run {event.tip!r}: there is none.")
    _set_tip(connection, stored, event.tip)


def _set_tip(connection: Connection, stored: Stored, tip: str | None) -> None:
    connection.execute("UPDATE sessions SET tip = ?, used = ? WHERE id = ?", (tip, stored.at, stored.session))


def create_session(connection: Connection, owner: str, row: SessionRow) -> None:
    """Make `row` a session of server `owner`; with a tip it is a fork, and that run its origin, too.

    Raises `InvalidRequest` if the id or the name is taken, `NotFound` if the tip is not there.
    """
    if row.tip is not None and not has_run(connection, row.tip):
        raise NotFound(f"There is no run {row.tip!r}.")
    try:
        connection.execute(
            """INSERT INTO sessions (id, name, principal, created, used, owner, tip, origin, purpose)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (row.id, row.name, row.principal, row.created, row.used, owner, row.tip, row.origin, row.purpose),
        )
    except IntegrityError:
        message = f"There is a session {row.name or row.id!r} already."
        raise InvalidRequest(message, remedy="Use it, or another name.") from None
    except UnicodeEncodeError:
        message = f"The session name {row.name!r} is not valid text."
        raise InvalidRequest(message, remedy="Use another name.") from None


def complete_session(connection: Connection, row: SessionRow) -> SessionRow:
    """Let everybody see a session of purpose `partial`, as `row` says, and any server have it; return it.

    Where its principal has one of that name already, a number is added. Nobody is asked what its runs waited for.
    """
    connection.execute("DELETE FROM questions WHERE session = ?", (row.id,))
    number, name = 1, row.name
    query = "SELECT 1 FROM sessions WHERE principal = ? AND name = ?"
    while connection.execute(query, (row.principal, name)).fetchone():
        number += 1
        name = f"{row.name} {number}"
    connection.execute(
        """UPDATE sessions SET name = ?, tip = coalesce(tip, ?), origin = ?, purpose = ?, used = ?, owner = NULL
        WHERE id = ?""",
        (name, row.tip, row.origin, row.purpose, row.used, row.id),
    )
    return session_row(connection, row.id)


def hide_sessions(connection: Connection, sessions: Iterable[str]) -> None:
    """Make sessions partial, without runs; they must be all whose lines pass through one another's runs."""
    connection.execute("PRAGMA defer_foreign_keys = ON")
    for session in sessions:
        connection.execute(
            "UPDATE sessions SET purpose = ?, name = NULL, tip = NULL, owner = NULL WHERE id = ?", (PARTIAL, session)
        )
        connection.execute("DELETE FROM runs WHERE session = ?", (session,))
        connection.execute("DELETE FROM questions WHERE session = ?", (session,))


def erase(connection: Connection, session: str, limit: int) -> int:
    """Erase at most `limit` events of a hidden session and return their number; with the last, the session is gone."""
    query = """
        DELETE FROM events WHERE session = ?1 AND n IN (SELECT n FROM events WHERE session = ?1 LIMIT ?2)
        AND EXISTS (SELECT 1 FROM sessions WHERE id = ?1 AND purpose = ?3)"""
    erased = connection.execute(query, (session, limit, PARTIAL)).rowcount
    if erased < limit:
        connection.execute("DELETE FROM sessions WHERE id = ? AND purpose = ?", (session, PARTIAL))
    return erased


def claim(connection: Connection, data_dir: Path, owner: str, session: str) -> tuple[SessionRow, int]:
    """Have server `owner` append to `session`; return it and the number of its last event.

    Raises `NotFound`, or `Unavailable` if another live server has it.
    """
    row = session_row(connection, session)
    if row.owner not in (None, owner) and leases.alive(data_dir, str(row.owner)):
        pid = leases.process_id(data_dir, str(row.owner))
        raise Unavailable(
            f"The session {row.name or row.id!r} is in use by another server (process {pid}).",
            remedy="Use that server, end it, or work in a session of another name.",
        )
    connection.execute("UPDATE sessions SET owner = ? WHERE id = ?", (owner, session))
    return session_row(connection, session), last_event(connection, session)


def release(connection: Connection, owner: str, session: str) -> None:
    """Let any server have `session`, if `owner` has it now."""
    connection.execute("UPDATE sessions SET owner = NULL WHERE id = ? AND owner = ?", (session, owner))


def reply(connection: Connection, run: str, question: str, text: str) -> None:
    """Leave an answer for the server that has the session; raises `NotFound`, `InvalidRequest` if there is one."""
    found = connection.execute("SELECT reply FROM questions WHERE run = ? AND question = ?", (run, question)).fetchone()
    if found is None:
        raise NotFound(f"Run {run!r:.80} does not wait for an answer to {question!r:.80}.")
    if found[0] is not None:
        raise InvalidRequest(f"The question {question!r} of run {run!r} has been answered already.")
    connection.execute("UPDATE questions SET reply = ? WHERE run = ? AND question = ?", (text, run, question))


def pin(connection: Connection, run: str, reason: str) -> None:
    """Keep `run` from the collector, for `reason`; raises `NotFound`."""
    if not has_run(connection, run):
        raise NotFound(f"There is no run {run!r}.")
    connection.execute("INSERT OR REPLACE INTO pins VALUES (?, ?, ?)", (run, plain(reason), time.time()))


def unpin(connection: Connection, run: str) -> None:
    """Let the collector have `run` again."""
    connection.execute("DELETE FROM pins WHERE run = ?", (run,))
