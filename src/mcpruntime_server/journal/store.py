"""The journal: the only source of truth, in one SQLite file with a blob store beside it.

Rule 1: every statement that reads or writes rows is in this module; the tables themselves are in `schema`.
Rule 2: only the server that has claimed a session appends to it, so it numbers the events itself and `append` needs no
answer from the disk. An event counts as recorded when a `flush` that came after it has returned.
Rule 3: events go through the one writer thread. Reads use connections of their own, in worker threads, and see
everything that was appended before them.
Rule 4: several servers may share the folder; a dead server's sessions can be claimed by any other.
It does not know sandboxes, tools or requests.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_thread

from mcpruntime_server.errors import InvalidRequest, JournalFailed, NotFound, Unavailable

from . import lease as leases
from .blobs import BlobStore
from .events import VERSION, Event, RunFinished, RunStarted, fields_of, from_fields, kind_of, text_of, to_json
from .lease import Lease
from .rows import RunRow, SessionRow, Stored
from .schema import connect_quick, connect_reader, failure, prepare
from .watch import Watch, offer_all
from .writer import Writer

INLINE = 16 * 1024  # characters; longer fields go to the blob store, where equal ones are kept once
MAX_BACKLOG = 64 * 1024 * 1024  # bytes that may wait for the disk before `append` refuses more
CLOSE_S = 5.0  # for the last events at the end; a disk that takes longer is not going to

T = TypeVar("T")
Connection = sqlite3.Connection
logger = logging.getLogger(__name__)

SESSIONS = """
    SELECT id, name, principal, created, used, owner, tip, (SELECT count(*) FROM runs WHERE session = sessions.id)
    FROM sessions"""
RUNS = "SELECT id, session, parent, step, name, status, started, finished, request FROM runs"


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
        self._writer.put(partial(self._write_event, stored, text), len(text) + 100)
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

    async def create_session(self, session: str, name: str | None, principal: str) -> SessionRow:
        """Make and claim a session; raises `InvalidRequest` if the principal has one of that name already."""
        row: SessionRow = await self._writer.call(partial(self._create, session, name, principal))
        self._last.setdefault(session, 0)
        return row

    async def claim(self, session: str) -> SessionRow:
        """Make this server the one that may append; raises `NotFound`, or `Unavailable` if another live one is that."""
        row, last = await self._writer.call(partial(self._claim, session))
        self._last.setdefault(session, last)
        claimed: SessionRow = row
        return claimed

    async def release(self, session: str) -> None:
        """Let another server have the session once its events are committed; raises `JournalFailed`."""
        last = self._last.pop(session, None)
        if last is None:
            return
        try:
            await self._writer.call(partial(self._release, session))
        except JournalFailed:
            self._last[session] = last
            raise

    def _write_event(self, stored: Stored, text: str, connection: Connection) -> None:
        event = stored.event
        if isinstance(event, RunStarted):
            self._start_run(stored, event, connection)
        body, large = self._split(event, text) if len(text) > INLINE else (text, None)
        connection.execute(
            "INSERT INTO events (session, n, run, at, kind, version, body, large) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (stored.session, stored.n, stored.run, stored.at, kind_of(event), VERSION, body, large),
        )
        if isinstance(event, RunFinished):
            change = "UPDATE runs SET status = ?, finished = ? WHERE id = ?"
            connection.execute(change, (event.status, stored.at, stored.run))
            connection.execute("UPDATE sessions SET used = ? WHERE id = ?", (stored.at, stored.session))

    def _start_run(self, stored: Stored, event: RunStarted, connection: Connection) -> None:
        key = event.idempotency_key
        request = (
            key and key.encode("utf-8", "backslashreplace").decode()
        )  # a stranger's text: SQLite takes no surrogates
        connection.execute(
            """INSERT INTO runs (id, session, parent, step, name, status, started, request, first)
            VALUES (?, ?, ?, ?, ?, 'running', ?, ?, ?)""",
            (event.run, stored.session, event.parent, event.step, event.name, stored.at, request, stored.n),
        )
        connection.execute("UPDATE sessions SET tip = ?, used = ? WHERE id = ?", (event.run, stored.at, stored.session))

    def _split(self, event: Event, text: str) -> tuple[str, str | None]:
        """Return the row's `body` and `large` for an event whose text is long."""
        fields = dict(fields_of(event))
        large = {}
        for name, value in list(fields.items()):
            part = text_of(value)
            if len(part) > INLINE:
                large[name] = self.blobs.put(part.encode("ascii"))
                del fields[name]
        return (text_of(fields), text_of(large)) if large else (text, None)

    def _create(self, session: str, name: str | None, principal: str, connection: Connection) -> SessionRow:
        now = time.time()
        try:
            connection.execute(
                "INSERT INTO sessions (id, name, principal, created, used, owner) VALUES (?, ?, ?, ?, ?, ?)",
                (session, name, principal, now, now, self.owner),
            )
        except sqlite3.IntegrityError:
            raise InvalidRequest(
                f"There is a session {name or session!r} already.", remedy="Use it, or another name."
            ) from None
        except UnicodeEncodeError:
            raise InvalidRequest(f"The session name {name!r} is not valid text.", remedy="Use another name.") from None
        return SessionRow(session, name, principal, now, now, self.owner, None, 0)

    def _claim(self, session: str, connection: Connection) -> tuple[SessionRow, int]:
        found = connection.execute(f"{SESSIONS} WHERE id = ?", (session,)).fetchone()
        if found is None:
            raise NotFound(f"There is no session {session!r}.")
        row = SessionRow(*found)
        if row.owner not in (None, self.owner) and leases.alive(self.data_dir, str(row.owner)):
            pid = leases.process_id(self.data_dir, str(row.owner))
            raise Unavailable(
                f"The session {row.name or row.id!r} is in use by another server (process {pid}).",
                remedy="Use that server, end it, or work in a session of another name.",
            )
        connection.execute("UPDATE sessions SET owner = ? WHERE id = ?", (self.owner, session))
        query = "SELECT coalesce(max(n), 0) FROM events WHERE session = ?"
        (last,) = connection.execute(query, (session,)).fetchone()
        return replace(row, owner=self.owner), last

    def _release(self, session: str, connection: Connection) -> None:
        connection.execute("UPDATE sessions SET owner = NULL WHERE id = ? AND owner = ?", (session, self.owner))

    # reading ----------------------------------------------------------------------------------

    async def find_session(self, name_or_id: str, principal: str) -> SessionRow:
        """Return the principal's session of that id or name; raises `NotFound`."""
        query = f"{SESSIONS} WHERE principal = ? AND (id = ? OR name = ?) ORDER BY id = ? DESC"
        rows = await self._rows(query, (principal, name_or_id, name_or_id, name_or_id))
        if not rows:
            raise NotFound(f"There is no session {name_or_id!r}.")
        return SessionRow(*rows[0])

    async def sessions(self, principal: str | None = None) -> list[SessionRow]:
        """Return the sessions of one principal, or of all, the last used first."""
        query = f"{SESSIONS} WHERE ?1 IS NULL OR principal = ?1 ORDER BY used DESC"
        return [SessionRow(*row) for row in await self._rows(query, (principal,))]

    async def runs(self, session: str) -> list[RunRow]:
        """Return the runs that a session has made, the first first."""
        query = f"{RUNS} WHERE session = ? ORDER BY started, rowid"
        return [RunRow(*row) for row in await self._rows(query, (session,))]

    async def run(self, run: str) -> RunRow:
        """Return one run; raises `NotFound`."""
        rows = await self._rows(f"{RUNS} WHERE id = ?", (run,))
        if not rows:
            raise NotFound(f"There is no run {run!r}.")
        return RunRow(*rows[0])

    async def events(
        self, session: str, run: str | None = None, after: int = 0, limit: int | None = None, kind: str | None = None
    ) -> list[Stored]:
        """Return at most `limit` events of a session, of one run in it or of one kind, that come after number `after`.

        Raises `JournalFailed` if one of them is damaged.
        """
        query = """
            SELECT n, run, at, kind, body, large FROM events
            WHERE session = ?1 AND n > max(?2, coalesce((SELECT first - 1 FROM runs WHERE id = ?3), 0))
            AND (?3 IS NULL OR run = ?3) AND (?5 IS NULL OR kind = ?5)
            ORDER BY n LIMIT ?4"""
        return await self._read(
            partial(self._load, session, query, (session, after, run, -1 if limit is None else limit, kind))
        )

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

    async def _rows(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return await self._read(lambda connection: connection.execute(query, values).fetchall())

    async def _read(self, work: Callable[[Connection], T]) -> T:
        with suppress(JournalFailed):  # what cannot be written does not keep anybody from reading the rest
            await self.flush()
        return await to_thread.run_sync(self._with_reader, work)

    def _with_reader(self, work: Callable[[Connection], T]) -> T:
        try:
            connection = self._readers.pop() if self._readers else connect_reader(self._path)
            try:
                return work(connection)
            finally:
                self._readers.append(connection)
        except sqlite3.Error as exc:
            raise failure(exc, self._path) from exc
        except UnicodeEncodeError:
            raise NotFound("There is nothing of that name: it is not valid text.") from None

    def _load(self, session: str, query: str, values: tuple[Any, ...], connection: Connection) -> list[Stored]:
        loaded = []
        for n, run, at, kind, body, large in connection.execute(query, values):
            try:
                event = from_fields(kind, self._join(body, large))
            except (ValueError, NotFound) as exc:
                message = f"Event {n} of session {session!r} in {self._path} is damaged: {exc}"
                raise JournalFailed(message, remedy="The other events can still be read.") from exc
            loaded.append(Stored(session, n, run, at, event))
        return loaded

    def _join(self, body: str, large: str | None) -> Mapping[str, Any]:
        fields: dict[str, Any] = json.loads(body)
        for name, digest in json.loads(large).items() if large else ():
            fields[name] = json.loads(self.blobs.get(digest))
        return fields

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
