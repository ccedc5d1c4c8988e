"""The specification of a run, which never changes, and its limits."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from ..journal.events import ApprovedCall, InputEntry
from ..journal.recording import Recording
from ..protocol.payloads import Inspection


@dataclass(frozen=True)
class RunLimits:
    """How long a run may take, how much it may leave behind, how long its questions stay open."""

    max_timeout_s: float  # whatever its request or its recording says
    max_file_bytes: int
    max_output_bytes: int
    max_shown_chars: int  # of a field of its result, for a client
    max_shown_items: int  # of a list or an object in its value, for a client
    question_expires_s: float
    approvals_command: str  # with which a person lists and answers questions


@dataclass(frozen=True)
class RunSpec:
    """Code, and what answers its calls: live handlers, or a recording."""

    code: str
    timeout_s: float
    idempotency_key: str | None = None  # the client's name for the request
    recording: Recording | None = None
    live_targets: frozenset[str] = frozenset()  # servers or tools whose calls are made all the same
    is_resumed: bool = False  # it continues the recording's own run, live from the recording's end
    starts_fresh: bool = False  # without variables, whatever came before it
    run_id: str | None = None  # of a run that the journal has as queued
    is_dry_run: bool = False  # calls that may write are planned, except for `approvals`
    approvals: tuple[ApprovedCall, ...] = ()
    starts_detached: bool = False  # it continues when nobody waits for it
    allow_lookups: bool = False  # unrecorded catalogue and module lookups go to the live handlers
    shows_pages: bool = False  # its client can show a person the page for a credential
    context: tuple[InputEntry, ...] | None = None  # None: of its recording, or of the run before it
    is_offline: bool = False  # calls without a recorded answer are refused, and nothing is prepared
    inspection: Inspection | None = None  # what is observed of it

    def is_same_request(self, other: RunSpec) -> bool:
        """Return whether a client that sends both means one run."""
        mine = self.code, self.is_dry_run, self.context
        return mine == (other.code, other.is_dry_run, other.context)


def new_run_id() -> str:
    """Return an id that nobody can guess."""
    return f"r_{secrets.token_urlsafe(9)}"
