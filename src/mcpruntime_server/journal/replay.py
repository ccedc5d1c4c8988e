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
    Answered,
    Asked,
    CallFinished,
    CallStarted,
    ClocksRead,
    FilesChanged,
    Output,
    RunFinished,
    RunResumed,
    RunStarted,
    RunSuspended,
    canonical_json,
)
from .rows import RunRow, Stored
from .store import Journal

UNSEEDED = "unseeded"  # flag of runs that an older version recorded, without their chance
INTERRUPTED = "interrupted"
FRESH = "fresh"
UNDONE = "undone"
FILES = "files"


@dataclass(frozen=True)
class RecordedCall:
    """One call: (target, args, nth) names it; `started` and `finished` are the ordinals of its events."""

    call: int
    target: str
    args: str
    nth: int
    effect: str
    started: int
    finished: int | None = None  # None: it never ended, as far as the journal knows
    value: Any = None
    error: Mapping[str, Any] | None = None
    ms: float = 0.0
    line: int | None = None  # of the code
    listed: bool = True  # on the ledger


Matter = tuple[int, str]  # the call that something is asked about, and what is asked where a call asks several things


def matter(asked: Asked) -> Matter:
    """Return what a question is about."""
    return asked.call, canonical_json(asked.about) if asked.about else ""


@dataclass(frozen=True)
class Recording:
    """One run as it was: `end` is None for a run that has not ended, `files` for one that changed none."""

    session: str
    start: RunStarted
    calls: tuple[RecordedCall, ...] = ()
    readings: Mapping[str, list[float]] = field(default_factory=dict)
    printed: Mapping[str, str] = field(default_factory=dict)
    end: RunFinished | None = None
    files: FilesChanged | None = None
    resumed: int = 0  # how often it has gone on after the death of a server, without having waited or been handed on
    asked: tuple[Asked, ...] = ()
    answered: Mapping[str, Answered] = field(default_factory=dict)  # by question

    @property
    def open_questions(self) -> dict[Matter, Asked]:
        """What it waits for, by call."""
        return {matter(asked): asked for asked in self.asked if asked.question not in self.answered}

    @property
    def flags(self) -> frozenset[str]:
        """What is special about its end state."""
        return frozenset(self.end.flags if self.end else ())

    @property
    def outcome(self) -> dict[str, Any]:
        """What can be told of how it went, by field; without the files."""
        told = {name: getattr(self.end, name, None) for name in ("status", "value", "error")}
        return {**told, "stdout": "", "stderr": "", **self.printed}

    @property
    def digests(self) -> dict[str, str | None]:
        """The content that it left in files, by path; None for those that it removed."""
        if self.files is None:
            return {}
        changed = {path: entry["digest"] for path, entry in self.files.changed.items()}
        return {**changed, **dict.fromkeys(self.files.removed)}

    @property
    def lacks_files(self) -> bool:
        """Whether the server died before the content of the files that it changed had come."""
        return FILES in self.flags and self.files is None


def repeats(row: RunRow, before: bool) -> bool:
    """Return whether the state at the end of a run is sure to come back by executing its line again.

    `before` is that for its parent.
    """
    starts = before or FRESH in row.flags
    return starts and row.is_over and row.flags.isdisjoint((UNSEEDED, INTERRUPTED))


async def load_recording(journal: Journal, row: RunRow) -> Recording:
    """Return the recording of a run; raises `JournalFailed` if a part of it is damaged."""
    return recording_of(row, await journal.events(row.session, run=row.id))


def recording_of(row: RunRow, stored: Sequence[Stored]) -> Recording:
    """Return the recording that the events of a run make up; raises `JournalFailed` if its beginning is missing."""
    found = Recorder()
    for each in stored:
        found.take(each)
    if found.start is None:
        raise JournalFailed(f"The beginning of run {row.id!r} is not in the journal.")
    return Recording(
        row.session,
        found.start,
        tuple(found.calls.values()),
        found.readings,
        {stream: "".join(pieces) for stream, pieces in found.printed.items()},
        found.end,
        found.files,
        found.resumed,
        tuple(found.asked),
        found.answered,
    )


class Recorder:
    """Puts a recording together, event by event."""

    def __init__(self) -> None:
        self.start: RunStarted | None = None
        self.calls: dict[int, RecordedCall] = {}
        self.readings: dict[str, list[float]] = {}
        self.printed: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.end: RunFinished | None = None
        self.files: FilesChanged | None = None
        self.resumed = 0
        self.asked: list[Asked] = []
        self.answered: dict[str, Answered] = {}

    def take(self, stored: Stored) -> None:
        """Take the next event of the run."""
        match stored.event:
            case RunStarted() as start:
                self.start = start
            case RunResumed():
                self.resumed += 1
            case RunSuspended():
                self.resumed = 0  # no harm has come to its server
            case Output(stream, text):
                self.printed.setdefault(stream, []).append(text)
            case ClocksRead(readings):
                for clock, values in readings.items():
                    self.readings.setdefault(clock, []).extend(values)
            case CallStarted(call, target, args, effect, nth, line, listed):
                self.calls[call] = RecordedCall(call, target, args, nth, effect, stored.n, line=line, listed=listed)
            case CallFinished(call, value, error, ms) if call in self.calls:
                self.calls[call] = replace(self.calls[call], finished=stored.n, value=value, error=error, ms=ms)
            case Asked() as asked:
                self.asked.append(asked)
                self.resumed = 0  # it has come this far
            case Answered() as answered:
                self.answered[answered.question] = answered
            case FilesChanged() as files:
                self.files = files
            case RunFinished() as end_of_run:
                self.end = end_of_run
