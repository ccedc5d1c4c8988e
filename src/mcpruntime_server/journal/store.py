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

from . import changes, queries
from . import lease as leases
from .blobs import BlobStore
from .events import Event, FileEntry, to_json
from .lease import Lease
from .rows import QuestionRow, Reply, RunRow, SessionRow, Stored
from .schema import connect_quick, connect_reader, failure, prepare
from .watch import Watch, offer_all
from .writer import Writer

MAX_BACKLOG = 64 * 1024 * 1024  # bytes that may wait for the disk before `append` refuses more
CLOSE_S = 5.0  # for the last events at the end; a disk that takes longer is not going to

T = TypeVar("T")
Connection = sqlite3.Connection
logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_journal(data_dir: Path, lease: Lease | None = None) -> AsyncIterator[Journal]:
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


def _open_files(data_dir: Path, lease: Lease | None) -> tuple[Lease, BlobStore, Connection]:
    path = data_dir / "journal.db"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        blobs = BlobStore(data_dir / "blobs")
        own = lease or Lease(data_dir)
    except OSError as exc:
        raise failure(exc, path) from exc
    try:
        return own, blobs, prepare(path)
    except BaseException:
        if lease is None:
            own.close()
        raise


class Journal:
    """The record of all sessions in one data folder, as one server sees it; made by `open_journal`."""

    def __init__(self, data_dir: Path, lease: Lease, blobs: BlobStore, connection: Connection) -> None:
        self.data_dir = data_dir
        self.owner = lease.owner
        self.blobs = blobs
        self._path = data_dir / "journal.db"
        self._writer = Writer(connection, connect_quick(self._path), self._path)
        self._readers: list[Connection] = []  # idle ones
        self._last: dict[str, int] = {}  # claimed session -> ordinal of its last event
        self._watches: defaultdict[str, set[Watch]] = defaultdict(set)

    # writing ----------------------------------------------------------------------------------

    def append(self, session: str, event: Event, run: str | None = None) -> Stored:
        """Add `event` to the log of a claimed session; it is on its way to the disk when this returns.

        Raises `ValueError` if the event holds something that is not JSON data, `JournalFailed` if the session is not
        claimed or too much is waiting for the disk.
        """
        if session not in self._last:
            raise JournalFailed(f"The session {session!r} is not claimed by this server.", remedy="Claim it first.")
        if self._writer.backlog > MAX_BACKLOG:
            raise JournalFailed(f"The journal {self._path} cannot keep up with the disk.", remedy="Free some space.")
        text = to_json(event)
        n = self._last[session] = self._last[session] + 1
        stored = Stored(session, n, run, time.time(), event)
        self._writer.put(partial(self._write, stored, text), len(text) + 100)
        offer_all(self._watches.get(session, ()), stored)
        return stored

    async def flush(self) -> None:
        """Return when all that was appended so far is committed.

        Raises `JournalFailed` if it could not be; it stays queued and is tried again.
        """
        await self._writer.flush().outcome()

    def begin_flush(self) -> Callable[[], Awaitable[Any]]:
        """Do what `flush` does, and return at once; whoever wants to know how it went calls and awaits the result."""
        return self._writer.flush().outcome

    def hurry(self) -> None:
        """Have what was appended so far committed in a moment, if it cannot wait as long as others may."""
        self._writer.hurry()

    async def create_session(
        self,
        session: str,
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
        row = SessionRow(session, name, principal, now, now, self.owner, tip, 0, tip or origin, purpose)
        await self.change(lambda rows: changes.create_session(rows, self.owner, row))
        self._last.setdefault(session, 0)
        return row

    async def claim(self, session: str) -> SessionRow:
        """Make this server the one that may append; raises `NotFound`, or `Unavailable` if another live one is that."""
        row, last = await self.change(lambda rows: changes.claim(rows, self.data_dir, self.owner, session))
        self._last.setdefault(session, last)
        return row

    async def release(self, session: str) -> None:
        """Let another server have the session once its events are committed; raises `JournalFailed`."""
        last = self._last.pop(session, None)
        if last is None:
            return
        try:
            await self.change(lambda rows: changes.release(rows, self.owner, session))
        except JournalFailed:
            self._last[session] = last
            raise

    async def pin(self, run: str, reason: str) -> None:
        """Keep a run, and with it its session, from being collected; raises `NotFound`."""
        await self.change(lambda rows: changes.pin(rows, run, reason))

    async def unpin(self, run: str) -> None:
        """Let a run be collected again."""
        await self.change(lambda rows: changes.unpin(rows, run))

    async def change(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in a transaction of its own, or with others, after all that was appended before; return its result.

        It is to be a matter of milliseconds, because others wait. Raises what it raises, or `JournalFailed`.
        """
        result: T = await self._writer.call(work)
        return result

    def _write(self, stored: Stored, text: str, rows: Connection) -> None:
        changes.write_event(rows, stored, *changes.split(self.blobs, stored.event, text))

    # reading ----------------------------------------------------------------------------------

    async def find_session(self, name_or_id: str, principal: str) -> SessionRow:
        """Return the principal's session of that id or name; raises `NotFound`."""
        return await self.read(lambda rows: queries.find_session(rows, name_or_id, principal))

    async def session(self, session: str) -> SessionRow:
        """Return a session, whoever's it is; raises `NotFound`."""
        return await self.read(lambda rows: queries.session_row(rows, session))

    async def sessions(self, principal: str | None = None) -> list[SessionRow]:
        """Return the sessions of one principal, or of all, the last used first."""
        return await self.read(lambda rows: queries.sessions(rows, principal))

    async def runs(self, session: str) -> list[RunRow]:
        """Return the runs that a session has made, the first first."""
        return await self.read(lambda rows: queries.runs(rows, session))

    async def run(self, run: str) -> RunRow:
        """Return one run; raises `NotFound`."""
        return await self.read(lambda rows: queries.run_row(rows, run))

    async def line(self, run: str | None) -> list[RunRow]:
        """Return the runs that led to the end of `run`, the first first, whichever sessions they lie in.

        None is the beginning, to which no run led. Raises `NotFound`.
        """
        return [] if run is None else await self.read(lambda rows: queries.line(rows, run))

    async def passed(self, session: str) -> list[RunRow]:
        """Return the runs that a session's lines pass through, those that it has left included, parents first."""

        def found(rows: Connection) -> list[RunRow]:
            return [queries.run_row(rows, run) for run, _ in queries.passed(rows, session)]

        return await self.read(found)

    async def files_at(
        self, run: str | None, damage: list[str] | None = None
    ) -> tuple[dict[str, FileEntry], list[str]]:
        """Return the workspace at the end of `run`, and the runs of its line whose files were announced and never came.

        Raises `NotFound`, or `JournalFailed` if one of the events is damaged; with `damage`, that is told there, and
        its run's files never came.
        """
        if run is None:
            return {}, []
        return await self.read(lambda rows: queries.files_at(rows, self.blobs, run, damage))

    async def find_request(self, session: str, key: str) -> RunRow | None:
        """Return the session's newest run that was started under the idempotency key `key`."""
        return await self.read(lambda rows: queries.run_of_request(rows, session, key))

    async def interrupted(self, principal: str | None = None) -> list[tuple[SessionRow, RunRow]]:
        """Return the unfinished runs of sessions that no live server has, the newest first."""

        def left(rows: Connection) -> list[tuple[SessionRow, RunRow]]:
            found = queries.unfinished(rows, principal)
            owners = {session.owner for session, _ in found if session.owner is not None}
            live = {owner for owner in owners if leases.alive(self.data_dir, owner)}
            return [(session, run) for session, run in found if session.owner not in live]

        return await self.read(left)

    async def queued(self, session: str) -> list[RunRow]:
        """Return the runs of a session that have been told of and have not begun, the first first."""
        return await self.read(lambda rows: queries.queued(rows, session))

    async def questions(self, principal: str | None = None) -> list[QuestionRow]:
        """Return what the runs of one principal wait for, or those of all, the oldest first."""
        return await self.read(lambda rows: queries.questions(rows, principal))

    async def reply(self, run: str, question: str, text: str) -> None:
        """Leave an answer for whichever server has the run's session; raises `NotFound`, `InvalidRequest`."""
        await self.change(lambda rows: changes.reply(rows, run, question, text))

    async def replies(self) -> list[Reply]:
        """Return the answers that other processes have left and that no server has taken yet."""
        return await to_thread.run_sync(self._with_reader, queries.replies)

    async def look_at_answers(
        self, session: str, last: int, work: Callable[[Iterator[tuple[str, int, str, Any]]], T]
    ) -> T:
        """Have `work` in a worker thread look at the calls that ended well among a session's `last` events.

        It is given run, number, target and value of each, newest first, and loads no more than it takes.
        """
        return await self.read(lambda rows: work(queries.answers(rows, self.blobs, session, last)))

    async def skill_uses(self) -> list[tuple[str, float]]:
        """Return what code said of skills that it used, as canonical JSON, and when."""
        return await self.read(queries.skill_uses)

    async def pins(self) -> dict[str, str]:
        """Return the runs that are kept from being collected, each with the reason."""
        return await self.read(queries.pins)

    async def events(
        self,
        session: str,
        run: str | None = None,
        after: int = 0,
        limit: int | None = None,
        kind: str | None = None,
        damage: list[str] | None = None,
    ) -> list[Stored]:
        """Return at most `limit` events of a session, of one run in it or of one kind, that come after number `after`.

        Raises `JournalFailed` if one of them is damaged; with `damage`, that is told there, and the rest is returned.
        """
        values = (session, after, run, -1 if limit is None else limit, kind)
        return await self.read(lambda rows: queries.load(rows, self.blobs, queries.EVENTS_OF, values, damage))

    @contextmanager
    def watch(self, session: str, after: int | None = None) -> Iterator[Watch]:
        """Follow a session's events: those recorded after number `after`, if it is given, then new ones as they happen.

        New events are seen only of sessions that this server has claimed.
        """
        start = self._last.get(session, 0) if after is None else after
        watch = Watch(lambda n, limit: self.events(session, after=n, limit=limit), start, behind=after is not None)
        self._watches[session].add(watch)
        try:
            yield watch
        finally:
            self._watches[session].discard(watch)
            if not self._watches[session]:
                del self._watches[session]

    async def put_blob(self, data: bytes) -> str:
        """Keep `data` and return its digest; raises `JournalFailed` if there is no room."""
        try:
            return await to_thread.run_sync(self.blobs.put, data)
        except OSError as exc:
            raise failure(exc, self.blobs.root) from exc

    async def get_blob(self, digest: str) -> bytes:
        """Return the content of `digest`; raises `NotFound`, or `JournalFailed` if it is damaged."""
        return await to_thread.run_sync(self.blobs.get, digest)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in a worker thread, with a connection that sees one moment and all that was appended before."""
        with suppress(JournalFailed):  # what cannot be written does not keep anybody from reading the rest
            await self.flush()
        return await to_thread.run_sync(self._with_reader, work)

    def _with_reader(self, work: Callable[[Connection], T]) -> T:
        try:
            connection = self._readers.pop() if self._readers else connect_reader(self._path)
            try:
                connection.execute("BEGIN")  # all that is read is of one moment
                return work(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._readers.append(connection)
        except sqlite3.Error as exc:
            raise failure(exc, self._path) from exc
        except UnicodeEncodeError:
            raise NotFound("There is nothing of that name: it is not valid text.") from None

    # the end ----------------------------------------------------------------------------------

    async def _close(self) -> None:
        for watch in [watch for watches in self._watches.values() for watch in watches]:
            watch.close()
        with anyio.move_on_after(CLOSE_S, shield=True):
            for session in list(self._last):
                try:
                    await self.release(session)
                except JournalFailed as exc:
                    logger.error("The last events of session %s were not recorded: %s", session, exc)
            while self._readers:  # before the writer: the last to leave puts the write-ahead log away
                self._readers.pop().close()
            await self._writer.stop()
