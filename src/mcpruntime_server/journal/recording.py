"""What the journal knows of one run, in the form in which the run can be executed again.

A `Recording` holds everything that code observed: the answers to its calls, its chance (a seed) and its clocks; and
everything that can be compared afterwards: output, value, error, files. It does not know how code is executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mcpruntime_server.errors import JournalFailed

from .events import (
    CallFinished,
    CallStarted,
    ClocksRead,
    FilesChanged,
    OutputWritten,
    QuestionAnswered,
    QuestionAsked,
    RunFinished,
    RunResumed,
    RunStarted,
    RunSuspended,
    canonical_json,
)
from .rows import RunRow, StoredEvent
from .store import Journal

UNSEEDED_FLAG = "unseeded"  # flag of runs that an older version recorded, without their chance
INTERRUPTED_FLAG = "interrupted"
FRESH_FLAG = "fresh"
UNDONE_FLAG = "undone"
FILES_FLAG = "files"


@dataclass(frozen=True)
class RecordedCall:
    """One call: (target, args, nth) names it; `started` and `finished` are the ordinals of its events."""

    call_id: int
    target: str
    args: str
    nth: int
    effect: str
    started_sequence: int
    finished_sequence: int | None = None  # None: it never ended, as far as the journal knows
    value: Any = None
    error: Mapping[str, Any] | None = None
    duration_ms: float = 0.0
    line_number: int | None = None  # of the code
    in_ledger: bool = True  # on the ledger


QuestionSubject = tuple[
    int, str
]  # the call that something is asked about, and what is asked where a call asks several things


def question_subject(asked: QuestionAsked) -> QuestionSubject:
    """Return what a question is about."""
    return asked.call_id, canonical_json(asked.model_request) if asked.model_request else ""


@dataclass(frozen=True)
class Recording:
    """One run as it was: `end` is None for a run that has not ended, `files` for one that changed none."""

    session_id: str
    start: RunStarted
    calls: tuple[RecordedCall, ...] = ()
    clock_readings: Mapping[str, list[float]] = field(default_factory=dict)
    output: Mapping[str, str] = field(default_factory=dict)
    finish: RunFinished | None = None
    files: FilesChanged | None = None
    resume_count: int = 0  # how often it has gone on after the death of a server, without having waited or been handed on
    questions: tuple[QuestionAsked, ...] = ()
    answers: Mapping[str, QuestionAnswered] = field(default_factory=dict)  # by question

    @property
    def pending_questions(self) -> dict[QuestionSubject, QuestionAsked]:
        """What it waits for, by call."""
        return {
            question_subject(asked): asked
            for asked in self.questions
            if asked.question_id not in self.answers
        }

    @property
    def flags(self) -> frozenset[str]:
        """What is special about its end state."""
        return frozenset(self.finish.flags if self.finish else ())

    @property
    def outcome(self) -> dict[str, Any]:
        """What can be told of how it went, by field; without the files."""
        told = {name: getattr(self.finish, name, None) for name in ("status", "value", "error")}
        return {**told, "stdout": "", "stderr": "", **self.output}

    @property
    def file_digests(self) -> dict[str, str | None]:
        """The content that it left in files, by path; None for those that it removed."""
        if self.files is None:
            return {}
        changed = {path: entry["digest"] for path, entry in self.files.changed.items()}
        return {**changed, **dict.fromkeys(self.files.removed)}

    @property
    def has_lost_files(self) -> bool:
        """Whether the server died before the content of the files that it changed had come."""
        return FILES_FLAG in self.flags and self.files is None


def is_reproducible(row: RunRow, before: bool) -> bool:
    """Return whether the state at the end of a run is sure to come back by executing its line again.

    `before` is that for its parent.
    """
    starts = before or FRESH_FLAG in row.flags
    return starts and row.is_finished and row.flags.isdisjoint((UNSEEDED_FLAG, INTERRUPTED_FLAG))


async def load_recording(journal: Journal, row: RunRow) -> Recording:
    """Return the recording of a run; raises `JournalFailed` if a part of it is damaged."""
    return build_recording(row, await journal.load_events(row.session_id, run_id=row.id))


def build_recording(row: RunRow, stored: Sequence[StoredEvent]) -> Recording:
    """Return the recording that the events of a run make up; raises `JournalFailed` if its beginning is missing."""
    found = RecordingBuilder()
    for each in stored:
        found.add(each)
    if found.start is None:
        raise JournalFailed(f"The beginning of run {row.id!r} is not in the journal.")
    return Recording(
        row.session_id,
        found.start,
        tuple(found.calls.values()),
        found.clock_readings,
        {stream: "".join(pieces) for stream, pieces in found.output.items()},
        found.finish,
        found.files,
        found.resume_count,
        tuple(found.questions),
        found.answers,
    )


class RecordingBuilder:
    """Puts a recording together, event by event."""

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
        """Take the next event of the run."""
        match stored.event:
            case RunStarted() as start:
                self.start = start
            case RunResumed():
                self.resume_count += 1
            case RunSuspended():
                self.resume_count = 0  # no harm has come to its server
            case OutputWritten(stream, text):
                self.output.setdefault(stream, []).append(text)
            case ClocksRead(readings):
                for clock, values in readings.items():
                    self.clock_readings.setdefault(clock, []).extend(values)
            case CallStarted(call, target, args, effect, nth, line, listed):
                self.calls[call] = RecordedCall(
                    call,
                    target,
                    args,
                    nth,
                    effect,
                    stored.sequence,
                    line_number=line,
                    in_ledger=listed,
                )
            case CallFinished(call, value, error, ms) if call in self.calls:
                self.calls[call] = replace(
                    self.calls[call],
                    finished_sequence=stored.sequence,
                    value=value,
                    error=error,
                    duration_ms=ms,
                )
            case QuestionAsked() as asked:
                self.questions.append(asked)
                self.resume_count = 0  # it has come this far
            case QuestionAnswered() as answered:
                self.answers[answered.question_id] = answered
            case FilesChanged() as files:
                self.files = files
            case RunFinished() as end_of_run:
                self.finish = end_of_run
