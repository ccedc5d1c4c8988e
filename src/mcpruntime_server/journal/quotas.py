"""How much of the journal sessions, runs and principals use, and how much they may use.

The bytes that a server has recorded are measured once, when it takes a session over, and counted
from then on. Beyond a limit, what a run can do without is refused; the end of what has begun is
recorded in any case.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from mcpruntime_server.errors import JournalLimitReached

from . import queries
from .blob_store import BlobStore
from .events import (
    CallFinished,
    CallStarted,
    ClocksRead,
    Event,
    FilesChanged,
    OutputWritten,
    QuestionAsked,
    RunFinished,
)
from .principals import LOCAL_PRINCIPAL

MB = 1024 * 1024
MEASURE_INTERVAL_S = 60.0  # between two measurements of what a principal has recorded

ReadJournal = Callable[[Callable[[Connection], Any]], Awaitable[Any]]


@dataclass(frozen=True)
class JournalLimits:
    """How much the runs of a session may record: code, arguments, answers and output.

    The files of a workspace do not count. What a run has downloaded counts for the session and the
    principal, and has a limit of its own for the run.
    """

    run_bytes: int
    session_bytes: int
    principal_bytes: int = 0  # of each principal but the local user, files included; 0: no limit
    download_bytes: int = 0  # of a run


class RecordingQuotas:
    """Counts what is recorded of the sessions that a server owns, and refuses what is too much.

    Without limits it counts nothing.
    """

    def __init__(self, limits: JournalLimits | None, blobs: BlobStore, read: ReadJournal) -> None:
        self._limits = limits
        self._blobs = blobs
        self._read = read
        self._session_bytes: Counter[str] = Counter()
        self._run_bytes: Counter[str] = Counter()  # of the runs under way
        self._download_bytes: Counter[str] = Counter()  # likewise
        self._principals: dict[str, str] = {}  # by session, of those that are limited
        self._principal_bytes: dict[str, int] = {}
        self._measured_at: dict[str, float] = {}  # when a principal's bytes were last measured

    async def measure_session(self, session_id: str) -> None:
        """Count what a session has recorded before this server took it over."""
        if self._limits is not None:
            size = await self._read(
                lambda rows: queries.measure_session(rows, self._blobs, session_id)
            )
            self._session_bytes[session_id] = size.total_bytes
            self._run_bytes |= size.run_bytes  # a run that is resumed goes on counting
            self._download_bytes |= size.download_bytes

    async def register_principal(self, session_id: str, principal: str) -> None:
        """Count what a principal has recorded, from now on; before, it is measured.

        A principal at the limit is measured again after a while: sessions may have been removed.
        """
        limits = self._limits
        if limits is None or not limits.principal_bytes or principal == LOCAL_PRINCIPAL:
            return
        size, now = self._principal_bytes.get(principal), time.monotonic()
        is_due = now - self._measured_at.get(principal, now) > MEASURE_INTERVAL_S
        if size is None or (is_due and size >= limits.principal_bytes):
            self._measured_at[principal] = now
            self._principal_bytes[principal] = await self._read(
                lambda rows: queries.measure_principal(rows, self._blobs, principal)
            )
        self._principals[session_id] = principal

    def forget_session(self, session_id: str) -> None:
        """Forget a session that this server no longer owns."""
        self._principals.pop(session_id, None)
        self._session_bytes.pop(session_id, None)

    def check_room(self, session_id: str) -> None:
        """Raise `JournalLimitReached` if a session may record no more."""
        limits = self._limits
        if limits is not None:
            if self._session_bytes[session_id] >= limits.session_bytes:
                raise session_limit_error(limits)
            if self._is_principal_full(session_id, limits):
                raise principal_limit_error(limits)

    def count_event(self, session_id: str, run_id: str | None, event: Event, size: int) -> None:
        """Count an event; raises `JournalLimitReached` for one that a run can do without."""
        limits, run = self._limits, run_id or ""
        if limits is None:
            return
        if is_limited(event):
            if self._run_bytes[run] + size > limits.run_bytes:
                raise run_limit_error(limits)
            self._check_shared_room(session_id, size)
        principal = self._principals.get(session_id)
        if principal is not None:
            files = event.changed.values() if isinstance(event, FilesChanged) else ()
            self._principal_bytes[principal] += size + sum(file["size"] for file in files)
        self._session_bytes[session_id] += size
        self._run_bytes[run] += size
        if isinstance(event, RunFinished):
            del self._run_bytes[run], self._download_bytes[run]

    def count_download(self, session_id: str, run_id: str, size: int) -> None:
        """Count bytes that a run brings from the web, before they are stored.

        Raises `JournalLimitReached`.
        """
        limits = self._limits
        if limits is None:
            return
        if self._download_bytes[run_id] + size > limits.download_bytes:
            raise download_limit_error(limits)
        self._check_shared_room(session_id, size)
        principal = self._principals.get(session_id)
        if principal is not None:
            self._principal_bytes[principal] += size
        self._session_bytes[session_id] += size
        self._download_bytes[run_id] += size

    def _check_shared_room(self, session_id: str, size: int) -> None:
        limits = self._limits
        assert limits is not None
        if self._session_bytes[session_id] + size > limits.session_bytes:
            raise session_limit_error(limits)
        if self._is_principal_full(session_id, limits, size):
            raise principal_limit_error(limits)

    def _is_principal_full(self, session_id: str, limits: JournalLimits, more: int = 0) -> bool:
        """Return whether the principal of a session may not record so many bytes more."""
        principal = self._principals.get(session_id)
        if principal is None:
            return False
        return self._principal_bytes[principal] + max(more, 1) > limits.principal_bytes


def is_limited(event: Event) -> bool:
    """Return whether an event is refused beyond the limits: the end of what has begun never is."""
    if isinstance(event, CallFinished):
        return event.error is None
    return isinstance(event, CallStarted | OutputWritten | ClocksRead | QuestionAsked)


def run_limit_error(limits: JournalLimits) -> JournalLimitReached:
    """Return the error for a run that has recorded too much."""
    return JournalLimitReached(
        f"The run has recorded {limits.run_bytes // MB:,} MB of arguments, answers and output, "
        "which is the limit.",
        remedy="Split the work into several runs, let code keep large data in workspace files, "
        "or raise the server's setting `[journal] run_mb`.",
    )


def download_limit_error(limits: JournalLimits) -> JournalLimitReached:
    """Return the error for a run that has downloaded too much."""
    return JournalLimitReached(
        f"The run has downloaded {limits.download_bytes // MB:,} MB, which is the limit.",
        remedy="Download less in one run, or raise the server's setting `[network] download_mb`.",
    )


def principal_limit_error(limits: JournalLimits) -> JournalLimitReached:
    """Return the error for a principal whose sessions have recorded too much."""
    return JournalLimitReached(
        f"Your sessions have recorded {limits.principal_bytes // MB:,} MB, which is the limit.",
        remedy="Ask who runs the server to remove old sessions (`gc`), or to raise its setting "
        "`[journal] principal_mb`.",
    )


def session_limit_error(limits: JournalLimits) -> JournalLimitReached:
    """Return the error for a session that has recorded too much."""
    return JournalLimitReached(
        f"The session has recorded {limits.session_bytes // MB:,} MB of code, arguments, answers "
        "and output, which is the limit.",
        remedy="Continue in another session, or raise the server's setting `[journal] session_mb`.",
    )
