"""What the journal hands out: rows, as frozen dataclasses.

`Stored` is an event with its place in a session's log; `SessionRow` and `RunRow` sum up what the events say.
Times are seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from .events import Event

Row = tuple[int, str | None, float, str, int, str, str | None]  # n, run, at, kind, version, body, large of an event


@dataclass(frozen=True, slots=True)
class Stored:
    """Event number `n` (from 1) of a session; `run` is None for what belongs to the session as a whole."""

    session: str
    n: int
    run: str | None
    at: float
    event: Event


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session; `tip` is the run that the next one starts from, `owner` the server that holds it, `runs` a count.

    `origin` is the run that it was forked at and `purpose` what it is for, as in `SessionOpened`.
    """

    id: str
    name: str | None
    principal: str
    created: float
    used: float
    owner: str | None
    tip: str | None
    runs: int
    origin: str | None
    purpose: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run; `status` is `running` until it has finished, whether or not its server still lives.

    `flags` are those of its `RunFinished`, and `unseeded` if its chance was not recorded.
    """

    id: str
    session: str
    parent: str | None
    step: int
    name: str
    status: str
    started: float
    finished: float | None
    request: str | None  # idempotency key
    flags: frozenset[str]
