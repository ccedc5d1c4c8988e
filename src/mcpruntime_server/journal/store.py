"""The journal: the only source of truth, in one SQLite file with a blob store beside it.

Rule 1: the tables are in `schema`, the statements that write rows in `mutations`, those that read
them in `queries`.
Rule 2: only the server that owns a session appends to it, so it numbers the events itself and
`append` does not wait for the disk. An event survives this process when a later `flush` has
returned, and the loss of the machine when a later `sync` has, if the durability is "disk".
Rule 3: all writes go through one `JournalWriter`. Reads use connections of their own in worker
threads, and see everything that was appended before them.
Rule 4: several servers may share the folder; any of them can claim a dead server's sessions.
Rule 5: with the durability "disk", no read of this server shows the end of a run before the disk
has it. Another process may see it some milliseconds earlier.
It does not know sandboxes, tools or requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from sqlite3 import Connection, Error
from typing import IO, Any, Literal, TypeVar
from weakref import WeakValueDictionary

import anyio
from anyio import to_thread

from mcpruntime_server.errors import JournalFailed, NotFound

from . import mutations, queries
from .blob_store import BlobStore, ReadChunks
from .disk_sync import LogSync, sync_folder
from .events import (
    KIND_BY_CLASS,
    Event,
    FileEntry,
    QuestionAnswered,
    QuestionAsked,
    RunFinished,
    encoded_fields,
    event_to_json,
)
from .journal_writer import JournalWriter
from .quotas import JournalLimits, RecordingQuotas
from .rows import (
    CallResult,
    QuestionRow,
    RunRow,
    SessionRow,
    SkillUseRow,
    StoredEvent,
    SubmittedAnswer,
)
from .schema import (
    connect_nonblocking,
    connect_reader,
    journal_error,
    open_for_writing,
    restart_log,
)
from .server_lease import ServerLease, is_server_alive

MB = 1024 * 1024
MAX_BACKLOG_BYTES = 64 * 1024 * 1024  # of events that wait for the disk; `append` refuses more
MAX_OPENED_AT_ONCE = 2  # large blobs: each is read to its end first, to compare its digest
MEASURE_INTERVAL_S = 60.0  # between two measurements of what a principal has recorded
SLOW_BACKLOG_BYTES = 2 * 1024 * 1024  # of these events: then code waits until they are written
EVENT_OVERHEAD_BYTES = 100  # of an event in memory, besides its text
QUEUE_KEY = ""  # in the place of a session: what people are asked
QUEUE_EVENTS = (QuestionAsked, QuestionAnswered, RunFinished)
CLOSE_TIMEOUT_S = 5.0  # to commit the last events; a disk that takes longer will not recover

Durability = Literal["process", "disk"]  # what a recorded event survives the loss of

T = TypeVar("T")
logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_journal(
    data_dir: Path,
    lease: ServerLease | None = None,
    durability: Durability = "process",
    limits: JournalLimits | None = None,
) -> AsyncIterator[Journal]:
    """Open the journal in `data_dir`, created if necessary, as the server that holds `lease`.

    Without a lease it takes one of its own. Raises `JournalFailed` if the journal is damaged, not
    writable, or in another format.
    """
    own, blobs, connection, log = await to_thread.run_sync(_open_files, data_dir, lease, durability)
    try:
        journal = Journal(data_dir, own, blobs, connection, log, limits)
        try:
            yield journal
        finally:
            await journal._close()
    finally:
        if lease is None:
            own.close()


def _open_files(
    data_dir: Path, lease: ServerLease | None, durability: Durability
) -> tuple[ServerLease, BlobStore, Connection, LogSync | None]:
    path = data_dir / "journal.db"
    on_disk = durability == "disk"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        blobs = BlobStore(data_dir / "blobs", is_synced=on_disk)
        own = lease or ServerLease(data_dir)
    except OSError as exc:
        raise journal_error(exc, path) from exc
    with ExitStack() as opened:
        if lease is None:
            opened.callback(own.close)
        connection = open_for_writing(path)
        opened.callback(connection.close)
        log = _open_log(connection, path) if on_disk else None
        opened.pop_all()
    return own, blobs, connection, log


def _open_log(connection: Connection, path: Path) -> LogSync:
    """Put the journal on the disk as it is, and return what does so from now on.

    Raises `JournalFailed`.
    """
    try:
        # An earlier server may have failed to put the log on the disk, and a sync would not say so:
        # what is in the log is written to the database, which is synced, and the log starts again.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        restart_log(connection)
        sync_folder(path.parent)
        log = LogSync(path)
    except (Error, OSError) as exc:
        raise journal_error(exc, path) from exc
    for folder in path.parent.absolute().parents:
        with suppress(OSError):  # one that is closed to this process was not made by it
            sync_folder(folder)
    return log


class Journal:
    """All sessions in one data folder, as one server sees them; made by `open_journal`."""

    def __init__(
        self,
        data_dir: Path,
        lease: ServerLease,
        blobs: BlobStore,
        connection: Connection,
        log: LogSync | None,
        limits: JournalLimits | None,
    ) -> None:
        self.data_dir = data_dir
        self.owner = lease.owner
        self.blobs = blobs
        self._hash_limiter = anyio.CapacityLimiter(MAX_OPENED_AT_ONCE)
        self._path = data_dir / "journal.db"
        self._writer = JournalWriter(connection, connect_nonblocking(self._path), self._path)
        self._idle_readers: list[Connection] = []
        self._last_sequences: dict[str, int] = {}  # of the sessions that this server owns
        self._changes: WeakValueDictionary[str, anyio.Event] = WeakValueDictionary()
        self._log = log  # None: what is committed is durable enough
        self._ends_appended = 0  # of runs
        self._ends_synced = 0
        self._quotas = RecordingQuotas(limits, blobs, self.read)

    @property
    def survives_machine(self) -> bool:
        """Whether what `sync` has returned for survives the loss of the machine."""
        return self._log is not None

    # writing --------------------------------------------------------------------------------

    def count_download(self, session_id: str, run_id: str, size: int) -> None:
        """Count bytes that a run brings from the web; raises `JournalLimitReached`."""
        self._quotas.count_download(session_id, run_id, size)

    def append(self, session_id: str, event: Event, run_id: str | None = None) -> StoredEvent:
        """Append `event` to the log of a session that this server owns, without waiting.

        Raises `ValueError` if the event holds something that is not JSON data, and `JournalFailed`
        if the server does not own the session or too much waits for the disk. What a run asks for,
        gets or prints beyond the limits is refused with `JournalLimitReached`.
        """
        if session_id not in self._last_sequences:
            raise JournalFailed(
                f"This server does not own the session {session_id!r}.", remedy="Claim it first."
            )
        if self._writer.backlog_bytes > MAX_BACKLOG_BYTES:
            raise JournalFailed(
                f"The journal {self._path} cannot keep up with the disk.", remedy="Free some space."
            )
        encoded = encoded_fields(event)
        text = event_to_json(event, encoded)
        size_bytes = len(text) + sum(map(len, encoded.values())) + EVENT_OVERHEAD_BYTES
        self._quotas.count_event(session_id, run_id, event, size_bytes)
        sequence = self._last_sequences[session_id] + 1
        self._last_sequences[session_id] = sequence
        stored = StoredEvent(session_id, sequence, run_id, time.time(), event)
        self._enqueue_event(stored, text, encoded, size_bytes)
        if isinstance(event, RunFinished):
            self._ends_appended += 1
        self._announce_change(session_id)
        if isinstance(event, QUEUE_EVENTS):
            self._announce_change(QUEUE_KEY)
        return stored

    def _announce_change(self, key: str) -> None:
        changed = self._changes.pop(key, None)
        if changed is not None:
            changed.set()

    def check_room(self, session_id: str) -> None:
        """Raise `JournalLimitReached` if a session may record no more."""
        self._quotas.check_room(session_id)

    @property
    def is_behind(self) -> bool:
        """Whether so much waits for the disk that nobody should add large events."""
        return self._writer.backlog_bytes > SLOW_BACKLOG_BYTES

    async def flush(self) -> None:
        """Return when everything appended so far is committed.

        Raises `JournalFailed` if that fails; the events stay queued and are tried again.
        """
        await self._writer.flush().wait_for_result()

    async def sync(self) -> None:
        """Return when everything appended so far is durable, as the settings define it.

        Raises `JournalFailed` if that fails.
        """
        ends = self._ends_appended
        await self.flush()
        if self._log is not None:
            await self._log.sync()
        self._ends_synced = max(self._ends_synced, ends)

    def start_flush(self) -> Callable[[], Awaitable[Any]]:
        """Start a flush, and return a function that waits for its result as `flush` does."""
        return self._writer.flush().wait_for_result

    def flush_soon(self) -> None:
        """Commit what was appended so far after the current callbacks of the event loop."""
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
        """Create and claim a session: a fork of run `tip`, or an empty one, made by run `origin`.

        Raises `InvalidRequest` if the principal has a session of that name already, and `NotFound`
        if there is no run `tip`.
        """
        now = time.time()
        row = SessionRow(
            id=session_id,
            name=name,
            principal=principal,
            created_at=now,
            last_used_at=now,
            owner=self.owner,
            tip=tip,
            run_count=0,
            origin=tip or origin,
            purpose=purpose,
        )
        await self._quotas.register_principal(session_id, principal)
        await self.write(lambda rows: mutations.insert_session(rows, self.owner, row))
        self._last_sequences.setdefault(session_id, 0)
        return row

    async def claim_session(self, session_id: str) -> SessionRow:
        """Make this server the owner of a session.

        Raises `NotFound`, or `Unavailable` if another live server owns it.
        """
        row, last_sequence = await self.write(
            lambda rows: mutations.claim_session(rows, self.data_dir, self.owner, session_id)
        )
        if session_id not in self._last_sequences:
            await self._quotas.measure_session(session_id)
        await self._quotas.register_principal(session_id, row.principal)
        self._last_sequences.setdefault(session_id, last_sequence)
        return row

    async def release_session(self, session_id: str) -> None:
        """Commit a session's events and let another server claim it; raises `JournalFailed`."""
        last_sequence = self._last_sequences.pop(session_id, None)
        if last_sequence is None:
            return
        try:
            await self.write(lambda rows: mutations.release_session(rows, self.owner, session_id))
        except JournalFailed:
            self._last_sequences[session_id] = last_sequence
            raise
        self._quotas.forget_session(session_id)

    async def pin_run(self, run_id: str, reason: str) -> None:
        """Protect a run, and so its session, from garbage collection; raises `NotFound`."""
        await self.write(lambda rows: mutations.pin_run(rows, run_id, reason))

    async def unpin_run(self, run_id: str) -> None:
        """Let garbage collection remove a run again."""
        await self.write(lambda rows: mutations.unpin_run(rows, run_id))

    async def submit_answer(self, run_id: str, question_id: str, answer_json: str) -> None:
        """Leave an answer for the server that owns the session of a run.

        Raises `NotFound`, or `InvalidRequest` if the question has an answer already.
        """
        await self.write(
            lambda rows: mutations.store_answer(rows, run_id, question_id, answer_json)
        )
        self._announce_change(QUEUE_KEY)

    async def request_cancellation(self, run_id: str, by: str) -> None:
        """Let the server that owns the session of a run cancel it, unless it has finished."""
        await self.write(lambda rows: mutations.store_cancellation(rows, run_id, by))

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in a transaction after everything appended before; return its result.

        It must take milliseconds, because others wait. Raises what it raises, or `JournalFailed`.
        """
        result: T = await self._writer.execute(work)
        return result

    def _enqueue_event(
        self, stored: StoredEvent, text: str, encoded: Mapping[str, bytes], size_bytes: int
    ) -> None:
        columns: list[tuple[str, str | None]] = []

        def store_large_fields() -> None:
            columns[:] = [mutations.split_large_fields(self.blobs, stored.event, text, encoded)]

        def insert(rows: Connection) -> None:
            if not columns:
                store_large_fields()
            mutations.insert_event(rows, stored, *columns[0])

        # A transaction that waited for the disk for each blob would keep everybody else waiting.
        is_large = bool(encoded) or len(text) > mutations.MAX_INLINE_CHARS
        waits_for_disk = self.survives_machine and is_large
        self._writer.enqueue(insert, size_bytes, store_large_fields if waits_for_disk else None)

    # sessions and runs ----------------------------------------------------------------------

    async def find_session(self, name_or_id: str, principal: str) -> SessionRow:
        """Return a session of the principal by its id or name; raises `NotFound`."""
        return await self.read(lambda rows: queries.find_session(rows, name_or_id, principal))

    async def load_session(self, session_id: str) -> SessionRow:
        """Return a session of any principal; raises `NotFound`."""
        return await self.read(lambda rows: queries.load_session(rows, session_id))

    async def list_sessions(self, principal: str | None = None) -> list[SessionRow]:
        """Return the sessions of one principal, or of all, the last used first."""
        return await self.read(lambda rows: queries.list_sessions(rows, principal))

    async def page_sessions(
        self,
        principal: str,
        purposes: Sequence[str],
        before: tuple[float, str] | None,
        limit: int,
    ) -> list[SessionRow]:
        """Return sessions of one principal that have these purposes, the last used first.

        `before` is when the last session of the page before was used, and its id.
        """
        return await self.read(
            lambda rows: queries.page_sessions(rows, principal, purposes, before, limit)
        )

    async def load_python_version(self, image: str) -> str:
        """Return the Python version that sandboxes with that image had; "" if it is not known."""
        return await self.read(lambda rows: queries.load_python_version(rows, image))

    async def load_call_texts(self, session_id: str, run_id: str, target: str) -> list[str]:
        """Return the short texts that a run's successful calls of `target` have returned."""
        return await self.read(
            lambda rows: queries.load_call_texts(rows, session_id, run_id, target)
        )

    async def list_runs(self, session_id: str) -> list[RunRow]:
        """Return the runs of a session, oldest first."""
        return await self.read(lambda rows: queries.list_runs(rows, session_id))

    async def load_run(self, run_id: str) -> RunRow:
        """Return a run; raises `NotFound`."""
        return await self.read(lambda rows: queries.load_run(rows, run_id))

    async def load_lineage(self, run_id: str | None) -> list[RunRow]:
        """Return a run and its ancestors, oldest first; none for None. Raises `NotFound`."""
        if run_id is None:
            return []
        return await self.read(lambda rows: queries.load_lineage(rows, run_id))

    async def list_visited_runs(self, session_id: str) -> list[RunRow]:
        """Return every run of a session and its ancestors, abandoned branches included.

        Parents come before children.
        """

        def load(rows: Connection) -> list[RunRow]:
            visited = queries.list_visited_runs(rows, session_id)
            return [queries.load_run(rows, run_id) for run_id, _ in visited]

        return await self.read(load)

    async def load_visited_run(self, session_id: str, run_id: str) -> RunRow:
        """Return a run that `list_visited_runs` lists for a session; raises `NotFound`."""
        return await self.read(lambda rows: queries.load_visited_run(rows, session_id, run_id))

    async def list_calling_runs(
        self, tip: str | None, kept_tip: str | None, others: Sequence[str]
    ) -> list[str]:
        """Return the runs that have called something, of the lineage of `tip` and of `others`.

        Those of the lineage of `kept_tip` are left out.
        """
        return await self.read(lambda rows: queries.list_calling_runs(rows, tip, kept_tip, others))

    async def load_files_at(
        self, run_id: str | None, damage: list[str] | None = None
    ) -> tuple[dict[str, FileEntry], list[str]]:
        """Return the workspace at the end of a run, and the runs of its lineage with lost files.

        Those announced files that never arrived. Raises `NotFound`, or `JournalFailed` if an event
        is damaged; with `damage`, that is reported there, and the files of its run count as lost.
        """
        if run_id is None:
            return {}, []
        return await self.read(lambda rows: queries.load_files_at(rows, self.blobs, run_id, damage))

    async def find_run_by_key(self, session_id: str, key: str) -> RunRow | None:
        """Return the session's newest run with the idempotency key `key`."""
        return await self.read(lambda rows: queries.find_run_by_key(rows, session_id, key))

    async def list_interrupted_runs(
        self, principal: str | None = None
    ) -> list[tuple[SessionRow, RunRow]]:
        """Return the unfinished runs of sessions without a live server, newest first."""

        def load(rows: Connection) -> list[tuple[SessionRow, RunRow]]:
            found = queries.list_unfinished_runs(rows, principal)
            owners = {session.owner for session, _ in found if session.owner is not None}
            live = {owner for owner in owners if is_server_alive(self.data_dir, owner)}
            return [(session, run) for session, run in found if session.owner not in live]

        return await self.read(load)

    async def list_queued_runs(self, session_id: str) -> list[RunRow]:
        """Return the runs of a session that were announced and have not started, oldest first."""
        return await self.read(lambda rows: queries.list_queued_runs(rows, session_id))

    async def load_pins(self) -> dict[str, str]:
        """Return the pinned runs, each with the reason."""
        return await self.read(queries.load_pins)

    # questions ------------------------------------------------------------------------------

    async def list_pending_questions(self, principal: str | None = None) -> list[QuestionRow]:
        """Return the questions that the runs of one principal, or of all, wait for."""
        return await self.read(lambda rows: queries.list_pending_questions(rows, principal))

    async def list_submitted_answers(self) -> list[SubmittedAnswer]:
        """Return the answers from other processes that no server has received yet."""
        return await to_thread.run_sync(self._run_read, queries.list_submitted_answers)

    # events ---------------------------------------------------------------------------------

    async def load_events(
        self,
        session_id: str,
        run_id: str | None = None,
        after: int = 0,
        limit: int | None = None,
        event_type: type[Event] | None = None,
        damage: list[str] | None = None,
    ) -> list[StoredEvent]:
        """Return at most `limit` events of a session with sequence numbers above `after`.

        `run_id` and `event_type` select the events of one run and of one type. Raises
        `JournalFailed` if an event is damaged; with `damage`, that is reported there, and the rest
        is returned.
        """
        kind = None if event_type is None else KIND_BY_CLASS[event_type]
        values = (session_id, after, run_id, -1 if limit is None else limit, kind)
        query = queries.SELECT_SESSION_EVENTS
        return await self.read(
            lambda rows: queries.load_events(rows, self.blobs, query, values, damage)
        )

    async def scan_call_results(
        self, session_id: str, last: int, work: Callable[[Iterator[CallResult]], T]
    ) -> T:
        """Run `work` in a worker thread on the call results among a session's `last` events.

        The iterator yields them newest first, and loads no more than `work` takes.
        """
        return await self.read(
            lambda rows: work(queries.iter_call_results(rows, self.blobs, session_id, last))
        )

    async def load_skill_uses(self, principal: str, shared: Collection[str]) -> list[SkillUseRow]:
        """Return the runs of a principal that used skills, and all runs that used `shared` ones."""
        return await self.read(
            lambda connection: queries.load_skill_uses(connection, principal, shared)
        )

    async def scan_run_events(
        self,
        run_id: str,
        after: int,
        work: Callable[[RunRow, Iterator[StoredEvent]], T],
        event_type: type[Event] | None = None,
    ) -> T:
        """Run `work` in a worker thread on a run and its events with numbers above `after`.

        `event_type` selects the events of one type. The iterator loads no more than `work` takes.
        Damaged events are left out. Raises `NotFound`.
        """
        kind = None if event_type is None else KIND_BY_CLASS[event_type]

        def scan(rows: Connection) -> T:
            run = queries.load_run(rows, run_id)
            values = (run.session_id, after, run_id, -1, kind)
            query = queries.SELECT_SESSION_EVENTS
            return work(run, queries.iter_events(rows, self.blobs, query, values, []))

        return await self.read(scan)

    async def load_run_parts(self, row: RunRow, damage: list[str]) -> list[StoredEvent]:
        """Return the events of a run, apart from output and clock readings; report damage."""
        query, values = queries.SELECT_RUN_PARTS, (row.session_id, row.id)
        return await self.read(
            lambda rows: queries.load_events(rows, self.blobs, query, values, damage)
        )

    async def load_open_calls(self, run_id: str, until: int) -> dict[int, str]:
        """Return the targets of the calls in a run's ledger that are open after event `until`."""
        return await self.read(lambda rows: queries.load_open_calls(rows, run_id, until))

    async def load_last_sequence(self, session_id: str) -> int:
        """Return the number of the last event of a session, 0 if it has none."""
        return await self.read(lambda rows: queries.last_sequence(rows, session_id))

    def next_change(self, session_id: str) -> anyio.Event:
        """Return what is set when this server appends the next event to a session.

        Keep it while it is needed. Events that another server appends do not set it.
        """
        changed = self._changes.get(session_id)
        if changed is None:
            changed = self._changes[session_id] = anyio.Event()
        return changed

    def next_queue_change(self) -> anyio.Event:
        """Return what is set when this server appends what people are asked next, or its end.

        Keep it while it is needed. Questions of other servers do not set it.
        """
        return self.next_change(QUEUE_KEY)

    def owns_session(self, session_id: str) -> bool:
        """Return whether this server appends to a session."""
        return session_id in self._last_sequences

    # blobs and connections ------------------------------------------------------------------

    async def put_blob(self, data: bytes) -> str:
        """Store `data` and return its digest; raises `JournalFailed` if there is no room."""
        [digest] = await self.put_blobs([data])
        return digest

    async def put_blobs(self, contents: Collection[bytes]) -> list[str]:
        """Store each of `contents` and return their digests; raises as `put_blob` does."""
        try:
            return await to_thread.run_sync(self.blobs.put_all, contents)
        except OSError as exc:
            raise journal_error(exc, self.blobs.root) from exc

    async def put_streams(self, contents: Collection[ReadChunks]) -> list[str]:
        """Store each of `contents`, chunk by chunk; raises as `put_blob` does."""
        try:
            return await to_thread.run_sync(self.blobs.put_streams, contents)
        except OSError as exc:
            raise journal_error(exc, self.blobs.root) from exc

    async def get_blob(self, digest: str) -> bytes:
        """Return the content of a blob; raises `NotFound`, or `JournalFailed` if it is damaged."""
        return await to_thread.run_sync(self.blobs.get, digest)

    async def open_blob(self, digest: str) -> IO[bytes]:
        """Open a blob for reading, however large it is; raises as `get_blob` does."""
        return await to_thread.run_sync(self.blobs.open_blob, digest, limiter=self._hash_limiter)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in a worker thread on a snapshot that has everything appended before."""
        with suppress(JournalFailed):  # a full disk must not prevent reading
            await self.flush()
            await self._sync_ends()
        return await to_thread.run_sync(self._run_read, work)

    async def _sync_ends(self) -> None:
        """Wait until the end of every run that has ended is durable; raises `JournalFailed`."""
        if self._log is not None and self._ends_synced < self._ends_appended:
            await self.sync()

    def _run_read(self, work: Callable[[Connection], T]) -> T:
        try:
            idle = self._idle_readers
            connection = idle.pop() if idle else connect_reader(self._path)
            try:
                connection.execute("BEGIN")  # all statements of `work` see the same snapshot
                return work(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                idle.append(connection)
        except Error as exc:
            raise journal_error(exc, self._path) from exc
        except UnicodeEncodeError:
            raise NotFound("There is nothing of that name: it is not valid text.") from None

    async def _close(self) -> None:
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            for session_id in list(self._last_sequences):
                try:
                    await self.release_session(session_id)
                except JournalFailed as exc:
                    logger.error(
                        "the last events of session %s were not recorded: %s", session_id, exc
                    )
            # readers before the writer: the last connection to close removes the write-ahead log
            while self._idle_readers:
                self._idle_readers.pop().close()
            await self._writer.stop()
            if self._log is not None:
                await self._log.close()
