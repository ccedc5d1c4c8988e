"""Build the documents of responses from what the journal and the runtime know; bounded."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from ..journal.rows import UNDONE_FLAG, RunRow, SessionRow
from ..protocol.truncation import truncate_text
from ..runtime.call_ledger import LedgerEntry
from ..runtime.resume import FORK_PURPOSE
from ..runtime.run_report import RunReport, display_value
from .api_models import (
    CallDocument,
    MediaDocument,
    QuestionDocument,
    RunDocument,
    RunSummary,
    SessionSummary,
)
from .event_models import CoveredCall, RunErrorInfo
from .run_events import MAX_COVERED_CALLS, MAX_ERROR_CHARS, bound_data, to_datetime

MAX_OUTPUT_CHARS = 256 * 1024  # of each stream
MAX_VALUE_CHARS = 256 * 1024
MAX_CODE_CHARS = 256 * 1024
MAX_LISTED_CALLS = 500
MAX_LISTED_QUESTIONS = 200
MAX_LISTED_PATHS = 1_000


def build_run_document(
    row: RunRow,
    session: SessionRow,
    report: RunReport,
    code: str,
    agent_reports: Iterable[RunReport] = (),
) -> RunDocument:
    """Return the document of a run; `agent_reports` are those of the runs of its agents."""
    value, value_cut = None, False
    if report.value is not None:
        value, value_cut = display_value(report.value, MAX_VALUE_CHARS, None)
    stdout, stdout_cut = truncate_text(report.stdout, MAX_OUTPUT_CHARS)
    stderr, stderr_cut = truncate_text(report.stderr, MAX_OUTPUT_CHARS)
    shown_code, code_cut = truncate_text(code, MAX_CODE_CHARS)
    return RunDocument(
        run=row.id,
        session=session.id,
        session_name=session.name,
        step=report.step or row.step,
        parent=row.parent_id,
        status=report.status,
        dry_run=report.is_dry_run,
        undone=UNDONE_FLAG in row.flags,
        started_at=to_datetime(row.started_at),
        finished_at=None if row.finished_at is None else to_datetime(row.finished_at),
        code=shown_code,
        code_cut=code_cut,
        value=value,
        value_cut=value_cut,
        stdout=stdout,
        stderr=stderr,
        output_cut=stdout_cut or stderr_cut,
        error=None if report.error is None else RunErrorInfo(**report.error),
        calls=[build_call_document(each) for each in report.calls[-MAX_LISTED_CALLS:]],
        call_count=len(report.calls),
        waiting_for=build_question_documents([report, *agent_reports]),
        changed_files=report.changed_files[:MAX_LISTED_PATHS],
        removed_files=report.removed_files[:MAX_LISTED_PATHS],
        media=[MediaDocument(**each) for each in report.media],
        usage=report.usage,
        notes=report.notes,
    )


def build_call_document(entry: LedgerEntry) -> CallDocument:
    """Return the document of a call."""
    return CallDocument.model_validate(
        {
            "call": entry.format(),
            "target": entry.target,
            "status": entry.status,
            "effect": entry.effect,
            "duration_ms": entry.duration_ms,
            "error": truncate_text(entry.error, MAX_ERROR_CHARS)[0] or None,
        }
    )


def build_question_documents(reports: Iterable[RunReport]) -> list[QuestionDocument]:
    """Return the documents of the first questions that runs wait for."""
    questions = ((report.run_id, each) for report in reports for each in report.pending_questions)
    return [
        QuestionDocument.model_validate(
            {
                "id": each.id,
                "run": run_id,
                "kind": each.kind,
                "calls": [
                    CoveredCall(target=target, arguments=bound_data(dict(args))[0])
                    for target, args in each.calls[:MAX_COVERED_CALLS]
                ],
                "prompt": each.model_request["prompt"] if each.model_request else None,
                "answer_schema": each.model_request["schema"] if each.model_request else None,
                "line": each.line,
                "hints": list(each.hints),
                "url": each.url or None,
                "expires_at": None if each.expires is None else to_datetime(each.expires),
            }
        )
        for run_id, each in islice(questions, MAX_LISTED_QUESTIONS)
    ]


def build_run_summary(row: RunRow) -> RunSummary:
    """Return a run for the list of its session."""
    return RunSummary(
        run=row.id,
        step=row.step,
        parent=row.parent_id,
        status=row.status,
        undone=UNDONE_FLAG in row.flags,
        started_at=to_datetime(row.started_at),
        finished_at=None if row.finished_at is None else to_datetime(row.finished_at),
    )


def build_session_summary(row: SessionRow) -> SessionSummary:
    """Return a session for a list."""
    return SessionSummary(
        session=row.id,
        name=row.name,
        run_count=row.run_count,
        created_at=to_datetime(row.created_at),
        last_used_at=to_datetime(row.last_used_at),
        forked_from=row.origin if row.purpose == FORK_PURPOSE else None,
    )
