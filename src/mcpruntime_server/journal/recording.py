"""A run as the journal recorded it, in the form in which it can be executed again.

A `Recording` holds everything that the code observed: the results of its calls, the seed of its
randomness and the readings of its clocks; and everything that can be compared afterwards: output,
value, error and files. It does not know how code is executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from mcpruntime_server.errors import JournalFailed

from .events import (
    CallError,
    CallFinished,
    CallStarted,
    CallSummary,
    ClocksRead,
    FilesChanged,
    OutputWritten,
    QuestionAnswered,
    QuestionAsked,
    RunError,
    RunFinished,
    RunResumed,
    RunStarted,
    RunSuspended,
    RunValue,
    canonical_json,
)
from .rows import FILES_FLAG, FRESH_FLAG, INTERRUPTED_FLAG, RunRow, StoredEvent
from .store import Journal


@dataclass(frozen=True)
class RecordedCall:
    """One call: target, args and nth identify it.

    `started_sequence` and `finished_sequence` are those of its events; the second is None if the
    journal has no end of the call.
    """

    call_id: int
    target: str
    args: str  # canonical JSON
    nth: int
    effect: str
    started_sequence: int
    finished_sequence: int | None = None
    value: Any = None
    error: CallError | None = None
    duration_ms: float = 0.0
    line_number: int | None = None  # in the user's code
    in_ledger: bool = True
    summary: CallSummary | None = None
    order: int = 0  # equal in a replay, where calls with the same arguments may change places
    blobs: Sequence[str] = ()  # that the journal keeps with the answer


QuestionSubject = tuple[int, str]  # the call, and the model request if a call makes several


def question_subject(question: QuestionAsked) -> QuestionSubject:
    """Return what a question is about."""
    request = question.model_request
    return question.call_id, canonical_json(request) if request else ""


class RunOutcome(TypedDict):
    """What a run produced, apart from files; `status` is None if it has not finished."""

    status: str | None
    value: RunValue | None
    error: RunError | None
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Recording:
    """One run: `finish` is None if it has not finished, `files` if it changed none."""

    session_id: str
    start: RunStarted
    calls: tuple[RecordedCall, ...] = ()
    clock_readings: Mapping[str, list[float]] = field(default_factory=dict)
    output: Mapping[str, str] = field(default_factory=dict)  # by stream
    finish: RunFinished | None = None
    files: FilesChanged | None = None
    resume_count: int = 0  # after crashes of servers, since it last waited or was suspended
    questions: tuple[QuestionAsked, ...] = ()
    answers: Mapping[str, QuestionAnswered] = field(default_factory=dict)  # by question

    @property
    def pending_questions(self) -> dict[QuestionSubject, QuestionAsked]:
        """The questions without an answer, by subject."""
        return {
            question_subject(question): question
            for question in self.questions
            if question.question_id not in self.answers
        }

    @property
    def flags(self) -> frozenset[str]:
        """The flags of its end."""
        return frozenset(self.finish.flags if self.finish else ())

    @property
    def outcome(self) -> RunOutcome:
        """What it produced, apart from files."""
        return {
            "status": self.finish.status if self.finish else None,
            "value": self.finish.value if self.finish else None,
            "error": self.finish.error if self.finish else None,
            "stdout": self.output.get("stdout", ""),
            "stderr": self.output.get("stderr", ""),
        }

    @property
    def file_digests(self) -> dict[str, str | None]:
        """The content of the files that it changed, by path; None for those that it removed."""
        if self.files is None:
            return {}
        changed = {path: entry["digest"] for path, entry in self.files.changed.items()}
        return {**changed, **dict.fromkeys(self.files.removed)}

    @property
    def has_lost_files(self) -> bool:
        """Whether the server died before the files that the run announced had arrived."""
        return FILES_FLAG in self.flags and self.files is None


def is_reproducible(row: RunRow, parent_is_reproducible: bool) -> bool:
    """Return whether executing the lineage of a run again is sure to restore its end state."""
    starts_known = parent_is_reproducible or FRESH_FLAG in row.flags
    return starts_known and row.is_finished and INTERRUPTED_FLAG not in row.flags


async def load_recording(journal: Journal, row: RunRow) -> Recording:
    """Return the recording of a run; raises `JournalFailed` if a part of it is damaged."""
    return await load_session_recording(journal, row.session_id, row.id)


async def load_session_recording(journal: Journal, session_id: str, run_id: str) -> Recording:
    """Return the recording of a run by its ids; raises `JournalFailed` as `load_recording` does."""
    events = await journal.load_events(session_id, run_id=run_id)
    builder = RecordingBuilder()
    for stored in events:
        builder.add(stored)
    if builder.start is None:
        raise JournalFailed(f"The start of run {run_id!r} is not in the journal.")
    return Recording(
        session_id=session_id,
        start=builder.start,
        calls=tuple(builder.calls.values()),
        clock_readings=builder.clock_readings,
        output={stream: "".join(texts) for stream, texts in builder.output.items()},
        finish=builder.finish,
        files=builder.files,
        resume_count=builder.resume_count,
        questions=tuple(builder.questions),
        answers=builder.answers,
    )


class RecordingBuilder:
    """Collects the parts of a recording, event by event."""

    def __init__(self) -> None:
        self.start: RunStarted | None = None
        self.calls: dict[int, RecordedCall] = {}
        self.clock_readings: dict[str, list[float]] = {}
        self.output: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.finish: RunFinished | None = None
        self.files: FilesChanged | None = None
        self.resume_count = 0
        self.questions: list[QuestionAsked] = []
        self.answers: dict[str, QuestionAnswered] = {}

    def add(self, stored: StoredEvent) -> None:
        """Add the next event of the run."""
        match stored.event:
            case RunStarted() as start:
                self.start = start
            case RunResumed():
                self.resume_count += 1
            case RunSuspended():
                self.resume_count = 0  # its server did not crash
            case OutputWritten(stream, text):
                self.output.setdefault(stream, []).append(text)
            case ClocksRead(readings):
                for clock, values in readings.items():
                    self.clock_readings.setdefault(clock, []).extend(values)
            case CallStarted() as started:
                self.calls[started.call_id] = _recorded_call(started, stored.sequence)
            case CallFinished() as finished if finished.call_id in self.calls:
                self.calls[finished.call_id] = replace(
                    self.calls[finished.call_id],
                    finished_sequence=stored.sequence,
                    value=finished.value,
                    error=finished.error,
                    duration_ms=finished.duration_ms,
                    summary=finished.summary,
                    blobs=finished.blobs,
                )
            case QuestionAsked() as question:
                self.questions.append(question)
                self.resume_count = 0  # it has made progress
            case QuestionAnswered() as answer:
                self.answers[answer.question_id] = answer
            case FilesChanged() as files:
                self.files = files
            case RunFinished() as finish:
                self.finish = finish


def _recorded_call(started: CallStarted, sequence: int) -> RecordedCall:
    return RecordedCall(
        call_id=started.call_id,
        target=started.target,
        args=started.args,
        nth=started.nth,
        effect=started.effect,
        started_sequence=sequence,
        line_number=started.line_number,
        in_ledger=started.in_ledger,
        order=started.order,
    )
