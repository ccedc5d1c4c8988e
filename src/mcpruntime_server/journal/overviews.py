"""Read what people look at: lists of sessions and of runs with their figures, and searches.

As in `queries`, each function takes a connection, blocks until it has the result, and lets
`sqlite3.Error` pass.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import Any, Literal

from ..errors import JournalFailed, NotFound
from . import queries
from .blob_store import BlobStore
from .events import encode_json
from .rows import FRESH_FLAG, UNDONE_FLAG, SessionRow

SessionState = Literal["waiting", "running", "failed", "idle"]

MAX_CODE_CHARS = 400  # of the beginning of a run's code
MAX_SEARCH_S = 2.0
EXCERPT_CHARS = 70  # before and after what was searched for
UNREADABLE = (JournalFailed, NotFound, OSError)  # raised for blobs that are damaged or lost

FAILED_STATUSES = "('error', 'timeout', 'crashed')"
# A session is waiting while a question is open or its last run is a plan that nobody has committed.
SELECT_SESSION_OVERVIEWS = f"""
    WITH found AS ({queries.SELECT_SESSIONS}
            AND principal = ?1 AND purpose IN ('', 'fork', 'import')),
        asking AS (SELECT DISTINCT questions.session_id FROM questions
            JOIN runs ON runs.id = run_id AND runs.status = 'running'),
        newest AS (SELECT session_id, id, status, max(started_at),
                sum(status IN {FAILED_STATUSES}) AS failed_count FROM runs
            WHERE session_id IN (SELECT id FROM found) GROUP BY session_id),
        rated AS (
            SELECT found.*, coalesce(newest.failed_count, 0) AS failed_count,
                newest.id AS run_id, CASE
                WHEN found.id IN (SELECT session_id FROM asking) OR newest.status = 'waiting'
                    THEN 'waiting'
                WHEN newest.status IN ('running', 'queued') THEN 'running'
                WHEN newest.status IN {FAILED_STATUSES} THEN 'failed'
                ELSE 'idle' END AS state
            FROM found LEFT JOIN newest ON newest.session_id = found.id)
    SELECT rated.*, (SELECT {{code}} FROM events
        WHERE events.session_id = rated.id AND kind IN ('run_started', 'run_queued')
            AND events.run_id = rated.run_id ORDER BY sequence DESC LIMIT 1)
    FROM rated
    WHERE (?2 = '' OR state = ?2)
    ORDER BY CASE state WHEN 'waiting' THEN 0 WHEN 'failed' THEN 1 WHEN 'running' THEN 2 ELSE 3 END,
        last_used_at DESC, id DESC
    LIMIT ?3 OFFSET ?4"""  # noqa: S608 - made of constants
CODE_START = f"""CASE WHEN json_valid(body)
    THEN substr(json_extract(body, '$.code'), 1, {MAX_CODE_CHARS}) END"""
SELECT_STEP_FIGURES = """
    SELECT id, parent_id, step, status, flags, (finished_at - started_at) * 1000 FROM runs
    WHERE session_id = ?"""
SELECT_RUN_COSTS = """
    SELECT run_id, sum(json_extract(body, '$.usd')) FROM events
    WHERE session_id = ? AND kind = 'model_usage_recorded' AND json_valid(body) GROUP BY run_id"""
SELECT_RUN_CODE = f"""
    SELECT {CODE_START} FROM runs JOIN events
        ON events.session_id = runs.session_id AND sequence = first_sequence
    WHERE runs.id = ?"""  # noqa: S608 - made of constants
SELECT_EXECUTED_CODE = f"""
    {queries.WITH_LINEAGE}
    SELECT runs.id, step, status, flags, first.body, first.large_fields, last.body
    FROM lineage JOIN runs ON runs.id = lineage.id
        JOIN events AS first
            ON first.session_id = runs.session_id AND first.sequence = first_sequence
        LEFT JOIN events AS last
            ON last.session_id = runs.session_id AND last.sequence = last_sequence
    ORDER BY distance LIMIT ?2"""  # noqa: S608 - made of constants
SELECT_SEARCHED = """
    SELECT run_id, kind, body, large_fields FROM events
    WHERE session_id = ?1 AND run_id IS NOT NULL
        AND kind IN ('run_started', 'output_written', 'call_started', 'files_changed')
        AND (instr(lower(body), ?2) > 0 OR instr(lower(body), ?3) > 0 OR large_fields IS NOT NULL)
    ORDER BY sequence DESC"""
SEARCHED_FIELDS = {  # by the kind of an event
    "run_started": ("code",),
    "output_written": ("text",),
    "call_started": ("target", "args"),
    "files_changed": ("changed", "removed"),
}


@dataclass(frozen=True, slots=True)
class SessionOverview:
    """A session, how many of its runs have failed, and the state and code of its newest run."""

    row: SessionRow
    failed_count: int
    run_id: str | None
    state: SessionState
    code: str


@dataclass(frozen=True, slots=True)
class StepFigures:
    """The steps of a session in columns, which are short for thousands of steps.

    `parents` are places in the same lists, -1 if there is none. `usd` has what the models of those
    steps cost that asked some, by place.
    """

    run_ids: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    are_undone: list[bool] = field(default_factory=list)
    durations_ms: list[float | None] = field(default_factory=list)  # None: it is not finished
    usd: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExecutedCode:
    """The code of a run of a lineage; if it failed, `failed_line` is where, 0 if that is not known.

    One that `is_fresh` started without the variables of the run before.
    """

    run_id: str
    step: int
    code: str
    succeeded: bool
    failed_line: int
    is_fresh: bool


@dataclass(frozen=True, slots=True)
class SearchMatch:
    """An event of a run that contains what was searched for, with the text around it."""

    run_id: str
    kind: str
    before: str
    found: str
    after: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Sessions with matches, the last used first; `is_complete` unless time ran out."""

    sessions: list[tuple[SessionRow, list[SearchMatch]]]
    is_complete: bool


def page_session_overviews(
    connection: Connection, principal: str, state: str, limit: int, offset: int
) -> list[SessionOverview]:
    """Return sessions of a principal: waiting ones first, then failed and running ones.

    `state` selects the sessions in one state; "" selects all.
    """
    query = SELECT_SESSION_OVERVIEWS.format(code=CODE_START)
    rows = connection.execute(query, (principal, state, limit, offset))
    return [
        SessionOverview(SessionRow(*columns), failed_count, run_id, found, code or "")
        for *columns, failed_count, run_id, found, code in rows
    ]


def count_session_states(connection: Connection, principal: str) -> dict[str, int]:
    """Return how many sessions of a principal are in each state."""
    query = SELECT_SESSION_OVERVIEWS.format(code="NULL")
    counts: dict[str, int] = {}
    rows = connection.execute(
        f"SELECT state, count(*) FROM ({query}) GROUP BY state",  # noqa: S608 - made of constants
        (principal, "", -1, 0),
    )
    counts.update(rows.fetchall())
    return counts


def load_step_figures(connection: Connection, session_id: str) -> StepFigures:
    """Return every run of a session and its ancestors, abandoned branches included.

    Parents come before children, and what is added later comes last.
    """
    visited = queries.list_visited_runs(connection, session_id)
    runs: dict[str, tuple[str | None, int, str, str, float | None]] = {}
    costs: dict[str, float] = {}
    for each in dict.fromkeys(owner for _, owner in visited):
        runs |= {run_id: rest for run_id, *rest in connection.execute(SELECT_STEP_FIGURES, (each,))}
        costs.update(connection.execute(SELECT_RUN_COSTS, (each,)).fetchall())
    figures = StepFigures()
    places: dict[str | None, int] = {}
    for place, (run_id, _) in enumerate(visited):
        parent, step, status, flags, duration_ms = runs[run_id]
        places[run_id] = place
        figures.run_ids.append(run_id)
        figures.parents.append(places.get(parent, -1))
        figures.steps.append(step)
        figures.statuses.append(status)
        figures.are_undone.append(UNDONE_FLAG in flags.split())
        figures.durations_ms.append(duration_ms)
        if usd := costs.get(run_id):
            figures.usd[place] = usd
    return figures


def find_newest_run(connection: Connection, session_id: str) -> str | None:
    """Return the run of a session that started last, None if it has none of its own."""
    query = """SELECT id FROM runs WHERE session_id = ? AND step > 0
        ORDER BY started_at DESC, rowid DESC LIMIT 1"""
    row = connection.execute(query, (session_id,)).fetchone()
    return None if row is None else row[0]


def load_code_starts(connection: Connection, run_ids: Sequence[str]) -> list[str]:
    """Return the beginning of the code of each of these runs, "" where it is not known."""
    found = (connection.execute(SELECT_RUN_CODE, (each,)).fetchone() for each in run_ids)
    return [row[0] or "" if row else "" for row in found]


def load_executed_code(
    connection: Connection, blobs: BlobStore, run_id: str, limit: int
) -> list[ExecutedCode]:
    """Return the code of a run and of its nearest ancestors, the newest first.

    It ends before a run whose code cannot be read.
    """
    found: list[ExecutedCode] = []
    rows = connection.execute(SELECT_EXECUTED_CODE, (run_id, limit))
    for each, step, status, flags, start, large_fields, end in rows:
        try:
            code = json.loads(start).get("code", "")
            if digest := json.loads(large_fields or "{}").get("code"):
                code = json.loads(blobs.get(digest))
            error = json.loads(end or "{}").get("error") or {}
        except (ValueError, AttributeError, RecursionError, *UNREADABLE):
            break
        failed_line = error.get("line") or 0
        is_fresh = FRESH_FLAG in flags.split()
        found.append(ExecutedCode(each, step, code, status == "ok", failed_line, is_fresh))
    return found


def search_sessions(
    connection: Connection,
    blobs: BlobStore,
    principal: str,
    text: str,
    max_sessions: int,
    max_matches: int,
    purposes: Sequence[str] = ("", "fork", "import"),
) -> SearchResult:
    """Return the sessions whose code, output, calls or file names contain a text.

    Upper and lower case are equal for letters of ASCII. The newest sessions are searched first, for
    `MAX_SEARCH_S` at most.
    """
    ends_at = time.monotonic() + MAX_SEARCH_S
    found: list[tuple[SessionRow, list[SearchMatch]]] = []
    for session in queries.list_sessions(connection, principal):
        if session.purpose not in purposes:
            continue
        if time.monotonic() >= ends_at or len(found) >= max_sessions:
            return SearchResult(found, is_complete=False)
        matches = []
        for match in _iter_matches(connection, blobs, session.id, text, ends_at):
            matches.append(match)
            if len(matches) >= max_matches:
                break
        if matches or text.lower() in (session.name or "").lower():
            found.append((session, matches))
    return SearchResult(found, is_complete=True)


def _iter_matches(
    connection: Connection, blobs: BlobStore, session_id: str, text: str, ends_at: float
) -> Iterator[SearchMatch]:
    """Yield the events of a session that contain a text, the newest first."""
    # In a body, text is JSON; the arguments of a call are JSON text within it.
    once = encode_json(text.lower())[1:-1]
    twice = encode_json(once)[1:-1]
    rows = connection.execute(SELECT_SEARCHED, (session_id, once, twice))
    for run_id, kind, body, large_fields in rows:
        if time.monotonic() >= ends_at:
            return
        with suppress(ValueError, TypeError, AttributeError, RecursionError, *UNREADABLE):
            fields = json.loads(body)
            for name, digest in json.loads(large_fields or "{}").items():
                if name in SEARCHED_FIELDS[kind]:
                    fields[name] = json.loads(blobs.get(digest))
            for name in SEARCHED_FIELDS[kind]:
                for part in _iter_texts(fields.get(name)):
                    place = part.lower().find(text.lower())
                    if place >= 0:
                        end = place + len(text)
                        before = part[max(place - EXCERPT_CHARS, 0) : place]
                        after = part[end : end + EXCERPT_CHARS]
                        yield SearchMatch(run_id, kind, before, part[place:end], after)
                        break
                else:
                    continue
                break


def _iter_texts(field: Any) -> Iterator[str]:
    """Yield the texts in a field that is searched: itself, or the paths that it has."""
    if isinstance(field, str):
        yield field
    elif isinstance(field, dict | list):
        yield from map(str, field)


def find_run_owners(connection: Connection, run_ids: Sequence[str]) -> dict[str, str]:
    """Return the session of each of these runs, by run."""
    marks = ", ".join("?" * len(run_ids))
    query = f"SELECT id, session_id FROM runs WHERE id IN ({marks})"  # noqa: S608 - only marks
    return dict(connection.execute(query, tuple(run_ids)).fetchall())
