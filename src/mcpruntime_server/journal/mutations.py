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
from . import server_lease as leases
from .blob_store import BlobStore
from .events import (
    EVENT_VERSION,
    Event,
    FilesChanged,
    QuestionAnswered,
    QuestionAsked,
    RunFinished,
    RunQueued,
    RunStarted,
    TipMoved,
    encode_json,
    event_fields,
    event_kind,
)
from .queries import escape_surrogates, has_run, last_sequence, load_session
from .rows import SessionRow, StoredEvent

MAX_INLINE_CHARS = (
    16 * 1024
)  # characters; longer fields go to the blob store, where equal ones are kept once
PARTIAL_PURPOSE = "partial"  # the purpose of a session that is not all there
UNDONE_FLAG = "undone"  # the flag of a run whose end is not a state of its session
UNSEEDED_FLAG = "unseeded"  # the flag of a run whose chance was not recorded


def insert_event(connection: Connection, stored: StoredEvent, body: str, large: str | None) -> None:
    """Add the row of `stored`, and have the rows that sum events up follow it."""
    event = stored.event
    connection.execute(
        "INSERT INTO events (session, n, run, at, kind, version, body, large) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            stored.session_id,
            stored.sequence,
            stored.run_id,
            stored.recorded_at,
            event_kind(event),
            EVENT_VERSION,
            body,
            large,
        ),
    )
    if isinstance(event, RunStarted):
        _start_run(connection, stored, event)
    elif isinstance(event, RunQueued):
        _queue_run(connection, stored, event)
    elif isinstance(event, QuestionAsked):
        values = (
            stored.run_id,
            escape_surrogates(event.question_id),
            stored.session_id,
            stored.sequence,
            event.expires_at,
        )
        connection.execute("INSERT OR REPLACE INTO questions VALUES (?, ?, ?, ?, ?, NULL)", values)
    elif isinstance(event, QuestionAnswered):
        gone = "DELETE FROM questions WHERE run = ? AND question = ?"
        connection.execute(gone, (stored.run_id, escape_surrogates(event.question_id)))
    elif isinstance(event, RunFinished):
        _finish_run(connection, stored, event)
    elif isinstance(event, FilesChanged):
        connection.execute(
            "UPDATE runs SET files = ? WHERE id = ?", (stored.sequence, stored.run_id)
        )
    elif isinstance(event, TipMoved):
        _move_tip(connection, stored, event)


def split_large_fields(blobs: BlobStore, event: Event, text: str) -> tuple[str, str | None]:
    """Return the `body` and `large` of an event whose fields are `text`, and keep those that are long as blobs."""
    if len(text) <= MAX_INLINE_CHARS:
        return text, None
    fields = dict(event_fields(event))
    large = {}
    for name, value in list(fields.items()):
        part = encode_json(value)
        if len(part) > MAX_INLINE_CHARS:
            large[name] = blobs.put(part.encode("ascii"))
            del fields[name]
    return (encode_json(fields), encode_json(large)) if large else (text, None)


def _queue_run(connection: Connection, stored: StoredEvent, event: RunQueued) -> None:
    key = event.idempotency_key
    connection.execute(
        """INSERT INTO runs (id, session, step, name, status, started, request, first)
        VALUES (?, ?, 0, '', 'queued', ?, ?, ?)""",
        (
            event.run_id,
            stored.session_id,
            stored.recorded_at,
            key and escape_surrogates(key),
            stored.sequence,
        ),
    )


def _start_run(connection: Connection, stored: StoredEvent, event: RunStarted) -> None:
    if (
        event.parent_id == event.run_id
    ):  # any other parent is there already, so lines have no cycles
        raise JournalFailed(f"The run {event.run_id!r} cannot start from its own end.")
    key = event.idempotency_key
    started = connection.execute(
        """INSERT INTO runs (id, session, parent, step, name, status, started, request, first, flags)
        VALUES (?1, ?2, ?3, ?4, ?5, 'running', ?6, ?7, ?8, ?9)
        ON CONFLICT (id) DO UPDATE SET parent = ?3, step = ?4, name = ?5, status = 'running', started = ?6, flags = ?9
        WHERE session = ?2 AND status = 'queued'""",
        (
            *(
                event.run_id,
                stored.session_id,
                event.parent_id,
                event.step,
                escape_surrogates(event.name),
                stored.recorded_at,
            ),
            *(key and escape_surrogates(key), stored.sequence, "" if event.seed else UNSEEDED_FLAG),
        ),
    )
    if not started.rowcount:
        raise JournalFailed(f"There is a run {event.run_id!r} already.")
    _set_tip(connection, stored, event.run_id)


def _finish_run(connection: Connection, stored: StoredEvent, event: RunFinished) -> None:
    flags = escape_surrogates(" ".join(event.flags)).split()
    change = "UPDATE runs SET status = ?, finished = ?, flags = trim(flags || ' ' || ?), last = ? WHERE id = ?"
    connection.execute(
        change,
        (
            escape_surrogates(event.status),
            stored.recorded_at,
            " ".join(flags),
            stored.sequence,
            stored.run_id,
        ),
    )
    connection.execute(
        "UPDATE sessions SET used = ? WHERE id = ?", (stored.recorded_at, stored.session_id)
    )
    connection.execute("DELETE FROM questions WHERE run = ?", (stored.run_id,))
    if UNDONE_FLAG in flags:  # the tip may have been moved since; then that holds
        back = "UPDATE sessions SET tip = (SELECT parent FROM runs WHERE id = ?1) WHERE id = ?2 AND tip = ?1"
        connection.execute(back, (stored.run_id, stored.session_id))


def _move_tip(connection: Connection, stored: StoredEvent, event: TipMoved) -> None:
    if event.tip is not None and not has_run(connection, event.tip):
        raise NotFound(
            f"The session {stored.session_id!r} cannot go to run {event.tip!r}: there is none."
        )
    _set_tip(connection, stored, event.tip)


def _set_tip(connection: Connection, stored: StoredEvent, tip: str | None) -> None:
    connection.execute(
        "UPDATE sessions SET tip = ?, used = ? WHERE id = ?",
        (tip, stored.recorded_at, stored.session_id),
    )


def insert_session(connection: Connection, owner: str, row: SessionRow) -> None:
    """Make `row` a session of server `owner`; with a tip it is a fork, and that run its origin, too.

    Raises `InvalidRequest` if the id or the name is taken, `NotFound` if the tip is not there.
    """
    if row.tip is not None and not has_run(connection, row.tip):
        raise NotFound(f"There is no run {row.tip!r}.")
    try:
        connection.execute(
            """INSERT INTO sessions (id, name, principal, created, used, owner, tip, origin, purpose)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                row.id,
                row.name,
                row.principal,
                row.created_at,
                row.last_used_at,
                owner,
                row.tip,
                row.origin,
                row.purpose,
            ),
        )
    except IntegrityError:
        message = f"There is a session {row.name or row.id!r} already."
        raise InvalidRequest(message, remedy="Use it, or another name.") from None
    except UnicodeEncodeError:
        message = f"The session name {row.name!r} is not valid text."
        raise InvalidRequest(message, remedy="Use another name.") from None


def publish_session(connection: Connection, row: SessionRow) -> SessionRow:
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
        (name, row.tip, row.origin, row.purpose, row.last_used_at, row.id),
    )
    return load_session(connection, row.id)


def hide_sessions(connection: Connection, sessions: Iterable[str]) -> None:
    """Make sessions partial, without runs; they must be all whose lines pass through one another's runs."""
    connection.execute("PRAGMA defer_foreign_keys = ON")
    for session in sessions:
        connection.execute(
            "UPDATE sessions SET purpose = ?, name = NULL, tip = NULL, owner = NULL WHERE id = ?",
            (PARTIAL_PURPOSE, session),
        )
        connection.execute("DELETE FROM runs WHERE session = ?", (session,))
        connection.execute("DELETE FROM questions WHERE session = ?", (session,))


def erase_events(connection: Connection, session_id: str, limit: int) -> int:
    """Erase at most `limit` events of a hidden session and return their number; with the last, the session is gone."""
    query = """
        DELETE FROM events WHERE session = ?1 AND n IN (SELECT n FROM events WHERE session = ?1 LIMIT ?2)
        AND EXISTS (SELECT 1 FROM sessions WHERE id = ?1 AND purpose = ?3)"""
    erased = connection.execute(query, (session_id, limit, PARTIAL_PURPOSE)).rowcount
    if erased < limit:
        connection.execute(
            "DELETE FROM sessions WHERE id = ? AND purpose = ?", (session_id, PARTIAL_PURPOSE)
        )
    return erased


def claim_session(
    connection: Connection, data_dir: Path, owner: str, session_id: str
) -> tuple[SessionRow, int]:
    """Have server `owner` append to `session`; return it and the number of its last event.

    Raises `NotFound`, or `Unavailable` if another live server has it.
    """
    row = load_session(connection, session_id)
    if row.owner not in (None, owner) and leases.is_server_alive(data_dir, str(row.owner)):
        pid = leases.server_process_id(data_dir, str(row.owner))
        raise Unavailable(
            f"The session {row.name or row.id!r} is in use by another server (process {pid}).",
            remedy="Use that server, end it, or work in a session of another name.",
        )
    connection.execute("UPDATE sessions SET owner = ? WHERE id = ?", (owner, session_id))
    return load_session(connection, session_id), last_sequence(connection, session_id)


def release_session(connection: Connection, owner: str, session_id: str) -> None:
    """Let any server have `session`, if `owner` has it now."""
    connection.execute(
        "UPDATE sessions SET owner = NULL WHERE id = ? AND owner = ?", (session_id, owner)
    )


def store_answer(connection: Connection, run_id: str, question: str, text: str) -> None:
    """Leave an answer for the server that has the session; raises `NotFound`, `InvalidRequest` if there is one."""
    found = connection.execute(
        "SELECT reply FROM questions WHERE run = ? AND question = ?", (run_id, question)
    ).fetchone()
    if found is None:
        raise NotFound(f"Run {run_id!r:.80} does not wait for an answer to {question!r:.80}.")
    if found[0] is not None:
        raise InvalidRequest(
            f"The question {question!r} of run {run_id!r} has been answered already."
        )
    connection.execute(
        "UPDATE questions SET reply = ? WHERE run = ? AND question = ?", (text, run_id, question)
    )


def pin_run(connection: Connection, run_id: str, reason: str) -> None:
    """Keep `run` from the collector, for `reason`; raises `NotFound`."""
    if not has_run(connection, run_id):
        raise NotFound(f"There is no run {run_id!r}.")
    connection.execute(
        "INSERT OR REPLACE INTO pins VALUES (?, ?, ?)",
        (run_id, escape_surrogates(reason), time.time()),
    )


def unpin_run(connection: Connection, run_id: str) -> None:
    """Let the collector have `run` again."""
    connection.execute("DELETE FROM pins WHERE run = ?", (run_id,))
