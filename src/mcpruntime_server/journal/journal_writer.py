"""The one thread that writes: it takes what has queued up and commits it together.

There is one exception. Waking a thread and being woken by it takes five times as long as committing two small rows, and
every run ends by waiting for that; so a flush of little, while nobody else writes, is done where it is asked for.

Rule 1: jobs are done in the order in which they were given; all that wait when the thread gets to them share a
transaction, so that a burst costs one commit. Who waits wakes the thread at once, an event alone a little later.
Rule 2: a job that is `kept` (an event) stays in the queue while the disk refuses, and is tried again with the next job
and once in a while, so the log never has a hole; any other job is told of the failure at once and forgotten.
Rule 3: a job that is wrong in itself fails alone; its neighbours are committed without it.
Rule 4: the event loop is never kept waiting for a disk or another writer: what cannot be done at once is the thread's.
Rule 5: the event loop is woken once per commit, and only if somebody waits. Checkpoints wait for a quiet moment.
This module knows transactions, not tables.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import anyio

from mcpruntime_server.errors import JournalFailed

from .schema import journal_error

CHECKPOINT_IDLE_S = (
    0.5  # quiet time before a checkpoint: long enough not to fall between the events of one run
)
RETRY_INTERVAL_S = 1.0  # between tries while the disk refuses
CHECKPOINT_BYTES = (
    32 * 1024 * 1024
)  # written without a quiet moment; then a checkpoint is due all the same
MAX_LINGER_S = 0.01  # an event that nobody waits for is written so much later: a thread at work slows the event loop down
URGENT_BYTES = 1024 * 1024  # of events, which are written at once
MAX_LOOP_COMMIT_BYTES = (
    12 * 1024
)  # so little is committed without the thread: into the page cache, in less than waking it takes
MAX_JOBS_PER_TRANSACTION = 1000  # jobs in one transaction, so that other servers get their turn


@dataclass(eq=False, slots=True)
class WriteJob:
    """Something to do inside a transaction; `size` is about what it holds in memory, in bytes."""

    work: Callable[[sqlite3.Connection], Any]
    is_event: bool = False
    size_bytes: int = 0
    finished: anyio.Event | None = None
    result: Any = None
    error: Exception | None = None

    async def wait_for_result(self) -> Any:
        """Wait until it is done, if it was queued, and return what `work` returned, or raise what it raised."""
        if self.finished is not None:
            await self.finished.wait()
        if self.error is not None:
            raise self.error
        return self.result


class JournalWriter:
    """Owns the thread and its connection; `put` and `call` belong to the event loop's thread."""

    def __init__(
        self, connection: sqlite3.Connection, quick: sqlite3.Connection, path: Path
    ) -> None:
        self._thread_connection = connection
        self._loop_connection = (
            quick  # of the event loop's thread; it never waits for another writer
        )
        self._path = path
        self._jobs: deque[WriteJob] = deque()
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._alarm: asyncio.TimerHandle | None = None  # wakes the thread for what nobody waits for
        self._soon_handle: asyncio.Handle | None = None  # commits what cannot linger
        self._lingers = False  # the alarm is for an event, not for a checkpoint
        self._commit_lock = threading.Lock()  # held by whoever takes jobs, until they are committed
        self._postponed = False  # the thread holds jobs that the disk has refused
        self._loop = (
            asyncio.get_running_loop()
        )  # anyio's own way to call back waits for the answer; this does not
        self._thread = threading.Thread(target=self._run_thread, name="journal", daemon=True)
        self._stopped = anyio.Event()
        self._bytes_in = 0  # counted by the loop
        self._bytes_out = 0  # counted by whoever commits, in its turn
        self._failed_event: Exception | None = (
            None  # why an event was left out; told to the next flush
        )
        self._since_checkpoint = 0
        self._is_stopping = False
        self._thread.start()

    @property
    def backlog_bytes(self) -> int:
        """Bytes that have been given and not been committed."""
        return self._bytes_in - self._bytes_out

    def enqueue(self, work: Callable[[sqlite3.Connection], Any], size: int) -> None:
        """Queue work that must not be lost."""
        self._bytes_in += size
        self._jobs.append(WriteJob(work, is_event=True, size_bytes=size))
        if self.backlog_bytes > URGENT_BYTES:
            self._wake()
        elif self._alarm is None or not self._lingers:
            self._wake_in(MAX_LINGER_S)
            self._lingers = True

    async def execute(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Do `work` after all that was queued before; raises what it raises, or `JournalFailed`."""
        return await self._submit(work).wait_for_result()

    def flush(self) -> WriteJob:
        """Commit all that was queued before; the job's `outcome` raises `JournalFailed` if it could not be."""
        if (self.backlog_bytes or self._failed_event is not None) and not self._commit_on_loop():
            return self._submit(self._raise_failed_event)
        return WriteJob(self._raise_failed_event)

    def flush_soon(self) -> None:
        """Commit what is queued as soon as the event loop has done what it is about to do."""
        if self._soon_handle is None:
            self._soon_handle = self._loop.call_soon(self._commit_soon)

    def _commit_soon(self) -> None:
        self._soon_handle = None
        if self.backlog_bytes and not self._commit_on_loop():
            self._wake()

    def _commit_on_loop(self) -> bool:
        """Commit here and now if that is a matter of microseconds; say whether it was done."""
        if (
            self.backlog_bytes > MAX_LOOP_COMMIT_BYTES
            or self._failed_event is not None
            or not self._commit_lock.acquire(blocking=False)
        ):
            return False
        try:
            if self._postponed:
                return False
            jobs = list(self._jobs)
            with transaction(self._loop_connection):
                for job in jobs:
                    job.result = job.work(self._loop_connection)
            self._jobs.clear()
            self._finish_jobs(jobs)
        except Exception:  # noqa: BLE001 - another writer's turn, a full disk, a wrong job: the thread deals with it
            return False
        finally:
            self._commit_lock.release()
        self._wake_in(CHECKPOINT_IDLE_S)  # for a checkpoint
        return True

    def _submit(self, work: Callable[[sqlite3.Connection], Any]) -> WriteJob:
        if self._is_stopping:
            raise JournalFailed(f"The journal {self._path} is closed.")
        job = WriteJob(work, finished=anyio.Event())
        self._jobs.append(job)
        self._wake()
        return job

    async def stop(self) -> None:
        """Commit what can be committed and end the thread."""
        self._is_stopping = True
        self._wake()
        await self._stopped.wait()
        self._thread.join()

    def _wake(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._wakes.put(None)

    def _wake_in(self, seconds: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(seconds, self._wake)
        self._lingers = False

    def _raise_failed_event(self, _: sqlite3.Connection) -> None:
        refused, self._failed_event = self._failed_event, None
        if refused is not None:
            raise JournalFailed(f"An event could not be recorded: {refused}") from refused

    # the thread -------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        waiting: list[WriteJob] = []
        while True:
            is_quiet = self._wait_for_wake(
                RETRY_INTERVAL_S
                if waiting
                else CHECKPOINT_IDLE_S
                if self._since_checkpoint
                else None
            )
            with self._commit_lock:
                while self._jobs and len(waiting) < MAX_JOBS_PER_TRANSACTION:
                    waiting.append(self._jobs.popleft())
                if waiting:
                    waiting = self._commit_jobs(waiting)
                self._postponed = bool(waiting)
            if is_quiet or self._since_checkpoint > CHECKPOINT_BYTES:
                self._checkpoint()
            if self._is_stopping and not self._jobs:
                break
        for connection in (self._thread_connection, self._loop_connection):
            connection.close()
        self._loop.call_soon_threadsafe(self._stopped.set)

    def _wait_for_wake(self, timeout: float | None) -> bool:
        """Wait to be woken, unless there is more to do; say whether nobody did in time."""
        is_quiet = False
        if len(self._jobs) < MAX_JOBS_PER_TRANSACTION:
            try:
                self._wakes.get(timeout=timeout)
            except Empty:
                is_quiet = True
            with suppress(Empty):
                while True:  # several wake-ups for the same jobs are one
                    self._wakes.get(block=False)
        return is_quiet

    def _commit_jobs(self, jobs: list[WriteJob]) -> list[WriteJob]:
        """Do `jobs`; return those that are to be tried again."""
        try:
            with transaction(self._thread_connection):
                for job in jobs:
                    job.result = job.work(self._thread_connection)
        except (sqlite3.OperationalError, OSError) as exc:
            return self._postpone(jobs, exc)
        except Exception as exc:  # noqa: BLE001 - whatever one job raises is that job's own result
            if type(exc) is sqlite3.DatabaseError:  # a damaged file
                return self._postpone(jobs, exc)
            return self._fail_job(jobs[0], exc) if len(jobs) == 1 else self._commit_one_by_one(jobs)
        self._finish_jobs(jobs)
        return []

    def _commit_one_by_one(self, jobs: Sequence[WriteJob]) -> list[WriteJob]:
        for index, job in enumerate(jobs):
            again = self._commit_jobs([job])
            if again:
                return again + self._postpone(jobs[index + 1 :], job.error)
        return []

    def _postpone(self, jobs: Sequence[WriteJob], cause: Exception | None) -> list[WriteJob]:
        error = (
            journal_error(cause, self._path)
            if isinstance(cause, sqlite3.Error | OSError)
            else cause
        )
        for job in jobs:
            job.error = error
        self._finish_jobs([job for job in jobs if not job.is_event])
        return [job for job in jobs if job.is_event]

    def _fail_job(self, job: WriteJob, cause: Exception) -> list[WriteJob]:
        job.error = cause
        if job.is_event:
            self._failed_event = cause
        self._finish_jobs([job])
        return []

    def _finish_jobs(self, jobs: Sequence[WriteJob]) -> None:
        size = sum(job.size_bytes for job in jobs)
        self._bytes_out += size
        self._since_checkpoint += size + 1
        waited_for = [job.finished for job in jobs if job.finished is not None]
        if waited_for:
            self._loop.call_soon_threadsafe(_set_all, waited_for)

    def _checkpoint(self) -> None:
        self._since_checkpoint = 0
        with suppress(sqlite3.Error):  # a checkpoint is never urgent: the next one does its work
            self._thread_connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done in the context, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _set_all(events: Sequence[anyio.Event]) -> None:
    for event in events:
        event.set()
