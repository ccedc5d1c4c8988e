"""Commit what the event loop appends, in order, without making the loop wait.

A small batch is committed on the event loop: it goes to the page cache in some 50 microseconds,
and waking a thread takes several times as long. A thread that works beside the event loop also
makes every system call of the loop wait for the interpreter lock, so the thread sleeps as long as
it can. It commits the rest: large batches, retries, and whatever cannot be done at once because
another process writes.

Rule 1: jobs are done in the order in which they were given. All jobs that wait when a commit
starts share its transaction, so that a burst costs one commit.
Rule 2: an event stays in the queue while the disk refuses it, and is tried again with the next job
and at intervals, so that the log never has a gap. Any other job fails at once.
Rule 3: a job that is wrong in itself fails alone; the jobs around it are committed.
Rule 4: the event loop never waits for the disk or for another writer.
Rule 5: a checkpoint waits for a quiet moment, unless the write-ahead log has grown large.
This module knows transactions, not tables.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import anyio

from mcpruntime_server.errors import JournalFailed

from .log_checkpoints import LogCheckpoints
from .schema import journal_error

MAX_LINGER_S = 0.01  # an event that nobody waits for is committed at most this much later
RETRY_INTERVAL_S = 1.0  # while the disk refuses
URGENT_BYTES = 1024 * 1024  # of waiting events: the thread is woken at once
MAX_LOOP_COMMIT_BYTES = 12 * 1024  # in one commit on the event loop
MAX_PREPARED_AT_ONCE = 8
MAX_JOBS_PER_TRANSACTION = 1000  # so that other servers get their turn


@dataclass(eq=False, slots=True)
class WriteJob:
    """Work to do inside a transaction; `size_bytes` is roughly what it holds in memory.

    `prepare` waits for the disk: it is called in the thread before each attempt, beside others.
    """

    work: Callable[[sqlite3.Connection], Any]
    prepare: Callable[[], None] | None = None
    is_event: bool = False
    size_bytes: int = 0
    finished: anyio.Event | None = None  # None: nobody waits
    result: Any = None
    error: Exception | None = None

    async def wait_for_result(self) -> Any:
        """Wait until the job is done, and return or raise what `work` did."""
        if self.finished is not None:
            await self.finished.wait()
        if self.error is not None:
            raise self.error
        return self.result


class JobQueue:
    """The jobs that wait, in order, and the size of the events among them.

    One end belongs to the event loop, the other to the holder of the commit lock.
    """

    def __init__(self) -> None:
        self.jobs: deque[WriteJob] = deque()
        self._bytes_in = 0  # counted by the loop
        self._bytes_out = 0  # counted by the holder of the lock

    @property
    def backlog_bytes(self) -> int:
        """The size of the events that are not committed yet."""
        return self._bytes_in - self._bytes_out

    def add(self, job: WriteJob) -> None:
        """Queue a job."""
        self._bytes_in += job.size_bytes
        self.jobs.append(job)

    def count_committed(self, size_bytes: int) -> None:
        """Note that events of that size do not wait any longer."""
        self._bytes_out += size_bytes


class CommitTimer:
    """Has the event loop commit what nobody waits for: after its callbacks, or a little later."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, queue: JobQueue, commit: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._queue = queue
        self._commit = commit
        self._backlog_since = 0.0  # by the loop's clock: when the oldest waiting event came
        self._linger_timer: asyncio.TimerHandle | None = None
        self._soon_handle: asyncio.Handle | None = None

    def note_first(self) -> None:
        """Note that an event comes for which no other one waits."""
        self._backlog_since = self._loop.time()

    def commit_in_time(self) -> None:
        """Commit what waits within `MAX_LINGER_S`."""
        if self._linger_timer is None:
            self._linger_timer = self._loop.call_later(MAX_LINGER_S, self._commit_lingering)

    def commit_soon(self) -> None:
        """Commit what waits as soon as the event loop has finished its current callbacks."""
        if self._soon_handle is None:
            self._soon_handle = self._loop.call_soon(self._commit_now)

    def stop(self) -> None:
        """Leave the rest to the thread."""
        if self._linger_timer is not None:
            self._linger_timer.cancel()

    def _commit_lingering(self) -> None:
        """Commit the events that nobody has waited for, if they have waited long enough."""
        self._linger_timer = None
        remaining_s = self._backlog_since + MAX_LINGER_S - self._loop.time()
        if self._queue.backlog_bytes and remaining_s > 0:  # older ones were committed meanwhile
            self._linger_timer = self._loop.call_later(remaining_s, self._commit_lingering)
        else:
            self._commit_now()

    def _commit_now(self) -> None:
        self._soon_handle = None
        self._commit()


class JournalWriter:
    """Two connections and the thread; call its methods from the event loop's thread only."""

    def __init__(
        self,
        thread_connection: sqlite3.Connection,
        loop_connection: sqlite3.Connection,
        path: Path,
    ) -> None:
        """Start the thread; `loop_connection` must never wait for another writer."""
        self._thread_connection = thread_connection
        self._loop_connection = loop_connection
        self._path = path
        self._queue = JobQueue()
        self._loop = asyncio.get_running_loop()
        self._timer = CommitTimer(self._loop, self._queue, self._commit_backlog)
        self._wakes: SimpleQueue[bool] = SimpleQueue()  # for the thread; True: a quiet moment
        self._checkpoints = LogCheckpoints(self._loop, partial(self._wakes.put, True))
        self._commit_lock = threading.Lock()  # held from taking jobs until they are committed
        self._unnotified: list[anyio.Event] = []  # of finished jobs; by the holder of the lock
        self._has_postponed = False  # the thread holds jobs that the disk refused
        self._failed_event: Exception | None = None  # raised by the next flush
        self._is_stopping = False
        self._stopped = anyio.Event()
        self._thread = threading.Thread(target=self._run_thread, name="journal", daemon=True)
        self._thread.start()

    @property
    def backlog_bytes(self) -> int:
        """The size of the events that are not committed yet."""
        return self._queue.backlog_bytes

    def enqueue(
        self,
        work: Callable[[sqlite3.Connection], Any],
        size_bytes: int,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Queue an event, which must not be lost; one with `prepare` is large."""
        if not self.backlog_bytes:
            self._timer.note_first()
        self._queue.add(WriteJob(work, prepare, is_event=True, size_bytes=size_bytes))
        if self.backlog_bytes > URGENT_BYTES:
            self._wake_thread()
        else:
            self._timer.commit_in_time()

    async def execute(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Do `work` after all jobs that are queued; raises what it raises, or `JournalFailed`."""
        return await self._submit(work).wait_for_result()

    def flush(self) -> WriteJob:
        """Commit all jobs that are queued; the result of the returned job says how that went."""
        if not self.backlog_bytes and self._failed_event is None:
            return WriteJob(self._raise_failed_event)
        if self._commit_on_loop():
            return WriteJob(self._raise_failed_event)
        return self._submit(self._raise_failed_event)

    def flush_soon(self) -> None:
        """Commit what is queued as soon as the event loop has finished its current callbacks."""
        self._timer.commit_soon()

    async def stop(self) -> None:
        """Commit what can be committed and end the thread."""
        self._is_stopping = True
        self._checkpoints.stop()
        self._timer.stop()
        self._wake_thread()
        await self._stopped.wait()
        self._thread.join()

    # on the event loop ----------------------------------------------------------------------

    def _commit_backlog(self) -> None:
        if self.backlog_bytes and not self._commit_on_loop():
            self._wake_thread()

    def _commit_on_loop(self) -> bool:
        """Commit all jobs here if that takes microseconds; say whether it was done."""
        if self.backlog_bytes > MAX_LOOP_COMMIT_BYTES or self._failed_event is not None:
            return False  # no smaller job has anything to prepare
        if not self._commit_lock.acquire(blocking=False):
            return False
        try:
            if self._has_postponed:
                return False
            jobs = list(self._queue.jobs)
            with transaction(self._loop_connection):
                for job in jobs:
                    job.result = job.work(self._loop_connection)
            self._queue.jobs.clear()
            self._finish_jobs(jobs)
        except Exception:  # noqa: BLE001 - a busy or full disk, a wrong job: the thread handles it
            return False
        finally:
            waiters = self._take_waiters()
            self._commit_lock.release()
        _set_all(waiters)
        self._checkpoints.await_quiet()
        return True

    def _submit(self, work: Callable[[sqlite3.Connection], Any]) -> WriteJob:
        if self._is_stopping:
            raise JournalFailed(f"The journal {self._path} is closed.")
        job = WriteJob(work, finished=anyio.Event())
        self._queue.add(job)
        self._wake_thread()
        return job

    def _wake_thread(self) -> None:
        self._wakes.put(False)

    def _raise_failed_event(self, _: sqlite3.Connection) -> None:
        failed, self._failed_event = self._failed_event, None
        if failed is not None:
            raise JournalFailed(f"An event could not be recorded: {failed}") from failed

    # in the thread --------------------------------------------------------------------------

    def _run_thread(self) -> None:
        postponed: list[WriteJob] = []
        while True:
            is_quiet = self._wait_for_wake(bool(postponed))
            if self._queue.jobs or postponed:
                postponed = self._commit_waiting(postponed)
            if is_quiet or self._checkpoints.is_overdue:
                self._checkpoints.write(self._thread_connection)
            if self._is_stopping and not self._queue.jobs:
                break
        for connection in (self._thread_connection, self._loop_connection):
            connection.close()
        self._loop.call_soon_threadsafe(self._stopped.set)

    def _commit_waiting(self, postponed: list[WriteJob]) -> list[WriteJob]:
        """Commit `postponed` and what is queued; return what the disk refused.

        Waiting tasks are woken when the lock is free again: the next commit may be the loop's.
        """
        with self._commit_lock:
            while self._queue.jobs and len(postponed) < MAX_JOBS_PER_TRANSACTION:
                postponed.append(self._queue.jobs.popleft())
            if postponed:
                postponed = self._commit_jobs(postponed)
            self._has_postponed = bool(postponed)
            waiters = self._take_waiters()
        if waiters:  # one wake-up of the loop for all of them
            self._loop.call_soon_threadsafe(_set_all, waiters)
        return postponed

    def _wait_for_wake(self, has_postponed: bool) -> bool:
        """Wait for jobs, a retry or a checkpoint; return whether the moment is quiet."""
        if len(self._queue.jobs) >= MAX_JOBS_PER_TRANSACTION:
            return False
        timeout_s = RETRY_INTERVAL_S if has_postponed else self._checkpoints.idle_timeout_s
        try:
            wakes = [self._wakes.get(timeout=timeout_s)]
        except Empty:
            return True
        with suppress(Empty):
            while True:  # several wake-ups for the same jobs count as one
                wakes.append(self._wakes.get(block=False))
        return all(wakes)

    def _commit_jobs(self, jobs: list[WriteJob]) -> list[WriteJob]:
        """Do `jobs` in one transaction; return those to try again."""
        try:
            _prepare_jobs(jobs)
            with transaction(self._thread_connection):
                for job in jobs:
                    job.result = job.work(self._thread_connection)
        except (sqlite3.OperationalError, OSError) as exc:
            return self._postpone(jobs, exc)
        except Exception as exc:  # noqa: BLE001 - whatever a job raises is its own result
            if type(exc) is sqlite3.DatabaseError:  # a damaged file
                return self._postpone(jobs, exc)
            if len(jobs) == 1:
                self._fail_job(jobs[0], exc)
                return []
            return self._commit_one_by_one(jobs)
        self._finish_jobs(jobs)
        return []

    def _commit_one_by_one(self, jobs: Sequence[WriteJob]) -> list[WriteJob]:
        for index, job in enumerate(jobs):
            again = self._commit_jobs([job])
            if again:
                return again + self._postpone(jobs[index + 1 :], job.error)
        return []

    def _postpone(self, jobs: Sequence[WriteJob], cause: Exception | None) -> list[WriteJob]:
        """Fail `jobs`, all but the events, which are returned to be tried again."""
        error = cause
        if isinstance(cause, sqlite3.Error | OSError):
            error = journal_error(cause, self._path)
        for job in jobs:
            job.error = error
        self._finish_jobs([job for job in jobs if not job.is_event])
        return [job for job in jobs if job.is_event]

    def _fail_job(self, job: WriteJob, cause: Exception) -> None:
        job.error = cause
        if job.is_event:
            self._failed_event = cause
        self._finish_jobs([job])

    def _finish_jobs(self, jobs: Sequence[WriteJob]) -> None:
        size_bytes = sum(job.size_bytes for job in jobs)
        self._queue.count_committed(size_bytes)
        self._checkpoints.count_commit(size_bytes)
        self._unnotified += [job.finished for job in jobs if job.finished is not None]

    def _take_waiters(self) -> list[anyio.Event]:
        waiters, self._unnotified = self._unnotified, []
        return waiters


def _prepare_jobs(jobs: Sequence[WriteJob]) -> None:
    """Prepare `jobs` side by side; raises what one of them raises."""
    prepares = [job.prepare for job in jobs if job.prepare is not None]
    if prepares:
        with ThreadPoolExecutor(MAX_PREPARED_AT_ONCE) as pool:
            for prepared in [pool.submit(prepare) for prepare in prepares]:
                prepared.result()


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
