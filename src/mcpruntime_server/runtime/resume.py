"""Runs that a server has left, by its death or on purpose: which of them go on, and as which requests."""

from __future__ import annotations

from ..journal.events import RunQueued
from ..journal.replay import Recording
from ..journal.rows import AGENT
from .request import Request

RERUN = "rerun"  # the purpose of sessions in which runs are only executed again
ONLY_AGAIN = "It only executed another run again."
NOT_ALONE = {RERUN: ONLY_AGAIN, AGENT: "Its agent ended with its server."}  # by purposes of sessions
MAX_RESUMED = 3  # times that a run goes on after the death of its server: it may be what kills it


def why_not_resumable(recording: Recording, purpose: str) -> str:
    """Return why a run of a session with that purpose does not go on; "" if it does."""
    if purpose in NOT_ALONE:
        return NOT_ALONE[purpose]
    if recording.resumed >= MAX_RESUMED and not recording.open_questions:
        return f"It has gone on {recording.resumed} times, and its server has died each time."
    if recording.start.replays and not recording.start.dry_run:
        return ONLY_AGAIN
    return "" if recording.start.seed else "It was recorded by an older version, without what it drew of chance."


def resumed(recording: Recording) -> Request:
    """Return the request by which a run goes on where its recording ends."""
    start = recording.start
    return Request(
        start.code,
        start.timeout_s,
        start.idempotency_key,
        recording,
        resumes=True,
        dry_run=start.dry_run,
        approved=tuple(start.approved),
        detached=True,
    )


def begun(queued: RunQueued) -> Request:
    """Return the request of a run that another server was told of, and has not begun."""
    key, context = queued.idempotency_key, None if queued.context is None else tuple(queued.context)
    return Request(
        queued.code, queued.timeout_s, key, id=queued.run, dry_run=queued.dry_run, detached=True, context=context
    )
