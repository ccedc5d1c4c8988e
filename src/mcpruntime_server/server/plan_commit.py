"""Commits the plan of a dry run: executes its code again, making the calls that are approved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..config import PolicySettings
from ..errors import Conflict
from ..journal.recording import load_recording
from ..runtime.plan import decide_approvals
from ..runtime.run import Run
from ..runtime.run_report import RunReport
from ..runtime.runtime import Runtime
from ..runtime.session import Session, commit_key
from .run_lookup import RunLookup


def check_has_plan(report: RunReport) -> None:
    """Raise `Conflict` unless a run is a dry run whose plan can be committed."""
    has_plan = any(question.kind == "plan" for question in report.pending_questions)
    if report.status != "waiting" or not has_plan:
        raise Conflict(f"Run {report.run_id} waits for no answer: {report.status}.")


async def commit_plan(
    runtime: Runtime,
    lookup: RunLookup,
    policy: PolicySettings,
    plan: str,
    answers: Mapping[str, Any],
    *,
    may_approve: bool,
) -> tuple[Session, Run]:
    """Start the run that commits the dry run `plan`; raises `InvalidRequest` and `Conflict`.

    With `may_approve` the answers count as a person's.
    """
    row, owner = await lookup.load_run_rows(plan)
    journal = runtime.journal
    recording = await load_recording(journal, row)
    approvals = decide_approvals(recording, answers, for_person=may_approve)
    if row.finished_at is not None and time.time() - row.finished_at > policy.expires_s:
        raise Conflict(f"The plan of run {plan} has expired.", remedy="Plan it again.")
    before = await journal.find_run_by_key(owner.id, commit_key(plan))
    if before is not None:
        raise Conflict(
            f"The plan of run {plan} was committed already.",
            remedy=f"Attach to run {before.id}, which did so.",
        )
    session = await runtime.find_session(owner.id, lookup.principal)
    if session.queue.find_by_key(commit_key(plan)) is not None:
        raise Conflict(f"The plan of run {plan} is being committed already.")
    return session, session.commit_plan(recording, approvals, recording.start.timeout_s)
