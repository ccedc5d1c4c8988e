"""Write the tables: every statement that changes rows, except those of retention.

Rule 1: each function is one step of a transaction that the writer has started; an exception undoes
its job.
Rule 2: `sessions` and `runs` follow the events in the same transaction, so that they never
contradict them.
Text from outside is stored with its lone surrogates escaped, because SQLite rejects them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from sqlite3 import Connection, IntegrityError

from ..errors import Conflict, InvalidRequest, JournalFailed, NotFound, Unavailable
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
    escape_surrogates,
    event_fields,
    event_kind,
)
from .queries import has_run, last_sequence, load_session
from .rows import CANCEL_REQUEST, UNDONE_FLAG, SessionRow, StoredEvent
from .server_lease import is_server_alive, server_process_id

MAX_INLINE_CHARS = 16 * 1024  # longer fields go to the blob store, which keeps equal ones once
PARTIAL_PURPOSE = "partial"  # of a session that is being imported or removed


def insert_event(
    connection: Connection, stored: StoredEvent, body: str, large_fields: str | None
) -> None:
    """Insert the row of `stored`, and update the rows that summarise its session and run."""
    event = stored.event
    connection.execute(
        """INSERT INTO events
        (session_id, sequence, run_id, recorded_at, kind, version, body, large_fields)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            stored.session_id,
            stored.sequence,
            stored.run_id,
            stored.recorded_at,
            event_kind(event),
            EVENT_VERSION,
            body,
            large_fields,
        ),
    )
    match event:
        case RunStarted():
            _start_run(connection, stored, event)
        case RunQueued():
            _queue_run(connection, stored, event)
        case QuestionAsked():
            _insert_question(connection, stored, event)
        case QuestionAnswered():
            connection.execute(
                "DELETE FROM questions WHERE run_id = ? AND question_id = ?",
                (stored.run_id, escape_surrogates(event.question_id)),
            )
        case RunFinished():
            _finish_run(connection, stored, event)
        case FilesChanged():
            connection.execute(
                "UPDATE runs SET files_sequence = ? WHERE id = ?",
                (stored.sequence, stored.run_id),
            )
        case TipMoved():
            _move_tip(connection, stored, event)


def split_large_fields(
    blobs: BlobStore, event: Event, text: str, encoded_fields: Mapping[str, bytes]
) -> tuple[str, str | None]:
    """Return the columns `body` and `large_fields` of an event; the latter become blobs.

    `text` is the JSON of all its fields but for those that are encoded already.
    """
    digests = {name: blobs.put(data) for name, data in encoded_fields.items()}
    if len(text) <= MAX_INLINE_CHARS:
        return text, encode_json(digests) if digests else None
    fields = {
        name: value for name, value in event_fields(event).items() if name not in encoded_fields
    }
    for name, value in list(fields.items()):
        encoded = encode_json(value)
        if len(encoded) > MAX_INLINE_CHARS:
            digests[name] = blobs.put(encoded.encode("ascii"))
            del fields[name]
    return (encode_json(fields), encode_json(digests)) if digests else (text, None)


def _insert_question(connection: Connection, stored: StoredEvent, event: QuestionAsked) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO questions VALUES (?, ?, ?, ?, ?, NULL)",
        (
            stored.run_id,
            escape_surrogates(event.question_id),
            stored.session_id,
            stored.sequence,
            event.expires_at,
        ),
    )


def _queue_run(connection: Connection, stored: StoredEvent, event: RunQueued) -> None:
    connection.execute(
        """INSERT INTO runs
        (id, session_id, step, name, status, started_at, idempotency_key, first_sequence)
        VALUES (?, ?, 0, '', 'queued', ?, ?, ?)""",
        (
            event.run_id,
            stored.session_id,
            stored.recorded_at,
            _escape_key(event.idempotency_key),
            stored.sequence,
        ),
    )


def _start_run(connection: Connection, stored: StoredEvent, event: RunStarted) -> None:
    if event.parent_id == event.run_id:  # any other parent exists, so a lineage has no cycles
        raise JournalFailed(f"The run {event.run_id!r} cannot be its own parent.")
    started = connection.execute(
        """INSERT INTO runs (id, session_id, parent_id, step, name, status, started_at,
            idempotency_key, first_sequence)
        VALUES (?1, ?2, ?3, ?4, ?5, 'running', ?6, ?7, ?8)
        ON CONFLICT (id) DO UPDATE
        SET parent_id = ?3, step = ?4, name = ?5, status = 'running', started_at = ?6
        WHERE session_id = ?2 AND status = 'queued'""",
        (
            event.run_id,
            stored.session_id,
            event.parent_id,
            event.step,
            escape_surrogates(event.name),
            stored.recorded_at,
            _escape_key(event.idempotency_key),
            stored.sequence,
        ),
    )
    if not started.rowcount:
        raise JournalFailed(f"There is already a run {event.run_id!r}.")
    _set_tip(connection, stored, event.run_id)


def _escape_key(key: str | None) -> str | None:
    return None if key is None else escape_surrogates(key)


def _finish_run(connection: Connection, stored: StoredEvent, event: RunFinished) -> None:
    flags = escape_surrogates(" ".join(event.flags))
    connection.execute(
        """UPDATE runs SET status = ?, finished_at = ?, flags = trim(flags || ' ' || ?),
            last_sequence = ? WHERE id = ?""",
        (
            escape_surrogates(event.status),
            stored.recorded_at,
            flags,
            stored.sequence,
            stored.run_id,
        ),
    )
    connection.execute(
        "UPDATE sessions SET last_used_at = ? WHERE id = ?",
        (stored.recorded_at, stored.session_id),
    )
    connection.execute("DELETE FROM questions WHERE run_id = ?", (stored.run_id,))
    if UNDONE_FLAG in flags.split():  # only if the tip has not been moved since
        connection.execute(
            """UPDATE sessions SET tip = (SELECT parent_id FROM runs WHERE id = ?1)
            WHERE id = ?2 AND tip = ?1""",
            (stored.run_id, stored.session_id),
        )


def _move_tip(connection: Connection, stored: StoredEvent, event: TipMoved) -> None:
    if event.tip is not None and not has_run(connection, event.tip):
        raise NotFound(
            f"The tip of session {stored.session_id!r} cannot move to run {event.tip!r}: "
            "there is no such run."
        )
    _set_tip(connection, stored, event.tip)


def _set_tip(connection: Connection, stored: StoredEvent, tip: str | None) -> None:
    connection.execute(
        "UPDATE sessions SET tip = ?, last_used_at = ? WHERE id = ?",
        (tip, stored.recorded_at, stored.session_id),
    )


def insert_session(connection: Connection, owner: str, row: SessionRow) -> None:
    """Insert `row` as a session of server `owner`; with a tip it is a fork of that run.

    Raises `InvalidRequest` if the id or the name is taken, `NotFound` if the tip does not exist.
    """
    if row.tip is not None and not has_run(connection, row.tip):
        raise NotFound(f"There is no run {row.tip!r}.")
    try:
        connection.execute(
            """INSERT INTO sessions
            (id, name, principal, created_at, last_used_at, owner, tip, origin, purpose)
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
        raise Conflict(
            f"There is already a session {row.name or row.id!r}.",
            remedy="Use it, or choose another name.",
        ) from None
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"The session name {row.name!r} is not valid text.", remedy="Choose another name."
        ) from None


def publish_session(connection: Connection, row: SessionRow) -> SessionRow:
    """Make a partial session visible as `row` describes, without an owner; return it.

    If its principal has a session of that name already, a number is added. Its pending questions
    are dropped.
    """
    connection.execute("DELETE FROM questions WHERE session_id = ?", (row.id,))
    number, name = 1, row.name
    query = "SELECT 1 FROM sessions WHERE principal = ? AND name = ?"
    while connection.execute(query, (row.principal, name)).fetchone():
        number += 1
        name = f"{row.name} {number}"
    connection.execute(
        """UPDATE sessions SET name = ?, tip = coalesce(tip, ?), origin = ?, purpose = ?,
            last_used_at = ?, owner = NULL WHERE id = ?""",
        (name, row.tip, row.origin, row.purpose, row.last_used_at, row.id),
    )
    return load_session(connection, row.id)


def hide_sessions(connection: Connection, session_ids: Iterable[str]) -> None:
    """Make sessions partial and remove their runs.

    No other session may have a run of these in its lineages.
    """
    connection.execute("PRAGMA defer_foreign_keys = ON")
    for session_id in session_ids:
        connection.execute(
            "UPDATE sessions SET purpose = ?, name = NULL, tip = NULL, owner = NULL WHERE id = ?",
            (PARTIAL_PURPOSE, session_id),
        )
        connection.execute("DELETE FROM runs WHERE session_id = ?", (session_id,))
        connection.execute("DELETE FROM questions WHERE session_id = ?", (session_id,))


def erase_events(connection: Connection, session_id: str, limit: int) -> int:
    """Erase at most `limit` events of a partial session, then the session; return their number.

    The session is gone when fewer than `limit` events were erased.
    """
    erased = connection.execute(
        """DELETE FROM events WHERE session_id = ?1
        AND sequence IN (SELECT sequence FROM events WHERE session_id = ?1 LIMIT ?2)
        AND EXISTS (SELECT 1 FROM sessions WHERE id = ?1 AND purpose = ?3)""",
        (session_id, limit, PARTIAL_PURPOSE),
    ).rowcount
    if erased < limit:
        connection.execute(
            "DELETE FROM sessions WHERE id = ? AND purpose = ?", (session_id, PARTIAL_PURPOSE)
        )
    return erased


def claim_session(
    connection: Connection, data_dir: Path, owner: str, session_id: str
) -> tuple[SessionRow, int]:
    """Let server `owner` append to a session; return it and the sequence number of its last event.

    Raises `NotFound`, or `Unavailable` if another live server owns it.
    """
    row = load_session(connection, session_id)
    if row.owner not in (None, owner) and is_server_alive(data_dir, str(row.owner)):
        pid = server_process_id(data_dir, str(row.owner))
        raise Unavailable(
            f"The session {row.name or row.id!r} is in use by another server (process {pid}).",
            remedy="Use that server, stop it, or work in a session of another name.",
        )
    connection.execute("UPDATE sessions SET owner = ? WHERE id = ?", (owner, session_id))
    return load_session(connection, session_id), last_sequence(connection, session_id)


def release_session(connection: Connection, owner: str, session_id: str) -> None:
    """Let any server claim a session that `owner` owns."""
    connection.execute(
        "UPDATE sessions SET owner = NULL WHERE id = ? AND owner = ?", (session_id, owner)
    )


def store_answer(connection: Connection, run_id: str, question_id: str, answer_json: str) -> None:
    """Store an answer for the server that owns the session.

    Raises `NotFound`, or `InvalidRequest` if the question has an answer already.
    """
    key = (run_id, question_id)
    found = connection.execute(
        "SELECT answer_json FROM questions WHERE run_id = ? AND question_id = ?", key
    ).fetchone()
    if found is None:
        raise NotFound(f"Run {run_id!r:.80} does not wait for an answer to {question_id!r:.80}.")
    if found[0] is not None:
        raise Conflict(f"The question {question_id!r} of run {run_id!r} has been answered already.")
    connection.execute(
        "UPDATE questions SET answer_json = ? WHERE run_id = ? AND question_id = ?",
        (answer_json, *key),
    )


def store_cancellation(connection: Connection, run_id: str, by: str) -> None:
    """Store that a run is to be cancelled, for the server that owns its session.

    One that has finished stays as it is.
    """
    connection.execute(
        """INSERT OR REPLACE INTO questions
            SELECT id, ?, session_id, 0, 0, ? FROM runs
            WHERE id = ? AND status IN ('queued', 'running')""",
        (CANCEL_REQUEST, encode_json({"by": by}), run_id),
    )


def pin_run(connection: Connection, run_id: str, reason: str) -> None:
    """Protect a run from garbage collection; raises `NotFound`."""
    if not has_run(connection, run_id):
        raise NotFound(f"There is no run {run_id!r}.")
    connection.execute(
        "INSERT OR REPLACE INTO pins VALUES (?, ?, ?)",
        (run_id, escape_surrogates(reason), time.time()),
    )


def unpin_run(connection: Connection, run_id: str) -> None:
    """Let garbage collection remove a run again."""
    connection.execute("DELETE FROM pins WHERE run_id = ?", (run_id,))
