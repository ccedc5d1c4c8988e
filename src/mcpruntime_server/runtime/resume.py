"""Runs that a server has left, by its death or on purpose: which of them go on, and as which requests."""

from __future__ import annotations

from ..journal.events import RunQueued
from ..journal.recording import Recording
from ..journal.rows import AGENT_PURPOSE
from .run_spec import RunSpec

RERUN_PURPOSE = "rerun"  # the purpose of sessions in which runs are only executed again
RERUN_REASON = "It only executed another run again."
NOT_RESUMABLE_REASONS = {
    RERUN_PURPOSE: RERUN_REASON,
    AGENT_PURPOSE: "Its agent ended with its server.",
}  # by purposes of sessions
MAX_RESUMES = 3  # times that a run goes on after the death of its server: it may be what kills it


def why_not_resumable(recording: Recording, purpose: str) -> str:
    """Return why a run of a session with that purpose does not go on; "" if it does."""
    if purpose in NOT_RESUMABLE_REASONS:
        return NOT_RESUMABLE_REASONS[purpose]
    if recording.resume_count >= MAX_RESUMES and not recording.pending_questions:
        return f"It has gone on {recording.resume_count} times, and its server has died each time."
    if recording.start.replayed_run and not recording.start.dry_run:
        return RERUN_REASON
    return ""


def resumed_spec(recording: Recording) -> RunSpec:
    """Return the request by which a run goes on where its recording ends."""
    start = recording.start
    return RunSpec(
        start.code,
        start.timeout_s,
        start.idempotency_key,
        recording,
        is_resumed=True,
        is_dry_run=start.dry_run,
        approvals=tuple(start.approved_calls),
        starts_detached=True,
    )


def queued_spec(queued: RunQueued) -> RunSpec:
    """Return the request of a run that another server was told of, and has not begun."""
    key, context = queued.idempotency_key, None if queued.context is None else tuple(queued.context)
    return RunSpec(
        queued.code,
        queued.timeout_s,
        key,
        run_id=queued.run_id,
        is_dry_run=queued.dry_run,
        starts_detached=True,
        context=context,
    )
