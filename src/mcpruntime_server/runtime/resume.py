"""Runs that a server has left unfinished: which are resumed, and with which specification."""

from __future__ import annotations

from ..journal.events import RunQueued
from ..journal.recording import Recording
from ..journal.rows import AGENT_PURPOSE
from .run_spec import RunSpec

FORK_PURPOSE = "fork"
RERUN_PURPOSE = "rerun"  # of sessions in which runs are only executed again
RERUN_REASON = "It only executed another run again."
NOT_RESUMABLE_REASONS = {  # by the purpose of the session
    RERUN_PURPOSE: RERUN_REASON,
    AGENT_PURPOSE: "Its agent ended with its server.",
}
MAX_RESUMES = 3  # after the death of a server: the run may be what kills it


def why_not_resumable(recording: Recording, purpose: str) -> str:
    """Return why a run in a session with that purpose is not resumed; "" if it is."""
    if purpose in NOT_RESUMABLE_REASONS:
        return NOT_RESUMABLE_REASONS[purpose]
    if recording.resume_count >= MAX_RESUMES and not recording.pending_questions:
        count = recording.resume_count
        return f"It was resumed {count} times, and its server died each time."
    if recording.start.replayed_run and not recording.start.dry_run:
        return RERUN_REASON
    return ""


def resumed_spec(recording: Recording) -> RunSpec:
    """Return the specification that resumes a run where its recording ends."""
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
    """Return the specification of a run that another server has queued and not started."""
    return RunSpec(
        queued.code,
        queued.timeout_s,
        queued.idempotency_key,
        run_id=queued.run_id,
        is_dry_run=queued.dry_run,
        starts_detached=True,
        context=None if queued.context is None else tuple(queued.context),
    )
