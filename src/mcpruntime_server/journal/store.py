"""The journal: the only source of truth, in one SQLite file with a blob store beside it.

Rule 1: the tables are in `schema`; the statements that write rows are in `changes`, those that read them in `queries`.
Rule 2: only the server that has claimed a session appends to it, so it numbers the events itself and `append` needs no
answer from the disk. An event counts as recorded when a `flush` that came after it has returned.
Rule 3: events go through the one writer thread. Reads use connections of their own, in worker threads, and see
everything that was appended before them.
Rule 4: several servers may share the folder; a dead server's sessions can be claimed by any other.
It does not know sandboxes, tools or requests.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_thread

from mcpruntime_server.errors import JournalFailed, NotFound

from . import mutations, queries
from . import server_lease as leases
from .blob_store import BlobStore
from .event_tail import EventTail, push_to_all
from .events import Event, FileEntry, event_to_json
from .journal_writer import JournalWriter
from .rows import QuestionRow, RunRow, SessionRow, StoredEvent, SubmittedAnswer
from .schema import connect_nonblocking, connect_reader, journal_error, open_for_writing
from .server_lease import ServerLease

MAX_BACKLOG_BYTES = (
    64 * 1024 * 1024
)  # bytes that may wait for the disk before `append` refuses more
CLOSE_TIMEOUT_S = 5.0  # for the last events at the end; a disk that takes longer is not going to

T = TypeVar("T")
Connection = sqlite3.Connection
logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_journal(data_dir: Path, lease: ServerLease | None = None) -> AsyncIterator[Journal]:
    """Open the journal in `data_dir`, made if it is not there, as the server that holds `lease` (else one of its own).

    Raises `JournalFailed` if it is damaged, not writable, or written by a newer version.
    """
    own, blobs, connection = await to_thread.run_sync(_open_files, data_dir, lease)
    try:
        journal = Journal(data_dir, own, blobs, connection)
        try:
            yield journal
        finally:
            await journal._close()
    finally:
        if lease is None:
            own.close()


def _open_files(
    data_dir: Path, lease: ServerLease | None
) -> tuple[ServerLease, BlobStore, Connection]:
    path = data_dir / "journal.db"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        blobs = BlobStore(data_dir / "blobs")
        own = lease or ServerLease(data_dir)
    except OSError as exc:
        raise journal_error(exc, path) from exc
    try:
        return own, blobs, open_for_writing(path)
    except BaseException:
        if lease is None:
            own.close()
        raise


class Journal:
    """The record of all sessions in one data folder, as one server sees it; made by `open_journal`."""

    def __init__(
        self, data_dir: Path, lease: ServerLease, blobs: BlobStore, connection: Connection
    ) -> None:
        self.data_dir = data_dir
        self.owner = lease.owner
        self.blobs = blobs
        self._path = data_dir / "journal.db"
        self._writer = JournalWriter(connection, connect_nonblocking(self._path), self._path)
        self._idle_readers: list[Connection] = []  # idle ones
        self._last_sequences: dict[str, int] = {}  # claimed session -> ordinal of its last event
        self._tails: defaultdict[str, set[EventTail]] = defaultdict(set)

    # writing ----------------------------------------------------------------------------------

    def append(self, session_id: str, event: Event, run_id: str | None = None) -> StoredEvent:
        """Add `event` to the log of a claimed session; it is on its way to the disk when this returns.

        Raises `ValueError` if the event holds something that is not JSON data, `JournalFailed` if the session is not
        claimed or too much is waiting for the disk.
        """
        if session_id not in self._last_sequences:
            raise JournalFailed(
                f"The session {session_id!r} is not claimed by this server.",
                remedy="Claim it first.",
            )
        if self._writer.backlog_bytes > MAX_BACKLOG_BYTES:
            raise JournalFailed(
                f"The journal {self._path} cannot keep up with the disk.", remedy="Free some space."
            )
        text = event_to_json(event)
        n = self._last_sequences[session_id] = self._last_sequences[session_id] + 1
        stored = StoredEvent(session_id, n, run_id, time.time(), event)
        self._writer.enqueue(partial(self._insert_event, stored, text), len(text) + 100)
        push_to_all(self._tails.get(session_id, ()), stored)
        return stored

    async def flush(self) -> None:
        """Return when all that was appended so far is committed.

        Raises `JournalFailed` if it could not be; it stays queued and is tried again.
        """
        await self._writer.flush().wait_for_result()

    def start_flush(self) -> Callable[[], Awaitable[Any]]:
        """Do what `flush` does, and return at once; whoever wants to know how it went calls and awaits the result."""
        return self._writer.flush().wait_for_result

    def flush_soon(self) -> None:
        """Have what was appended so far committed in a moment, if it cannot wait as long as others may."""
        self._writer.flush_soon()

    async def create_session(
        self,
        session_id: str,
        name: str | None,
        principal: str,
        tip: str | None = None,
        purpose: str = "",
        origin: str | None = None,
    ) -> SessionRow:
        """Make and claim a session, with `tip` a fork of that run; without one, `origin` may be the run that made it.

        Raises `InvalidRequest` if the principal has one of that name already, `NotFound` if there is no run `tip`.
        """
        now = time.time()
        row = SessionRow(
            session_id, name, principal, now, now, self.owner, tip, 0, tip or origin, purpose
        )
        await self.write(lambda rows: mutations.insert_session(rows, self.owner, row))
        self._last_sequences.setdefault(session_id, 0)
        return row

    async def claim_session(self, session_id: str) -> SessionRow:
        """Make this server the one that may append; raises `NotFound`, or `Unavailable` if another live one is that."""
        row, last = await self.write(
            lambda rows: mutations.claim_session(rows, self.data_dir, self.owner, session_id)
        )
        self._last_sequences.setdefault(session_id, last)
        return row

    async def release_session(self, session_id: str) -> None:
        """Let another server have the session once its events are committed; raises `JournalFailed`."""
        last = self._last_sequences.pop(session_id, None)
        if last is None:
            return
        try:
            await self.write(lambda rows: mutations.release_session(rows, self.owner, session_id))
        except JournalFailed:
            self._last_sequences[session_id] = last
            raise

    async def pin_run(self, run_id: str, reason: str) -> None:
        """Keep a run, and with it its session, from being collected; raises `NotFound`."""
        await self.write(lambda rows: mutations.pin_run(rows, run_id, reason))

    async def unpin_run(self, run_id: str) -> None:
        """Let a run be collected again."""
        await self.write(lambda rows: mutations.unpin_run(rows, run_id))

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in a transaction of its own, or with others, after all that was appended before; return its result.

        It is to be a matter of milliseconds, because others wait. Raises what it raises, or `JournalFailed`.
        """
        result: T = await self._writer.execute(work)
        return result

    def _insert_event(self, stored: StoredEvent, text: str, rows: Connection) -> None:
        mutations.insert_event(
            rows, stored, *mutations.split_large_fields(self.blobs, stored.event, text)
        )

    # reading ----------------------------------------------------------------------------------

    async def find_session(self, name_or_id: str, principal: str) -> SessionRow:
        """Return the principal's session of that id or name; raises `NotFound`."""
        return await self.read(lambda rows: queries.find_session(rows, name_or_id, principal))

    async def load_session(self, session_id: str) -> SessionRow:
        """Return a session, whoever's it is; raises `NotFound`."""
        return await self.read(lambda rows: queries.load_session(rows, session_id))

    async def list_sessions(self, principal: str | None = None) -> list[SessionRow]:
        """Return the sessions of one principal, or of all, the last used first."""
        return await self.read(lambda rows: queries.list_sessions(rows, principal))

    async def list_runs(self, session_id: str) -> list[RunRow]:
        """Return the runs that a session has made, the first first."""
        return await self.read(lambda rows: queries.list_runs(rows, session_id))

    async def load_run(self, run_id: str) -> RunRow:
        """Return one run; raises `NotFound`."""
        return await self.read(lambda rows: queries.load_run(rows, run_id))

    async def load_lineage(self, run_id: str | None) -> list[RunRow]:
        """Return the runs that led to the end of `run`, the first first, whichever sessions they lie in.

        None is the beginning, to which no run led. Raises `NotFound`.
        """
        return (
            []
            if run_id is None
            else await self.read(lambda rows: queries.load_lineage(rows, run_id))
        )

    async def list_visited_runs(self, session_id: str) -> list[RunRow]:
        """Return the runs that a session's lines pass through, those that it has left included, parents first."""

        def found(rows: Connection) -> list[RunRow]:
            return [
                queries.load_run(rows, run)
                for run, _ in queries.list_visited_runs(rows, session_id)
            ]

        return await self.read(found)

    async def load_files_at(
        self, run_id: str | None, damage: list[str] | None = None
    ) -> tuple[dict[str, FileEntry], list[str]]:
        """Return the workspace at the end of `run`, and the runs of its line whose files were announced and never came.

        Raises `NotFound`, or `JournalFailed` if one of the events is damaged; with `damage`, that is told there, and
        its run's files never came.
        """
        if run_id is None:
            return {}, []
        return await self.read(lambda rows: queries.load_files_at(rows, self.blobs, run_id, damage))

    async def find_run_by_key(self, session_id: str, key: str) -> RunRow | None:
        """Return the session's newest run that was started under the idempotency key `key`."""
        return await self.read(lambda rows: queries.find_run_by_key(rows, session_id, key))

    async def list_interrupted_runs(
        self, principal: str | None = None
    ) -> list[tuple[SessionRow, RunRow]]:
        """Return the unfinished runs of sessions that no live server has, the newest first."""

        def left(rows: Connection) -> list[tuple[SessionRow, RunRow]]:
            found = queries.list_unfinished_runs(rows, principal)
            owners = {session.owner for session, _ in found if session.owner is not None}
            live = {owner for owner in owners if leases.is_server_alive(self.data_dir, owner)}
            return [(session, run) for session, run in found if session.owner not in live]

        return await self.read(left)

    async def list_queued_runs(self, session_id: str) -> list[RunRow]:
        """Return the runs of a session that have been told of and have not begun, the first first."""
        return await self.read(lambda rows: queries.list_queued_runs(rows, session_id))

    async def list_pending_questions(self, principal: str | None = None) -> list[QuestionRow]:
        """Return what the runs of one principal wait for, or those of all, the oldest first."""
        return await self.read(lambda rows: queries.list_pending_questions(rows, principal))

    async def submit_answer(self, run_id: str, question: str, text: str) -> None:
        """Leave an answer for whichever server has the run's session; raises `NotFound`, `InvalidRequest`."""
        await self.write(lambda rows: mutations.store_answer(rows, run_id, question, text))

    async def list_submitted_answers(self) -> list[SubmittedAnswer]:
        """Return the answers that other processes have left and that no server has taken yet."""
        return await to_thread.run_sync(self._run_read, queries.list_submitted_answers)

    async def scan_call_results(
        self, session_id: str, last: int, work: Callable[[Iterator[tuple[str, int, str, Any]]], T]
    ) -> T:
        """Have `work` in a worker thread look at the calls that ended well among a session's `last` events.

        It is given run, number, target and value of each, newest first, and loads no more than it takes.
        """
        return await self.read(
            lambda rows: work(queries.iter_call_results(rows, self.blobs, session_id, last))
        )

    async def load_skill_uses(self) -> list[tuple[str, float]]:
        """Return what code said of skills that it used, as canonical JSON, and when."""
        return await self.read(queries.load_skill_uses)

    async def load_pins(self) -> dict[str, str]:
        """Return the runs that are kept from being collected, each with the reason."""
        return await self.read(queries.load_pins)

    async def load_events(
        self,
        session_id: str,
        run_id: str | None = None,
        after: int = 0,
        limit: int | None = None,
        kind: str | None = None,
        damage: list[str] | None = None,
    ) -> list[StoredEvent]:
        """Return at most `limit` events of a session, of one run in it or of one kind, that come after number `after`.

        Raises `JournalFailed` if one of them is damaged; with `damage`, that is told there, and the rest is returned.
        """
        values = (session_id, after, run_id, -1 if limit is None else limit, kind)
        return await self.read(
            lambda rows: queries.load_events(
                rows, self.blobs, queries.SELECT_SESSION_EVENTS, values, damage
            )
        )

    @contextmanager
    def tail_events(self, session_id: str, after: int | None = None) -> Iterator[EventTail]:
        """Follow a session's events: those recorded after number `after`, if it is given, then new ones as they happen.

        New events are seen only of sessions that this server has claimed.
        """
        start = self._last_sequences.get(session_id, 0) if after is None else after
        watch = EventTail(
            lambda n, limit: self.load_events(session_id, after=n, limit=limit),
            start,
            behind=after is not None,
        )
        self._tails[session_id].add(watch)
        try:
            yield watch
        finally:
            self._tails[session_id].discard(watch)
            if not self._tails[session_id]:
                del self._tails[session_id]

    async def put_blob(self, data: bytes) -> str:
        """Keep `data` and return its digest; raises `JournalFailed` if there is no room."""
        try:
            return await to_thread.run_sync(self.blobs.put, data)
        except OSError as exc:
            raise journal_error(exc, self.blobs.root) from exc

    async def get_blob(self, digest: str) -> bytes:
        """Return the content of `digest`; raises `NotFound`, or `JournalFailed` if it is damaged."""
        return await to_thread.run_sync(self.blobs.get, digest)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in a worker thread, with a connection that sees one moment and all that was appended before."""
        with suppress(
            JournalFailed
        ):  # what cannot be written does not keep anybody from reading the rest
            await self.flush()
        return await to_thread.run_sync(self._run_read, work)

    def _run_read(self, work: Callable[[Connection], T]) -> T:
        try:
            connection = (
                self._idle_readers.pop() if self._idle_readers else connect_reader(self._path)
            )
            try:
                connection.execute("BEGIN")  # all that is read is of one moment
                return work(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._idle_readers.append(connection)
        except sqlite3.Error as exc:
            raise journal_error(exc, self._path) from exc
        except UnicodeEncodeError:
            raise NotFound("There is nothing of that name: it is not valid text.") from None

    # the end ----------------------------------------------------------------------------------

    async def _close(self) -> None:
        for watch in [watch for watches in self._tails.values() for watch in watches]:
            watch.close()
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            for session in list(self._last_sequences):
                try:
                    await self.release_session(session)
                except JournalFailed as exc:
                    logger.error(
                        "The last events of session %s were not recorded: %s", session, exc
                    )
            while (
                self._idle_readers
            ):  # before the writer: the last to leave puts the write-ahead log away
                self._idle_readers.pop().close()
            await self._writer.stop()
