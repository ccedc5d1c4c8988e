"""What the journal returns: rows, as frozen dataclasses.

A `StoredEvent` is an event with its place in the log of a session; `SessionRow` and `RunRow`
summarise events. Times are seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .events import Event

CANCEL_REQUEST = "cancel"  # in the place of a question's id: the run is to be cancelled
AGENT_PURPOSE = "agent"  # of sessions in which the agent of a run works

# flags of a finished run, as `RunFinished` explains them
UNDONE_FLAG = "undone"
INTERRUPTED_FLAG = "interrupted"
FRESH_FLAG = "fresh"
FILES_FLAG = "files"


class RawEventRow(NamedTuple):
    """An event as its columns; `body` and `large_fields` are JSON."""

    sequence: int
    run_id: str | None
    recorded_at: float
    kind: str
    version: int
    body: str
    large_fields: str | None


class SkillUseRow(NamedTuple):
    """What a run reported about a version of a skill: that it worked, once at least, or did not.

    `family` is the session that the run's session comes from by forks and agents, or that session.
    """

    skill: str
    version: int
    has_succeeded: bool
    recorded_at: float
    run_id: str
    family: str
    principal: str


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """Event number `sequence` (from 1) of a session; `run_id` is None if it concerns no run."""

    session_id: str
    sequence: int
    run_id: str | None
    recorded_at: float
    event: Event


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session: `tip` is the run that the next one starts from, `owner` the server that holds it.

    `origin` is the run that it was forked at, or whose agent works in it; `purpose` is the one of
    `SessionOpened`.
    """

    id: str
    name: str | None
    principal: str
    created_at: float
    last_used_at: float
    owner: str | None
    tip: str | None
    run_count: int
    origin: str | None
    purpose: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run; `status` is `queued` or `running` until it has finished, even if its server is dead.

    `flags` are those of its `RunFinished`.
    """

    id: str
    session_id: str
    parent_id: str | None
    step: int
    name: str
    status: str
    started_at: float
    finished_at: float | None
    idempotency_key: str | None
    flags: frozenset[str]

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished."""
        return self.status not in ("queued", "running")


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A pending question: `sequence` is that of its `QuestionAsked`.

    `is_answered` means that another process has submitted an answer, and the owner of the session
    has not received it yet.
    """

    run_id: str
    question_id: str
    session_id: str
    sequence: int
    expires_at: float
    is_answered: bool


@dataclass(frozen=True, slots=True)
class SubmittedAnswer:
    """An answer that another process has submitted for the server that owns the session.

    With the id `CANCEL_REQUEST` it answers no question: the run is to be cancelled.
    """

    session_id: str
    run_id: str
    question_id: str
    answer_json: str

    @property
    def is_cancellation(self) -> bool:
        """Whether the run is to be cancelled."""
        return self.question_id == CANCEL_REQUEST


@dataclass(frozen=True, slots=True)
class CallResult:
    """The value that a call returned, and the target that was called."""

    run_id: str
    call_id: int
    target: str
    value: object
