"""What is asked of the tables: every statement that reads rows, bar the collector's.

Each function takes a connection, blocks until it has the answer, and raises `sqlite3.Error` as it comes. A session that
is not all there, because it is being imported or removed, has the purpose `partial` and is seen by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from sqlite3 import Connection
from typing import Any

from ..errors import JournalFailed, NotFound
from .blob_store import BlobStore
from .events import FileEntry, FilesChanged, event_from_fields
from .rows import QuestionRow, RawEventRow, RunRow, SessionRow, StoredEvent, SubmittedAnswer

SELECT_SESSIONS = """
    SELECT id, name, principal, created, used, owner, tip, (SELECT count(*) FROM runs WHERE session = sessions.id),
        origin, purpose
    FROM sessions WHERE purpose <> 'partial'"""
SELECT_RUNS = """
    SELECT runs.id, runs.session, runs.parent, step, name, status, started, finished, request, flags
    FROM runs"""
SELECT_EVENTS = """
    SELECT events.session, n, run, at, kind, body, large
    FROM events"""
WITH_LINEAGE = """
    WITH RECURSIVE line (id, parent, back) AS (
        SELECT id, parent, 0 FROM runs WHERE id = ?1
        UNION ALL
        SELECT runs.id, runs.parent, back + 1 FROM line JOIN runs ON runs.id = line.parent
    )"""
WITH_RUN_BOUNDS = """
    WITH bounds (first, last) AS (
        SELECT first, CASE WHEN last IS NOT NULL THEN max(last, coalesce(files, 0)) END FROM runs WHERE id = ?3
    )"""
SELECT_SESSION_EVENTS = f"""{WITH_RUN_BOUNDS} {SELECT_EVENTS}
    WHERE session = ?1 AND n > max(?2, coalesce((SELECT first - 1 FROM bounds), 0))
    AND n <= coalesce((SELECT last FROM bounds), 9223372036854775807)
    AND (?3 IS NULL OR run = ?3) AND (?5 IS NULL OR kind = ?5)
    ORDER BY n LIMIT ?4"""  # noqa: S608 - made of constants
SELECT_LINEAGE_FILES = f"""{WITH_LINEAGE} {SELECT_EVENTS}
    JOIN runs ON events.session = runs.session AND events.run = runs.id AND kind = 'files_changed'
    JOIN line ON runs.id = line.id
    WHERE ' ' || runs.flags || ' ' NOT LIKE '% undone %'
    ORDER BY back DESC, n"""

SELECT_VISITED_RUNS = """
    WITH RECURSIVE passed (id) AS (
        SELECT id FROM runs WHERE session = ?1 AND step > 0
        UNION SELECT origin FROM sessions WHERE id = ?1
        UNION SELECT tip FROM sessions WHERE id = ?1
        UNION SELECT json_extract(body, '$.tip') FROM events WHERE session = ?1 AND kind = 'tip_moved'
        UNION SELECT json_extract(body, '$.left') FROM events WHERE session = ?1 AND kind = 'tip_moved'
        UNION SELECT runs.parent FROM passed JOIN runs ON runs.id = passed.id
    )
    SELECT runs.id, runs.session FROM passed JOIN runs ON runs.id = passed.id ORDER BY runs.rowid"""

SELECT_SKILL_USES = """
    SELECT body, at, run FROM events JOIN sessions ON sessions.id = events.session
    WHERE kind = 'call_started' AND instr(body, '"target":"skills.used"') > 0 AND purpose NOT IN ('rerun', 'partial')"""


def escape_surrogates(text: str) -> str:
    """Return a stranger's text as SQLite takes it: with lone surrogates escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def load_skill_uses(connection: Connection) -> list[tuple[str, float]]:
    """Return what code said of skills that it used, as canonical JSON, and when; what was only a rerun is left out.

    A run counts once for each thing that it says, however often it says so.
    """
    found: dict[tuple[str, str], float] = {}
    for body, at, run in connection.execute(SELECT_SKILL_USES):
        with suppress(ValueError, KeyError, TypeError):
            found.setdefault((run, str(json.loads(body)["args"])), float(at))
    return [(args, at) for (_, args), at in found.items()]


def last_sequence(connection: Connection, session_id: str) -> int:
    """Return the number of a session's last event, 0 if it has none."""
    query = "SELECT coalesce(max(n), 0) FROM events WHERE session = ?"
    last: int = connection.execute(query, (session_id,)).fetchone()[0]
    return last


def has_run(connection: Connection, run_id: str) -> bool:
    """Say whether there is a run of that id."""
    return connection.execute("SELECT 1 FROM runs WHERE id = ?", (run_id,)).fetchone() is not None


def load_session(connection: Connection, session_id: str) -> SessionRow:
    """Return a session by its id; raises `NotFound`."""
    found = connection.execute(f"{SELECT_SESSIONS} AND id = ?", (session_id,)).fetchone()
    if found is None:
        raise NotFound(f"There is no session {session_id!r}.")
    return SessionRow(*found)


def find_session(connection: Connection, name_or_id: str, principal: str) -> SessionRow:
    """Return the principal's session of that id or name; raises `NotFound`."""
    query = f"{SELECT_SESSIONS} AND principal = ?2 AND (id = ?1 OR name = ?1) ORDER BY id = ?1 DESC"
    found = connection.execute(query, (name_or_id, principal)).fetchone()
    if found is None:
        raise NotFound(f"There is no session {name_or_id!r}.")
    return SessionRow(*found)


def list_sessions(connection: Connection, principal: str | None) -> list[SessionRow]:
    """Return the sessions of one principal, or of all, the last used first."""
    query = f"{SELECT_SESSIONS} AND (?1 IS NULL OR principal = ?1) ORDER BY used DESC"
    return [SessionRow(*row) for row in connection.execute(query, (principal,))]


def load_run(connection: Connection, run_id: str) -> RunRow:
    """Return one run; raises `NotFound`."""
    for row in _query_runs(connection, f"{SELECT_RUNS} WHERE id = ?", run_id):
        return row
    raise NotFound(f"There is no run {run_id!r}.")


def list_runs(connection: Connection, session_id: str) -> list[RunRow]:
    """Return the runs that a session has made, the first first."""
    return list(
        _query_runs(
            connection, f"{SELECT_RUNS} WHERE session = ? ORDER BY started, rowid", session_id
        )
    )


def find_run_by_key(connection: Connection, session_id: str, key: str) -> RunRow | None:
    """Return the session's newest run that was started under the idempotency key `key`."""
    query = f"{SELECT_RUNS} WHERE session = ? AND request = ? ORDER BY first DESC LIMIT 1"
    return next(_query_runs(connection, query, session_id, escape_surrogates(key)), None)


def list_unfinished_runs(
    connection: Connection, principal: str | None
) -> list[tuple[SessionRow, RunRow]]:
    """Return the runs that have not finished, or not begun, with their sessions, the newest first."""
    query = f"{SELECT_RUNS} WHERE status IN ('running', 'queued') ORDER BY started DESC, rowid DESC"
    mine = {row.id: row for row in list_sessions(connection, principal)}
    return [
        (mine[run.session_id], run)
        for run in _query_runs(connection, query)
        if run.session_id in mine
    ]


def list_queued_runs(connection: Connection, session_id: str) -> list[RunRow]:
    """Return the runs of a session that have been told of and have not begun, the first first."""
    return list(
        _query_runs(
            connection,
            f"{SELECT_RUNS} WHERE session = ? AND status = 'queued' ORDER BY first",
            session_id,
        )
    )


def list_pending_questions(connection: Connection, principal: str | None) -> list[QuestionRow]:
    """Return what runs wait for, the oldest first."""
    query = f"""
        SELECT questions.run, question, questions.session, n, expires, reply IS NOT NULL
        FROM questions JOIN runs ON runs.id = questions.run AND runs.status = 'running'
        WHERE questions.session IN (SELECT id FROM ({SELECT_SESSIONS} AND (?1 IS NULL OR principal = ?1)))
        ORDER BY questions.expires, questions.run, n"""  # noqa: S608 - made of constants
    return [QuestionRow(*row) for row in connection.execute(query, (principal,))]


def list_submitted_answers(connection: Connection) -> list[SubmittedAnswer]:
    """Return the answers that other processes have left; an `Answered` removes them."""
    found = connection.execute(
        "SELECT session, run, question, reply FROM questions WHERE reply IS NOT NULL"
    )
    return [SubmittedAnswer(*row) for row in found]


def load_lineage(connection: Connection, run_id: str) -> list[RunRow]:
    """Return the runs from the first of its line to `run`, whichever sessions they lie in; raises `NotFound`."""
    found = list(
        _query_runs(
            connection,
            f"{WITH_LINEAGE} {SELECT_RUNS} JOIN line ON runs.id = line.id ORDER BY back DESC",
            run_id,
        )
    )
    if not found:
        raise NotFound(f"There is no run {run_id!r}.")
    return found


def load_files_at(
    connection: Connection, blobs: BlobStore, run_id: str, damage: list[str] | None
) -> tuple[dict[str, FileEntry], list[str]]:
    """Return the workspace at the end of `run`, and the runs of its line whose files were announced and never came.

    With `damage`, what cannot be read is told there, and counts as what never came.
    """
    files: dict[str, FileEntry] = {}
    arrived = set()
    passed = load_lineage(connection, run_id)
    for stored in load_events(connection, blobs, SELECT_LINEAGE_FILES, (run_id,), damage):
        if isinstance(stored.event, FilesChanged):
            for path in stored.event.removed:
                files.pop(path, None)
            files.update(stored.event.changed)
        arrived.add(stored.run_id)
    due = [row.id for row in passed if "files" in row.flags and "undone" not in row.flags]
    return files, [each for each in due if each not in arrived]


def list_visited_runs(connection: Connection, session_id: str) -> list[tuple[str, str]]:
    """Return the runs that a session's lines pass through, those that it has left included, with their sessions.

    No run comes before its parent.
    """
    return connection.execute(SELECT_VISITED_RUNS, (session_id,)).fetchall()


def iter_raw_events(connection: Connection, session_id: str) -> Iterator[RawEventRow]:
    """Return the events of a session as they are kept, in order."""
    query = "SELECT n, run, at, kind, version, body, large FROM events WHERE session = ? ORDER BY n"
    return connection.execute(query, (session_id,))


def iter_call_results(
    connection: Connection, blobs: BlobStore, session_id: str, last: int
) -> Iterator[tuple[str, int, str, Any]]:
    """Yield run, number, target and value of the calls that ended well among a session's `last` events, newest first.

    What cannot be read is passed over.
    """
    since = last_sequence(connection, session_id) - last
    started = "SELECT run, body FROM events WHERE session = ? AND n > ? AND kind = 'call_started'"
    targets: dict[tuple[str, int], str] = {}
    for run, body in connection.execute(started, (session_id, since)):
        with suppress(ValueError, KeyError, TypeError):  # damage, or a name too long to be a tool's
            fields = json.loads(body)
            if isinstance(fields["target"], str):
                targets[run, fields["call"]] = fields["target"]
    finished = """
        SELECT n, run, body, large FROM events WHERE session = ? AND n > ? AND kind = 'call_finished'
        ORDER BY n DESC"""
    for n, run, body, large in connection.execute(finished, (session_id, since)):
        try:
            fields = _join_large_fields(blobs, body, large, f"Event {n}", [])
            call = fields["call"]
            target = targets.get((run, call))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if target is not None and fields.get("error") is None:
            yield run, call, target, fields.get("value")


def has_any_id(connection: Connection, sessions: Iterable[str], runs: Iterable[str]) -> bool:
    """Say whether one of these ids is in use."""
    asked = (
        ("SELECT 1 FROM sessions WHERE id = ?", sessions),
        ("SELECT 1 FROM runs WHERE id = ?", runs),
    )
    return any(
        connection.execute(query, (each,)).fetchone() for query, ids in asked for each in ids
    )


def load_pins(connection: Connection) -> dict[str, str]:
    """Return the runs that are to be kept, each with the reason."""
    return dict(connection.execute("SELECT run, reason FROM pins ORDER BY at").fetchall())


def load_events(
    connection: Connection,
    blobs: BlobStore,
    query: str,
    values: tuple[Any, ...],
    damage: list[str] | None = None,
) -> list[StoredEvent]:
    """Return the events that `query` finds.

    Raises `JournalFailed` if one of them is damaged; with `damage`, that is told there instead, and of such an event
    what can be read is returned, if that makes an event.
    """
    loaded = []
    for session, n, run, at, kind, body, large in connection.execute(query, values):
        where = f"Event {n} of session {session!r} in {blobs.root.parent}"
        try:
            event = event_from_fields(kind, _join_large_fields(blobs, body, large, where, damage))
        except (ValueError, NotFound) as exc:
            message = f"{where} is damaged: {exc}"
            if damage is None:
                raise JournalFailed(message, remedy="The other events can still be read.") from exc
            damage.append(message)
        else:
            loaded.append(StoredEvent(session, n, run, at, event))
    return loaded


def _join_large_fields(
    blobs: BlobStore, body: str, large: str | None, where: str, damage: list[str] | None
) -> Mapping[str, Any]:
    """Return an event's fields; with `damage`, those that cannot be read are told there and left out."""
    fields = json.loads(body)
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object.")
    for name, digest in json.loads(large).items() if large else ():
        try:
            fields[name] = json.loads(blobs.get(digest))
        except (ValueError, NotFound, JournalFailed) as exc:
            if damage is None:
                raise
            damage.append(f"{where} has lost its {name}: {exc}")
    return fields


def _query_runs(connection: Connection, query: str, *values: str) -> Iterator[RunRow]:
    for *columns, flags in connection.execute(query, values):
        columns.append(frozenset(flags.split()))
        yield RunRow(*columns)
