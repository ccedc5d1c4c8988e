"""One run as an HTML file that needs nothing else: no scripts, no requests, images as data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from ..journal.rows import SessionRow
from ..protocol.presentation import format_error, format_stored_call
from ..protocol.truncation import truncate_text
from ..runtime.run_history import RecordedRun
from .notebook import is_image
from .text_output import split_text

MAX_TEXT_CHARS = 2_000_000  # of one output, the code or the value
MAX_CALLS = 2_000
MAX_CALL_CHARS = 2_000
MAX_RESULT_CHARS = 4_000


@dataclass(frozen=True)
class PageCall:
    """A call as the page shows it."""

    text: str
    outcome: str
    is_failed: bool
    duration_ms: float
    line: int | None


def write_run_page(out: TextIO, session: SessionRow, run: RecordedRun) -> None:
    """Write the page of a run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # needed for exports only

    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    report, error = run.report, run.report.error
    started_at = datetime.fromtimestamp(run.row.started_at, UTC)
    page = environment.get_template("run.html").generate(
        session=session,
        run=run.row,
        report=report,
        started_at=f"{started_at:%Y-%m-%d %H:%M:%S} UTC",
        code_lines=bound_text(run.code).splitlines(),
        error_line=error["line"] if error else None,
        sections=[
            (title, split_text(bound_text(text)))
            for title, text in (
                (
                    "Error",
                    format_error(error["type"], error["message"], error["traceback"])
                    if error
                    else "",
                ),
                ("Output", report.stdout),
                ("Error output", report.stderr),
                ("Value", report.value["text"] if report.value else ""),
            )
            if text
        ],
        calls=list_page_calls(run),
        images=[
            (each["mime_type"], split_text(each["data"])) for each in report.media if is_image(each)
        ],
        files=sorted(run.changed.items()),
        removed=report.removed_files,
        damage=run.damage,
    )
    for part in page:
        out.write(part)


def bound_text(text: str) -> str:
    """Return a text, or head and tail of one that is too long for a page."""
    return truncate_text(text, MAX_TEXT_CHARS)[0]


def list_page_calls(run: RecordedRun) -> list[PageCall]:
    """Return the calls that a run has made."""
    lines = []
    for call in [each for each in run.calls if each.in_ledger][:MAX_CALLS]:
        outcome = "no answer"
        if call.error is not None:
            outcome = call.error["message"]
        elif call.finished_sequence is not None:
            outcome = str(call.value)
        lines.append(
            PageCall(
                format_stored_call(call.target, call.args, MAX_CALL_CHARS),
                truncate_text(outcome, MAX_RESULT_CHARS)[0],
                call.error is not None,
                call.duration_ms,
                call.line_number,
            )
        )
    return lines
