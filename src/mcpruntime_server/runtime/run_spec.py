"""What is asked of the runtime: code to run, in which world, and within which limits."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from ..journal.events import ApprovedCall, InputEntry
from ..journal.recording import Recording


@dataclass(frozen=True)
class RunLimits:
    """What a run may leave behind: bytes of files and of output; characters and items of what a client is shown.

    A question that it waits for is open for `waits_s` seconds.
    """

    max_file_bytes: int
    max_output_bytes: int
    max_shown_chars: int
    max_shown_items: int
    question_expires_s: float


@dataclass(frozen=True)
class RunSpec:
    """What is to be run, and in which world: with a recording, in that one, but for what is `live`.

    `key` is the client's name for the request, `id` the run's if it has one already. A `dry_run` plans what may change
    something, but for what is `approved`. A `detached` one goes on without anybody waiting for it. A run that
    `resumes` is the recording's own, goes on where that ends, and meets the world from there. A `fresh` one begins
    without variables whatever came before it. One that `looks_up` what its recording does not have gets, of what is on
    no ledger (modules to import, searches), the world's answers. `context` are its inputs; None: those of its
    recording, or else of the run before it.
    """

    code: str
    timeout_s: float
    idempotency_key: str | None = None
    recording: Recording | None = None
    live_targets: frozenset[str] = frozenset()
    is_resumed: bool = False
    starts_fresh: bool = False
    run_id: str | None = None
    is_dry_run: bool = False
    approvals: tuple[ApprovedCall, ...] = ()
    starts_detached: bool = False
    allow_lookups: bool = False
    context: tuple[InputEntry, ...] | None = None


def new_run_id() -> str:
    """Return an id that nobody can guess."""
    return f"r_{secrets.token_urlsafe(9)}"
