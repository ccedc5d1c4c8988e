"""One step as its page shows it: made of the recorded events of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..journal.events import (
    CallFinished,
    CallStarted,
    FileEntry,
    ModelUsageRecorded,
    QuestionAnswered,
    QuestionAsked,
    RunError,
    RunQueued,
    RunStarted,
    RunSuspended,
)
from ..journal.recording import RecordedCall
from ..journal.rows import UNDONE_FLAG, RunRow, SessionRow, StoredEvent
from ..protocol.truncation import truncate_text
from ..runtime.call_ledger import CallStatus
from ..runtime.plan import Plan
from ..runtime.run_history import RecordedRun, build_recorded_run, ledger_entry_of
from ..runtime.run_report import PendingQuestionView
from ..service.export_api import has_frame, has_table
from .code_highlighting import highlight_python
from .value_views import ValueNode, ValueView, build_tree, build_value_view

MAX_SHOWN_CALLS = 300
MAX_SHOWN_FILES = 500
MAX_CODE_CHARS = 256 * 1024
MAX_DATA_CHARS = 200_000  # of JSON text that becomes a tree
SAFE_IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
CHART_WIDTH = 1_000.0  # of the waterfall, in its own units
MIN_BAR_WIDTH = 4.0


@dataclass(frozen=True)
class ApprovalView:
    """What was asked about a call, and who has answered what."""

    question_id: str
    kind: str
    decision: str
    scope: str
    answered_by: str
    waited_ms: float | None


@dataclass(frozen=True)
class CallView:
    """A call in the waterfall: `bar_start` and `bar_width` are in units of the chart."""

    number: int
    target: str
    server: str
    tool: str
    status: CallStatus
    effect: str
    line: int | None
    shown: str
    started_ms: float
    duration_ms: float
    bar_start: float
    bar_width: float
    arguments: ValueNode
    result: ValueNode | None
    result_text: str
    error: str
    approvals: tuple[ApprovalView, ...]


@dataclass(frozen=True)
class FileView:
    """A file that the run has changed or removed."""

    path: str
    change: str  # "added" | "changed" | "removed"
    size: int
    digest: str


@dataclass(frozen=True)
class MediaView:
    """An image or a sound that the code has shown; `number` is its place in the run."""

    number: int
    mime_type: str

    @property
    def is_image(self) -> bool:
        """Whether a browser shows it."""
        return self.mime_type in SAFE_IMAGE_TYPES


@dataclass(frozen=True)
class CodeLine:
    """A line of the code of a step; `calls` are the numbers of the calls that it has made."""

    number: int
    markup: Markup
    calls: tuple[int, ...]
    is_error: bool


@dataclass(frozen=True)
class StepView:
    """A step with its calls, its files and its result."""

    run: RunRow
    session: SessionRow  # that the run belongs to
    status: str
    is_undone: bool
    is_dry_run: bool
    has_code: bool
    code: str
    code_lines: tuple[CodeLine, ...]
    timeout_s: float | None
    duration_ms: float | None
    usage: Mapping[str, float]
    model_usd: float
    model_tokens: int
    value: ValueView | None
    has_table: bool  # that can be downloaded
    has_frame: bool  # that code writes as a table, when somebody downloads it
    error: RunError | None
    media: tuple[MediaView, ...]
    calls: tuple[CallView, ...]
    call_count: int
    chart_ms: float
    files: tuple[FileView, ...]
    file_count: int
    questions: tuple[PendingQuestionView, ...]
    damage: tuple[str, ...]

    @property
    def is_live(self) -> bool:
        """Whether more may come."""
        return not self.run.is_finished


def build_step_view(
    row: RunRow,
    session: SessionRow,
    stored: Sequence[StoredEvent],
    files_before: Mapping[str, FileEntry],
    damage: Sequence[str],
) -> StepView:
    """Return a step as a page shows it; `stored` are its events without output."""
    recorded = build_recorded_run(row, stored, damage)
    report = recorded.report
    code = recorded.code
    for each in stored:
        if not code and isinstance(each.event, RunQueued):
            code = each.event.code
    code, is_cut = truncate_text(code, MAX_CODE_CHARS)
    timeline = CallTimeline(recorded, stored)
    calls = timeline.build_calls()
    code_lines = list_code_lines(code, calls, recorded)
    is_cut = is_cut or code.count("\n") > len(code_lines)
    files = list_files(recorded, files_before)
    usages = [each.event for each in stored if isinstance(each.event, ModelUsageRecorded)]
    problems = list(damage) + (["The code is too long to be shown whole."] if is_cut else [])
    return StepView(
        run=row,
        session=session,
        status=report.status,
        is_undone=UNDONE_FLAG in row.flags,
        is_dry_run=report.is_dry_run,
        has_code=bool(code),
        code=code,
        code_lines=code_lines,
        timeout_s=recorded.start.timeout_s if recorded.start else None,
        duration_ms=None if row.finished_at is None else timeline.end_ms,
        usage=report.usage,
        model_usd=sum(each.usd for each in usages),
        model_tokens=sum(each.tokens_in + each.tokens_out for each in usages),
        value=build_value_view(report.value),
        has_table=has_table(report.value),
        has_frame=has_frame(report.value),
        error=report.error,
        media=tuple(
            MediaView(number, each["mime_type"]) for number, each in enumerate(report.media, 1)
        ),
        calls=tuple(calls[:MAX_SHOWN_CALLS]),
        call_count=len(calls),
        chart_ms=timeline.end_ms,
        files=tuple(files[:MAX_SHOWN_FILES]),
        file_count=len(files),
        questions=tuple(report.pending_questions),
        damage=tuple(problems),
    )


def list_code_lines(
    code: str, calls: Sequence[CallView], recorded: RecordedRun
) -> tuple[CodeLine, ...]:
    """Return the lines of the code, each with the calls that it has made."""
    error = recorded.finished.error if recorded.finished else None
    error_line = error["line"] if error else None
    by_line: dict[int, list[int]] = {}
    for call in calls:
        if call.line is not None:
            by_line.setdefault(call.line, []).append(call.number)
    return tuple(
        CodeLine(number, markup, tuple(by_line.get(number, ())), number == error_line)
        for number, markup in enumerate(highlight_python(code), 1)
    )


def list_files(recorded: RecordedRun, before: Mapping[str, FileEntry]) -> list[FileView]:
    """Return the files that a run has changed, by path."""
    if recorded.files is None:
        return []
    views = [
        FileView(path, "changed" if path in before else "added", entry["size"], entry["digest"])
        for path, entry in recorded.files.changed.items()
    ]
    views += [FileView(path, "removed", 0, "") for path in recorded.files.removed]
    return sorted(views, key=lambda each: each.path)


class CallTimeline:
    """The calls of a run on its time axis."""

    def __init__(self, recorded: RecordedRun, stored: Sequence[StoredEvent]) -> None:
        self._recorded = recorded
        self._times = {each.sequence: each.recorded_at for each in stored}
        started = [each.recorded_at for each in stored if isinstance(each.event, RunStarted)]
        self._begins_at = started[0] if started else recorded.row.started_at
        ends = [recorded.row.finished_at or 0.0]
        ends += [
            each.recorded_at
            for each in stored
            if isinstance(each.event, CallStarted | CallFinished | QuestionAsked | RunSuspended)
        ]
        self.end_ms = max((max(ends) - self._begins_at) * 1_000, 0.0)
        self._approvals = self._list_approvals(stored)

    def _list_approvals(self, stored: Sequence[StoredEvent]) -> Mapping[int, list[ApprovalView]]:
        """Return what was asked about each call, by its number."""
        asked: dict[str, tuple[StoredEvent, QuestionAsked]] = {}
        answered: dict[str, tuple[StoredEvent, QuestionAnswered]] = {}
        for each in stored:
            if isinstance(each.event, QuestionAsked):
                asked[each.event.question_id] = each, each.event
            elif isinstance(each.event, QuestionAnswered):
                answered[each.event.question_id] = each, each.event
        approvals: dict[int, list[ApprovalView]] = {}
        for name, (at, question) in asked.items():
            reply = answered.get(name)
            view = ApprovalView(
                name,
                question.kind,
                "" if reply is None else reply[1].decision,
                "" if reply is None else reply[1].scope,
                "" if reply is None else reply[1].answered_by,
                None if reply is None else (reply[0].recorded_at - at.recorded_at) * 1_000,
            )
            approvals.setdefault(question.call_id, []).append(view)
        return approvals

    def build_calls(self) -> list[CallView]:
        """Return the calls that the ledger has, in the order in which they started."""
        start = self._recorded.start
        plan = Plan(start.approved_calls if start else ())
        listed = [each for each in self._recorded.calls if each.in_ledger]
        return [self._build_call(number, each, plan) for number, each in enumerate(listed, 1)]

    def _build_call(self, number: int, call: RecordedCall, plan: Plan) -> CallView:
        entry = ledger_entry_of(call, plan)
        approvals = tuple(self._approvals.get(call.call_id, ()))
        if entry.status == "started" and any(not each.decision for each in approvals):
            entry.status = "waiting"
        started_at = self._times.get(call.started_sequence, self._begins_at)
        started_ms = max((started_at - self._begins_at) * 1_000, 0.0)
        duration_ms = call.duration_ms
        if call.finished_sequence is None:
            duration_ms = max(self.end_ms - started_ms, 0.0)
        elif call.finished_sequence in self._times:
            waited = (self._times[call.finished_sequence] - started_at) * 1_000
            duration_ms = max(call.duration_ms, waited)
        scale = CHART_WIDTH / (self.end_ms or 1.0)
        width = min(max(duration_ms * scale, MIN_BAR_WIDTH), CHART_WIDTH)
        package, _, tool = call.target.removeprefix("tools.").rpartition(".")
        result, text = show_data(call.value) if call.error is None else (None, "")
        return CallView(
            number=number,
            target=call.target,
            server=package,
            tool=tool,
            status=entry.status,
            effect=call.effect,
            line=call.line_number,
            shown=entry.format(),
            started_ms=started_ms,
            duration_ms=duration_ms,
            bar_start=min(started_ms * scale, CHART_WIDTH - width),
            bar_width=width,
            arguments=build_tree(dict(entry.args)),
            result=result if call.finished_sequence is not None else None,
            result_text=text,
            error=entry.error,
            approvals=approvals,
        )


def show_data(value: Any) -> tuple[ValueNode | None, str]:
    """Return the answer of a call as a tree, or its text where it is one."""
    if isinstance(value, str):
        return None, truncate_text(value, MAX_DATA_CHARS)[0]
    try:
        is_long = len(json.dumps(value)) > MAX_DATA_CHARS
    except (TypeError, ValueError, RecursionError):
        return None, truncate_text(repr(value), MAX_DATA_CHARS)[0]
    return build_tree(value), "The beginning:" if is_long else ""
