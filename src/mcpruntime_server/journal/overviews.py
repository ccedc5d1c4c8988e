"""Read what people look at: sessions and runs with their figures, and how much output there is.

As in `queries`, each function takes a connection, blocks until it has the result, and lets
`sqlite3.Error` pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import Literal

from ..errors import JournalFailed, NotFound
from . import queries
from .blob_store import BlobStore
from .encoded_text import TextExtent, measure_encoded_text, measure_text
from .events import KIND_BY_CLASS, OutputWritten, decode_json
from .rows import FRESH_FLAG, UNDONE_FLAG, RunRow, SessionRow

SessionState = Literal["waiting", "running", "failed", "idle"]

MAX_CODE_CHARS = 400  # of the beginning of a run's code
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
RUN_FIGURES = """runs.rowid, runs.id, parent_id, step,
    CASE WHEN status = 'running'
        AND runs.id IN (SELECT run_id FROM questions WHERE answer_json IS NULL)
        THEN 'waiting' ELSE status END, flags,
    (finished_at - started_at) * 1000, runs.session_id"""
SELECT_OWN_FIGURES = f"""
    SELECT {RUN_FIGURES} FROM runs WHERE session_id = ? AND step > 0"""  # noqa: S608 - constants
SELECT_LINEAGE_FIGURES = f"""
    WITH RECURSIVE visited (id) AS (
        SELECT value FROM json_each(?)
        UNION SELECT runs.parent_id FROM visited JOIN runs ON runs.id = visited.id)
    SELECT {RUN_FIGURES}
    FROM visited JOIN runs ON runs.id = visited.id"""  # noqa: S608 - made of constants
# All in one pass: a session may have ten thousands of events.
SELECT_COSTS_AND_TIPS = """
    SELECT run_id, json_extract(body, '$.usd'),
        json_extract(body, '$.tip'), json_extract(body, '$.previous_tip')
    FROM events
    WHERE session_id = ? AND kind IN ('model_usage_recorded', 'tip_moved') AND json_valid(body)"""
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
class OutputExtent:
    """How much text an event with output has."""

    sequence: int
    text: TextExtent
    dropped_bytes: int


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
    runs = {row[1]: row for row in connection.execute(SELECT_OWN_FIGURES, (session_id,))}
    costs: dict[str, float] = {}
    visited = set(_add_costs(connection, session_id, costs))
    tips = "SELECT tip, origin FROM sessions WHERE id = ?"
    visited.update(*connection.execute(tips, (session_id,)))
    visited.update(parent for _, _, parent, *_ in runs.values())
    if elsewhere := visited - runs.keys() - {None}:  # in the session that it was forked from, say
        ancestors = connection.execute(SELECT_LINEAGE_FIGURES, (json.dumps(list(elsewhere)),))
        runs |= {row[1]: row for row in ancestors}
    for owner in {owner for *_, owner in runs.values()} - {session_id}:
        _add_costs(connection, owner, costs)
    figures = StepFigures()
    places: dict[str | None, int] = {}
    for place, row in enumerate(sorted(runs.values())):
        _, run_id, parent, step, status, flags, duration_ms, _ = row
        places[run_id] = place
        figures.run_ids.append(run_id)
        figures.parents.append(places.get(parent, -1))
        figures.steps.append(step)
        figures.statuses.append(status)
        figures.are_undone.append(bool(flags) and UNDONE_FLAG in flags.split())
        figures.durations_ms.append(duration_ms)
        if usd := costs.get(run_id):
            figures.usd[place] = usd
    return figures


def _add_costs(
    connection: Connection, session_id: str, costs: dict[str, float]
) -> list[str | None]:
    """Add what the models of each run of a session cost; return the runs that were its tip."""
    tips: list[str | None] = []
    for run_id, usd, *moved in connection.execute(SELECT_COSTS_AND_TIPS, (session_id,)):
        tips += moved
        if isinstance(usd, int | float):
            costs[run_id] = costs.get(run_id, 0) + usd
    return tips


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
    connection: Connection, blobs: BlobStore, run_id: str, limit: int, max_chars: int
) -> list[ExecutedCode]:
    """Return the code of a run and of its nearest ancestors, the newest first.

    It ends before a run whose code cannot be read, or with which it would be longer than
    `max_chars`.
    """
    found: list[ExecutedCode] = []
    rows = connection.execute(SELECT_EXECUTED_CODE, (run_id, limit))
    for each, step, status, flags, start, large_fields, end in rows:
        try:
            code = json.loads(start).get("code", "")
            if digest := json.loads(large_fields or "{}").get("code"):
                code = json.loads(blobs.get(digest))
            error = json.loads(end or "{}").get("error") or {}
            max_chars -= len(code)
        except (ValueError, TypeError, AttributeError, RecursionError, *UNREADABLE):
            break
        if max_chars < 0:
            break
        failed_line = error.get("line") or 0
        is_fresh = FRESH_FLAG in flags.split()
        found.append(ExecutedCode(each, step, code, status == "ok", failed_line, is_fresh))
    return found


def iter_output_extents(
    connection: Connection, blobs: BlobStore, run: RunRow, after: int
) -> Iterator[OutputExtent]:
    """Yield how much each event of a run with output has, without decoding long ones.

    They have numbers above `after`. Damaged events are left out.
    """
    values = (run.session_id, after, run.id, -1, KIND_BY_CLASS[OutputWritten])
    rows = connection.execute(queries.SELECT_SESSION_EVENTS, values)
    for _, sequence, _, _, _, body, large_fields in rows:
        with suppress(ValueError, TypeError, AttributeError, RecursionError, *UNREADABLE):
            fields = decode_json(body)
            if digest := decode_json(large_fields or "{}").get("text"):
                extent = measure_encoded_text(blobs.get(digest))
            else:
                extent = measure_text(fields["text"])
            yield OutputExtent(sequence, extent, int(fields.get("dropped_bytes", 0)))


def find_run_owners(connection: Connection, run_ids: Sequence[str]) -> dict[str, str]:
    """Return the session of each of these runs, by run."""
    marks = ", ".join("?" * len(run_ids))
    query = f"SELECT id, session_id FROM runs WHERE id IN ({marks})"  # noqa: S608 - only marks
    return dict(connection.execute(query, tuple(run_ids)).fetchall())
