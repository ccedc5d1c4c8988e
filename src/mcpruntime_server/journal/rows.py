"""What the journal hands out: rows, as frozen dataclasses.

`Stored` is an event with its place in a session's log; `SessionRow` and `RunRow` sum up what the events say.
Times are seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from .events import Event

AGENT_PURPOSE = "agent"  # the purpose of sessions in which an agent works that a run has begun
RawEventRow = tuple[
    int, str | None, float, str, int, str, str | None
]  # n, run, at, kind, version, body, large of an event


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """Event number `n` (from 1) of a session; `run` is None for what belongs to the session as a whole."""

    session_id: str
    sequence: int
    run_id: str | None
    recorded_at: float
    event: Event


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session; `tip` is the run that the next one starts from, `owner` the server that holds it, `runs` a count.

    `origin` is the run that it was forked at, or whose agent works in it, and `purpose` what it is for, as in
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
    """A run; `status` is `queued` or `running` until it has finished, whether or not its server still lives.

    `flags` are those of its `RunFinished`, and `unseeded` if its chance was not recorded.
    """

    id: str
    session_id: str
    parent_id: str | None
    step: int
    name: str
    status: str
    started_at: float
    finished_at: float | None
    idempotency_key: str | None  # idempotency key
    flags: frozenset[str]

    @property
    def is_finished(self) -> bool:
        """Whether it has finished."""
        return self.status not in ("queued", "running")


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """What a run waits for: `n` is the ordinal of its `Asked`; `is_answered` by another process, and not heard yet."""

    run_id: str
    question_id: str
    session_id: str
    sequence: int
    expires_at: float
    is_answered: bool


@dataclass(frozen=True, slots=True)
class SubmittedAnswer:
    """An answer that another process has left for the server that has the session; `text` is JSON."""

    session_id: str
    run_id: str
    question_id: str
    answer_json: str
