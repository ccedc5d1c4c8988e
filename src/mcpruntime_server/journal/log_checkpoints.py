"""Write the write-ahead log into the database: in a quiet moment, unless the log has grown large.

A checkpoint waits for the disk several times, so the journal's thread writes it. The event loop
notices the quiet moment, because the thread sleeps as long as it can.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress

from .schema import restart_log

CHECKPOINT_IDLE_S = 0.5  # without a commit before a checkpoint: longer than the gaps in a run
CHECKPOINT_BYTES = 32 * 1024 * 1024  # written since the last checkpoint: the next does not wait


class LogCheckpoints:
    """Decides when a checkpoint is due, and calls `request` on the event loop then."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: Callable[[], None]) -> None:
        self._loop = loop
        self._request = request
        self._bytes_written = 0  # since the last checkpoint; counted with each commit
        self._last_commit = 0.0  # on the event loop, by its clock
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False

    @property
    def idle_timeout_s(self) -> float | None:
        """How long a moment is without a commit until it is quiet; None if no checkpoint is due."""
        return CHECKPOINT_IDLE_S if self._bytes_written else None

    @property
    def is_overdue(self) -> bool:
        """Whether the log has grown so large that no quiet moment is waited for."""
        return self._bytes_written > CHECKPOINT_BYTES

    def count_commit(self, size_bytes: int) -> None:
        """Note that something was committed, by any thread."""
        self._bytes_written += size_bytes + 1  # a commit without events has to be written as well

    def await_quiet(self) -> None:
        """Request a checkpoint when no call of this has come for a while; on the event loop."""
        self._last_commit = self._loop.time()
        self._start_timer(CHECKPOINT_IDLE_S)

    def stop(self) -> None:
        """Request no more; on the event loop."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def write(self, connection: sqlite3.Connection) -> None:
        """Write a checkpoint; in the thread."""
        self._bytes_written = 0
        with suppress(sqlite3.Error):  # it is never urgent: the next one does its work
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            restart_log(connection)

    def _start_timer(self, delay_s: float) -> None:
        if self._timer is None and not self._is_stopped:
            self._timer = self._loop.call_later(delay_s, self._check_quiet)

    def _check_quiet(self) -> None:
        self._timer = None
        remaining_s = self._last_commit + CHECKPOINT_IDLE_S - self._loop.time()
        if remaining_s > 0 and not self.is_overdue:
            self._start_timer(remaining_s)
        else:
            self._request()
