"""Read the tables: every statement that reads rows, except those of retention and `overviews`.

Each function takes a connection, blocks until it has the result, and lets `sqlite3.Error` pass.
A session that is being imported or removed has the purpose `partial` and is invisible here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from ..errors import JournalFailed, NotFound
from .blob_store import BlobStore
from .events import (
    KIND_BY_CLASS,
    FileEntry,
    FilesChanged,
    decode_json,
    escape_surrogates,
    event_from_fields,
)
from .rows import (
    CANCEL_REQUEST,
    FILES_FLAG,
    UNDONE_FLAG,
    CallResult,
    QuestionRow,
    RawEventRow,
    RunRow,
    SessionRow,
    SkillUseRow,
    StoredEvent,
    SubmittedAnswer,
)

MAX_TEXT_EVENT_CHARS = 2_000  # of an event with a short text
MAX_SANDBOX_STARTS = 100  # looked at for the Python version of an image

# The statements are composed of constants; values are always bound.
SELECT_SESSIONS = """
    SELECT id, name, principal, created_at, last_used_at, owner, tip,
        (SELECT count(*) FROM runs WHERE session_id = sessions.id), origin, purpose
    FROM sessions WHERE purpose <> 'partial'"""
SELECT_RUNS = """
    SELECT runs.id, runs.session_id, runs.parent_id, step, name, status, started_at, finished_at,
        idempotency_key, flags
    FROM runs"""
SELECT_EVENTS = """
    SELECT events.session_id, sequence, run_id, recorded_at, kind, body, large_fields
    FROM events"""
WITH_LINEAGE = """
    WITH RECURSIVE lineage (id, parent_id, distance) AS (
        SELECT id, parent_id, 0 FROM runs WHERE id = ?1
        UNION ALL
        SELECT runs.id, runs.parent_id, distance + 1
        FROM lineage JOIN runs ON runs.id = lineage.parent_id
    )"""
SELECT_SESSION_EVENTS = f"""
    WITH bounds (first, last) AS (
        SELECT first_sequence, CASE WHEN last_sequence IS NOT NULL
            THEN max(last_sequence, coalesce(files_sequence, 0)) END
        FROM runs WHERE id = ?3
    )
    {SELECT_EVENTS}
    WHERE session_id = ?1
        AND sequence > max(?2, coalesce((SELECT first - 1 FROM bounds), 0))
        AND sequence <= coalesce((SELECT last FROM bounds), 9223372036854775807)
        AND (?3 IS NULL OR run_id = ?3) AND (?5 IS NULL OR kind = ?5)
    ORDER BY sequence LIMIT ?4"""  # noqa: S608 - made of constants
SELECT_RUN_PARTS = f"""
    WITH bounds (first, last) AS (
        SELECT first_sequence, CASE WHEN last_sequence IS NOT NULL
            THEN max(last_sequence, coalesce(files_sequence, 0)) END
        FROM runs WHERE id = ?2
    )
    {SELECT_EVENTS}
    WHERE session_id = ?1
        AND sequence >= coalesce((SELECT first FROM bounds), 0)
        AND sequence <= coalesce((SELECT last FROM bounds), 9223372036854775807)
        AND run_id = ?2 AND kind NOT IN ('output_written', 'clocks_read')
    ORDER BY sequence"""  # noqa: S608 - made of constants
SELECT_LINEAGE_FILES = f"""
    {WITH_LINEAGE} {SELECT_EVENTS}
    JOIN runs ON events.session_id = runs.session_id AND events.run_id = runs.id
        AND kind = 'files_changed'
    JOIN lineage ON runs.id = lineage.id
    WHERE ' ' || runs.flags || ' ' NOT LIKE '% undone %'
    ORDER BY distance DESC, sequence"""
SELECT_VISITED_RUNS = """
    WITH RECURSIVE visited (id) AS (
        SELECT id FROM runs WHERE session_id = ?1 AND step > 0
        UNION SELECT origin FROM sessions WHERE id = ?1
        UNION SELECT tip FROM sessions WHERE id = ?1
        UNION SELECT json_extract(body, '$.tip') FROM events
            WHERE session_id = ?1 AND kind = 'tip_moved'
        UNION SELECT json_extract(body, '$.previous_tip') FROM events
            WHERE session_id = ?1 AND kind = 'tip_moved'
        UNION SELECT runs.parent_id FROM visited JOIN runs ON runs.id = visited.id
    )
    SELECT runs.id, runs.session_id FROM visited JOIN runs ON runs.id = visited.id
    ORDER BY runs.rowid"""
SELECT_HAS_CALLED = """
    SELECT 1 FROM runs JOIN events ON events.session_id = runs.session_id
        AND sequence BETWEEN first_sequence AND coalesce(last_sequence, 9223372036854775807)
        AND run_id = runs.id AND kind = 'call_started'
    WHERE runs.id = ?1 LIMIT 1"""
MAX_USES_PER_PRINCIPAL = 10_000  # the latest ones; sandboxed code may report any number
# The arguments are text of sandboxed code. JSON that is nested too deeply for SQLite is left out.
SELECT_SKILL_USES = """
    WITH reports AS MATERIALIZED (
        SELECT json_extract(body, '$.args') AS args, recorded_at, run_id, session_id, principal
        FROM events JOIN sessions ON sessions.id = events.session_id
        WHERE kind = 'call_started' AND instr(body, '"target":"skills.used"') > 0
            AND purpose NOT IN ('rerun', 'partial', 'import')
            AND (principal = :principal
                OR EXISTS (SELECT 1 FROM json_each(:shared) WHERE instr(body, value) > 0))
    ), readable AS (
        SELECT CASE WHEN json_valid(args) THEN args ELSE '{}' END AS args,
            recorded_at, run_id, session_id, principal
        FROM reports
    ), uses AS (
        SELECT json_extract(args, '$.skill') AS skill, json_extract(args, '$.version') AS version,
            max(json_extract(args, '$.ok')) AS has_succeeded, max(recorded_at) AS recorded_at,
            run_id, session_id, principal,
            row_number() OVER (PARTITION BY principal ORDER BY max(recorded_at) DESC) AS place
        FROM readable
        WHERE json_type(args, '$.skill') = 'text' AND json_type(args, '$.version') = 'integer'
            AND json_type(args, '$.ok') IN ('true', 'false')
            AND (principal = :principal OR skill IN (SELECT value FROM json_each(:shared)))
        GROUP BY run_id, skill, version
    )
    SELECT skill, version, has_succeeded, recorded_at, run_id, session_id, principal
    FROM uses WHERE place <= :most"""
SELECT_SESSION_ORIGINS = """
    SELECT sessions.id, runs.session_id FROM sessions JOIN runs ON runs.id = sessions.origin"""


# sessions ---------------------------------------------------------------------------------------


def load_session(connection: Connection, session_id: str) -> SessionRow:
    """Return a session by its id; raises `NotFound`."""
    found = connection.execute(f"{SELECT_SESSIONS} AND id = ?", (session_id,)).fetchone()
    if found is None:
        raise NotFound(f"There is no session {session_id!r}.")
    return SessionRow(*found)


def find_session(connection: Connection, name_or_id: str, principal: str) -> SessionRow:
    """Return a session of the principal by its id or name; raises `NotFound`."""
    query = f"{SELECT_SESSIONS} AND principal = ?2 AND (id = ?1 OR name = ?1) ORDER BY id = ?1 DESC"
    found = connection.execute(query, (name_or_id, principal)).fetchone()
    if found is None:
        raise NotFound(f"There is no session {name_or_id!r}.")
    return SessionRow(*found)


def list_sessions(connection: Connection, principal: str | None) -> list[SessionRow]:
    """Return the sessions of one principal, or of all, the last used first."""
    query = f"{SELECT_SESSIONS} AND (?1 IS NULL OR principal = ?1) ORDER BY last_used_at DESC"
    return [SessionRow(*row) for row in connection.execute(query, (principal,))]


def page_sessions(
    connection: Connection,
    principal: str,
    purposes: Sequence[str],
    before: tuple[float, str] | None,
    limit: int,
) -> list[SessionRow]:
    """Return sessions of one principal that have these purposes, the last used first.

    `before` is when the last session of the page before was used, and its id.
    """
    marks = ", ".join("?" * len(purposes))
    query = f"""{SELECT_SESSIONS} AND principal = ? AND purpose IN ({marks})
        AND (? IS NULL OR (last_used_at, id) < (?, ?))
        ORDER BY last_used_at DESC, id DESC LIMIT ?"""
    time, session_id = before or (None, None)
    values = (principal, *purposes, time, time, session_id, limit)
    return [SessionRow(*row) for row in connection.execute(query, values)]


def last_sequence(connection: Connection, session_id: str) -> int:
    """Return the sequence number of a session's last event, 0 if it has none."""
    query = "SELECT coalesce(max(sequence), 0) FROM events WHERE session_id = ?"
    last: int = connection.execute(query, (session_id,)).fetchone()[0]
    return last


@dataclass(frozen=True)
class SessionSize:
    """About how many bytes a session has recorded, and its unfinished runs, large fields included.

    What was downloaded counts in `total_bytes`, and for a run by itself.
    """

    total_bytes: int
    run_bytes: Counter[str]
    download_bytes: Counter[str]


def measure_session(connection: Connection, blobs: BlobStore, session_id: str) -> SessionSize:
    """Return how much a session has recorded."""
    by_run: Counter[str] = Counter()
    downloads: Counter[str] = Counter()
    query = """SELECT coalesce(run_id, ''), length(body), large_fields, CASE kind
            WHEN 'call_finished' THEN coalesce(json_extract(body, '$.download_bytes'), 0) ELSE 0 END
        FROM events WHERE session_id = ?"""
    for run_id, body_chars, large_fields, downloaded in connection.execute(query, (session_id,)):
        by_run[run_id] += body_chars
        downloads[run_id] += downloaded
        for digest in json.loads(large_fields).values() if large_fields else ():
            with suppress(OSError):  # a missing blob is reported by who reads it
                by_run[run_id] += blobs.blob_path(digest).stat().st_size
    query = f"{SELECT_RUNS} WHERE session_id = ? AND status IN ('running', 'queued')"
    unfinished = [run.id for run in _query_runs(connection, query, session_id)]
    return SessionSize(
        by_run.total() + downloads.total(),
        Counter({run_id: by_run[run_id] for run_id in unfinished}),
        Counter({run_id: downloads[run_id] for run_id in unfinished}),
    )


def measure_principal(connection: Connection, blobs: BlobStore, principal: str) -> int:
    """Return about how many bytes all sessions of a principal have, with their workspace files."""
    size, files = 0, dict[str, int]()
    rows = connection.execute("SELECT id FROM sessions WHERE principal = ?", (principal,))
    for (session_id,) in rows.fetchall():
        size += measure_session(connection, blobs, session_id).total_bytes
        values = (session_id, 0, None, -1, KIND_BY_CLASS[FilesChanged])
        for stored in iter_events(connection, blobs, SELECT_SESSION_EVENTS, values, []):
            if isinstance(stored.event, FilesChanged):
                files |= {each["digest"]: each["size"] for each in stored.event.changed.values()}
    return size + sum(files.values())


# runs -------------------------------------------------------------------------------------------


def has_run(connection: Connection, run_id: str) -> bool:
    """Say whether a run exists."""
    found = connection.execute("SELECT 1 FROM runs WHERE id = ?", (run_id,)).fetchone()
    return found is not None


def load_run(connection: Connection, run_id: str) -> RunRow:
    """Return a run by its id; raises `NotFound`."""
    for row in _query_runs(connection, f"{SELECT_RUNS} WHERE id = ?", run_id):
        return row
    raise NotFound(f"There is no run {run_id!r}.")


def list_runs(connection: Connection, session_id: str) -> list[RunRow]:
    """Return the runs of a session, oldest first."""
    query = f"{SELECT_RUNS} WHERE session_id = ? ORDER BY started_at, rowid"
    return list(_query_runs(connection, query, session_id))


def find_run_by_key(connection: Connection, session_id: str, key: str) -> RunRow | None:
    """Return the session's newest run with the idempotency key `key`."""
    query = (
        f"{SELECT_RUNS} WHERE session_id = ? AND idempotency_key = ? "
        "ORDER BY first_sequence DESC LIMIT 1"
    )
    return next(_query_runs(connection, query, session_id, escape_surrogates(key)), None)


def list_unfinished_runs(
    connection: Connection, principal: str | None
) -> list[tuple[SessionRow, RunRow]]:
    """Return the queued and running runs with their sessions, newest first."""
    query = (
        f"{SELECT_RUNS} WHERE status IN ('running', 'queued') ORDER BY started_at DESC, rowid DESC"
    )
    sessions = {row.id: row for row in list_sessions(connection, principal)}
    return [
        (sessions[run.session_id], run)
        for run in _query_runs(connection, query)
        if run.session_id in sessions
    ]


def list_queued_runs(connection: Connection, session_id: str) -> list[RunRow]:
    """Return the runs of a session that were announced and have not started, oldest first."""
    query = f"{SELECT_RUNS} WHERE session_id = ? AND status = 'queued' ORDER BY first_sequence"
    return list(_query_runs(connection, query, session_id))


def load_lineage(connection: Connection, run_id: str) -> list[RunRow]:
    """Return a run and its ancestors, oldest first, in whichever sessions; raises `NotFound`."""
    query = (
        f"{WITH_LINEAGE} {SELECT_RUNS} JOIN lineage ON runs.id = lineage.id ORDER BY distance DESC"
    )
    found = list(_query_runs(connection, query, run_id))
    if not found:
        raise NotFound(f"There is no run {run_id!r}.")
    return found


def list_visited_runs(connection: Connection, session_id: str) -> list[tuple[str, str]]:
    """Return every run of a session and its ancestors, abandoned branches included.

    Each comes with the id of its own session, parents before children.
    """
    return connection.execute(SELECT_VISITED_RUNS, (session_id,)).fetchall()


def load_visited_run(connection: Connection, session_id: str, run_id: str) -> RunRow:
    """Return a run that `list_visited_runs` lists for a session; raises `NotFound`."""
    run = load_run(connection, run_id)
    is_own = run.session_id == session_id and run.step > 0
    if not is_own and all(
        run_id != visited for visited, _ in list_visited_runs(connection, session_id)
    ):
        raise NotFound(f"The session {session_id!r} has no run {run_id!r}.")
    return run


def list_calling_runs(
    connection: Connection, tip: str | None, kept_tip: str | None, others: Iterable[str]
) -> list[str]:
    """Return the runs that have called something, of the lineage of `tip` and of `others`.

    Those of the lineage of `kept_tip` are left out.
    """
    left, kept = (
        [] if run_id is None else load_lineage(connection, run_id) for run_id in (tip, kept_tip)
    )
    found = dict.fromkeys([*(row.id for row in left), *others])
    for row in kept:
        found.pop(row.id, None)
    return [
        run_id for run_id in found if connection.execute(SELECT_HAS_CALLED, (run_id,)).fetchone()
    ]


def has_any_id(connection: Connection, session_ids: Iterable[str], run_ids: Iterable[str]) -> bool:
    """Say whether one of these ids is in use."""
    lookups = (
        ("SELECT 1 FROM sessions WHERE id = ?", session_ids),
        ("SELECT 1 FROM runs WHERE id = ?", run_ids),
    )
    return any(
        connection.execute(query, (each,)).fetchone() for query, ids in lookups for each in ids
    )


def load_pins(connection: Connection) -> dict[str, str]:
    """Return the pinned runs, each with the reason."""
    return dict(connection.execute("SELECT run_id, reason FROM pins ORDER BY pinned_at").fetchall())


def _query_runs(connection: Connection, query: str, *values: str) -> Iterator[RunRow]:
    for *columns, flags in connection.execute(query, values):
        columns.append(frozenset(flags.split()))
        yield RunRow(*columns)


# questions --------------------------------------------------------------------------------------


def list_pending_questions(connection: Connection, principal: str | None) -> list[QuestionRow]:
    """Return the questions that runs wait for, the first to expire first."""
    query = f"""
        SELECT run_id, question_id, questions.session_id, sequence, expires_at,
            answer_json IS NOT NULL
        FROM questions JOIN runs ON runs.id = run_id AND runs.status = 'running'
        WHERE question_id <> ?2 AND questions.session_id IN
            (SELECT id FROM ({SELECT_SESSIONS} AND (?1 IS NULL OR principal = ?1)))
        ORDER BY expires_at, run_id, sequence"""  # noqa: S608 - made of constants
    return [QuestionRow(*row) for row in connection.execute(query, (principal, CANCEL_REQUEST))]


def list_submitted_answers(connection: Connection) -> list[SubmittedAnswer]:
    """Return the answers and cancellations from other processes.

    A `QuestionAnswered` event removes an answer, the end of a run all of its own.
    """
    query = """
        SELECT session_id, run_id, question_id, answer_json FROM questions
        WHERE answer_json IS NOT NULL"""
    return [SubmittedAnswer(*row) for row in connection.execute(query)]


# events -----------------------------------------------------------------------------------------


def load_events(
    connection: Connection,
    blobs: BlobStore,
    query: str,
    values: tuple[Any, ...],
    damage: list[str] | None = None,
) -> list[StoredEvent]:
    """Return the events that `query` selects; raises as `iter_events` does."""
    return list(iter_events(connection, blobs, query, values, damage))


def iter_events(
    connection: Connection,
    blobs: BlobStore,
    query: str,
    values: tuple[Any, ...],
    damage: list[str] | None = None,
) -> Iterator[StoredEvent]:
    """Yield the events that `query` selects.

    Raises `JournalFailed` if an event is damaged. With `damage`, the problem is added there
    instead, and the event is yielded with the fields that can be read, or left out.
    """
    for session_id, sequence, run_id, at, kind, body, large in connection.execute(query, values):
        where = f"Event {sequence} of session {session_id!r} in {blobs.root.parent}"
        try:
            event = event_from_fields(kind, _join_large_fields(blobs, body, large, where, damage))
        except (ValueError, NotFound) as exc:
            message = f"{where} is damaged: {exc}"
            if damage is None:
                raise JournalFailed(message, remedy="The other events can still be read.") from exc
            damage.append(message)
        else:
            yield StoredEvent(session_id, sequence, run_id, at, event)


def _join_large_fields(
    blobs: BlobStore, body: str, large_fields: str | None, where: str, damage: list[str] | None
) -> Mapping[str, Any]:
    """Return the fields of an event; with `damage`, unreadable ones are reported and left out."""
    fields = decode_json(body)
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object.")
    for name, digest in decode_json(large_fields).items() if large_fields else ():
        try:
            fields[name] = decode_json(blobs.get(digest).decode("ascii"))
        except (ValueError, NotFound, JournalFailed) as exc:
            if damage is None:
                raise
            damage.append(f"{where} has lost its {name}: {exc}")
    return fields


def iter_raw_events(connection: Connection, session_id: str) -> Iterator[RawEventRow]:
    """Yield the events of a session as they are stored, in order."""
    query = """
        SELECT sequence, run_id, recorded_at, kind, version, body, large_fields FROM events
        WHERE session_id = ? ORDER BY sequence"""
    return map(RawEventRow._make, connection.execute(query, (session_id,)))


def load_files_at(
    connection: Connection, blobs: BlobStore, run_id: str, damage: list[str] | None
) -> tuple[dict[str, FileEntry], list[str]]:
    """Return the workspace at the end of a run, and the runs of its lineage whose files were lost.

    Those announced files that never arrived. With `damage`, unreadable events are reported there,
    and their files count as lost.
    """
    files: dict[str, FileEntry] = {}
    arrived = set()
    lineage = load_lineage(connection, run_id)
    for stored in load_events(connection, blobs, SELECT_LINEAGE_FILES, (run_id,), damage):
        if isinstance(stored.event, FilesChanged):
            for path in stored.event.removed:
                files.pop(path, None)
            files.update(stored.event.changed)
        arrived.add(stored.run_id)
    announced = [
        row.id for row in lineage if FILES_FLAG in row.flags and UNDONE_FLAG not in row.flags
    ]
    return files, [each for each in announced if each not in arrived]


def iter_call_results(
    connection: Connection, blobs: BlobStore, session_id: str, last: int
) -> Iterator[CallResult]:
    """Yield the results of successful calls among a session's `last` events, newest first.

    Unreadable events are skipped.
    """
    since = last_sequence(connection, session_id) - last
    targets: dict[tuple[str, int], str] = {}
    started = """
        SELECT run_id, body FROM events
        WHERE session_id = ? AND sequence > ? AND kind = 'call_started'"""
    for run_id, body in connection.execute(started, (session_id, since)):
        with suppress(ValueError, KeyError, TypeError):  # damaged, or its target is a large field
            fields = decode_json(body)
            if isinstance(fields["target"], str):
                targets[run_id, fields["call_id"]] = fields["target"]
    finished = """
        SELECT sequence, run_id, body, large_fields FROM events
        WHERE session_id = ? AND sequence > ? AND kind = 'call_finished' ORDER BY sequence DESC"""
    for sequence, run_id, body, large in connection.execute(finished, (session_id, since)):
        try:
            fields = _join_large_fields(blobs, body, large, f"Event {sequence}", [])
            call_id = fields["call_id"]
            target = targets.get((run_id, call_id))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if target is not None and fields.get("error") is None:
            yield CallResult(run_id, call_id, target, fields.get("value"))


def load_open_calls(connection: Connection, run_id: str, until: int) -> dict[int, str]:
    """Return the targets of the calls in a run's ledger that are open after event `until`."""
    query = """
        SELECT kind, json_extract(body, '$.call_id'), json_extract(body, '$.target'),
            coalesce(json_extract(body, '$.in_ledger'), 1)
        FROM runs JOIN events ON events.session_id = runs.session_id AND run_id = runs.id
            AND sequence BETWEEN first_sequence AND ?2
            AND kind IN ('call_started', 'call_finished')
        WHERE runs.id = ?1 ORDER BY sequence"""
    calls: dict[int, str] = {}
    for kind, call_id, target, in_ledger in connection.execute(query, (run_id, until)):
        if kind == "call_finished":
            calls.pop(call_id, None)
        elif in_ledger:
            calls[call_id] = str(target)
    return calls


def load_call_texts(connection: Connection, session_id: str, run_id: str, target: str) -> list[str]:
    """Return the short texts that a run's successful calls of `target` have returned."""
    query = """
        SELECT kind, json_extract(body, '$.call_id'), json_extract(body, '$.target'),
            json_extract(body, '$.value')
        FROM events WHERE session_id = ?1 AND run_id = ?2 AND length(body) < ?3
            AND sequence >= (SELECT first_sequence FROM runs WHERE id = ?2)
            AND kind IN ('call_started', 'call_finished')
        ORDER BY sequence"""
    calls: set[int] = set()
    values = []
    for kind, call_id, called, value in connection.execute(
        query, (session_id, run_id, MAX_TEXT_EVENT_CHARS)
    ):
        if kind == "call_started" and called == target:
            calls.add(call_id)
        elif kind == "call_finished" and call_id in calls and isinstance(value, str):
            values.append(value)
    return values


def load_python_version(connection: Connection, image: str) -> str:
    """Return the Python version that sandboxes with that image had; "" if none was of late."""
    query = """
        SELECT version FROM (
            SELECT json_extract(body, '$.image') AS image, json_extract(body, '$.python') AS version
            FROM events WHERE kind = 'sandbox_started' ORDER BY recorded_at DESC LIMIT ?)
        WHERE image = ? LIMIT 1"""
    for (version,) in connection.execute(query, (MAX_SANDBOX_STARTS, image)):
        return str(version or "")
    return ""


def load_skill_uses(
    connection: Connection, principal: str, shared: Collection[str]
) -> list[SkillUseRow]:
    """Return the runs of a principal that used skills, and those of all that used `shared` ones.

    Reruns are left out, and so are imported sessions, which may say anything.
    """
    origins = dict(connection.execute(SELECT_SESSION_ORIGINS).fetchall())
    arguments = {
        "principal": principal,
        "shared": json.dumps(list(shared)),
        "most": MAX_USES_PER_PRINCIPAL,
    }
    return [
        SkillUseRow(
            skill,
            version,
            bool(succeeded),
            recorded_at,
            run_id,
            _find_first_session(session_id, origins),
            owner,
        )
        for skill, version, succeeded, recorded_at, run_id, session_id, owner in connection.execute(
            SELECT_SKILL_USES, arguments
        )
    ]


def _find_first_session(session_id: str, origins: Mapping[str, str]) -> str:
    """Return the session that a session was forked from or is an agent of, over all steps."""
    seen = set()
    while session_id in origins and session_id not in seen:
        seen.add(session_id)
        session_id = origins[session_id]
    return session_id
