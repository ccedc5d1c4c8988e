"""Removal of sessions: by a person, and by garbage collection, which removes unused blobs, too.

Rule 1: a session stays while a live server owns it, while one of its runs is pinned, and while
another session that stays depends on it. Scratch sessions go first.
Rule 2: one transaction hides a session and its runs, then small ones erase its events. If the
process is killed in between, nobody sees what is left, and the next collection erases it.
Rule 3: a blob goes only if it is older than `MIN_BLOB_AGE_S` and nothing referred to it when the
references were collected; a writer puts or refreshes the blobs of an event first. If an event
cannot be read, no blob goes.
Other servers may use the folder at the same time: each step is short and checks again what it
relies on.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from sqlite3 import Connection

from anyio import to_thread

from ..errors import Conflict, JournalFailed, NotFound, Unavailable
from . import mutations
from .blob_store import BlobStore
from .events import listed_digests
from .schema import journal_error
from .server_lease import is_server_alive
from .store import Journal

SECONDS_PER_DAY = 24 * 3600
MIN_BLOB_AGE_S = 3600  # from putting a blob to committing its event, even on a disk that fills up
MB = 1024 * 1024
MAX_EVENTS_PER_TRANSACTION = 500  # erased in a few milliseconds, so that others get their turn
VACUUM_PAGES_PER_TRANSACTION = 256  # for the same reason

SELECT_SESSIONS = "SELECT id, owner, purpose, last_used_at FROM sessions"
SELECT_DEPENDENCIES = """
    SELECT DISTINCT child.session_id, parent.session_id
    FROM runs AS child JOIN runs AS parent ON parent.id = child.parent_id
    WHERE child.session_id <> parent.session_id
    UNION
    SELECT sessions.id, runs.session_id FROM sessions JOIN runs ON runs.id IN (tip, origin)
    WHERE runs.session_id <> sessions.id"""
SELECT_PINNED_SESSIONS = """
    SELECT runs.session_id, reason FROM pins JOIN runs ON runs.id = pins.run_id"""
SELECT_DEPENDENTS = """
    SELECT 1 FROM runs AS parent JOIN runs AS child ON child.parent_id = parent.id
    WHERE parent.session_id = ?1 AND child.session_id <> ?1
    UNION ALL
    SELECT 1 FROM sessions JOIN runs ON runs.id IN (tip, origin)
    WHERE runs.session_id = ?1 AND sessions.id <> ?1
    UNION ALL
    SELECT 1 FROM pins JOIN runs ON runs.id = pins.run_id WHERE runs.session_id = ?1"""
SELECT_DEPENDENT_SESSIONS = """
    SELECT DISTINCT dependent.id, dependent.name, dependent.purpose, dependent.owner
    FROM runs AS parent JOIN runs AS child ON child.parent_id = parent.id
    JOIN sessions AS dependent ON dependent.id = child.session_id
    WHERE parent.session_id = ?1 AND dependent.id <> ?1
    UNION
    SELECT sessions.id, sessions.name, sessions.purpose, sessions.owner
    FROM sessions JOIN runs ON runs.id IN (tip, origin)
    WHERE runs.session_id = ?1 AND sessions.id <> ?1"""
SELECT_SESSION_PINS = """
    SELECT runs.id, step FROM pins JOIN runs ON runs.id = pins.run_id WHERE runs.session_id = ?"""
SELECT_EVENT_SIZE = """
    SELECT count(*), coalesce(sum(length(body) + coalesce(length(large_fields), 0)), 0)
    FROM events WHERE session_id = ?"""
SELECT_BLOB_EVENTS = """
    SELECT sequence, kind, body, large_fields FROM events
    WHERE session_id = ? AND (large_fields IS NOT NULL
        OR kind IN ('files_changed', 'run_queued', 'run_started')
        OR (kind = 'call_finished' AND instr(body, '"blobs":["')))"""


@dataclass(frozen=True)
class CollectionReport:
    """What a collection has removed, or would remove; `kept` says why sessions that are due stay.

    `bytes` counts blobs and the text of events.
    """

    sessions: tuple[str, ...]
    events: int
    blobs: int
    bytes: int
    kept: Mapping[str, str]


@dataclass
class SessionUsage:
    """A session, its size, the sessions that it depends on, and why it must be kept, if so."""

    id: str
    owner: str | None
    purpose: str
    last_used_at: float
    keep_reason: str = ""
    required_sessions: set[str] = field(default_factory=set)
    event_count: int = 0
    size_bytes: int = 0
    blob_digests: set[str] = field(default_factory=set)

    def __lt__(self, other: SessionUsage) -> bool:
        """Say whether this session is removed before the other."""
        return self._priority < other._priority

    @property
    def _priority(self) -> tuple[bool, float]:
        return self.purpose != "rerun", self.last_used_at


async def collect_garbage(
    journal: Journal,
    keep_days: int,
    keep_mb: int,
    *,
    dry_run: bool = False,
    now: float | None = None,
    kept_blobs: Collection[str] = (),
) -> CollectionReport:
    """Remove sessions unused for `keep_days`, then more until the journal takes `keep_mb` at most.

    0 means no limit. `kept_blobs` stay, though no session refers to them. With `dry_run` nothing
    changes. Raises `Unavailable` while another collection runs, and `JournalFailed` if the journal
    cannot be read or written.
    """
    at = time.time() if now is None else now
    try:
        with collection_lock(journal.data_dir):
            return await _run_collection(journal, keep_days, keep_mb, dry_run, at, kept_blobs)
    except OSError as exc:
        raise journal_error(exc, journal.data_dir) from exc


@contextmanager
def collection_lock(data_dir: Path) -> Iterator[None]:
    """Exclude other collections, and backups, which copy what a collection would remove.

    The operating system releases the lock when the process ends. Raises `Unavailable`.
    """
    with open(data_dir / "collect.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                "A garbage collection or a backup of the journal is running already.",
                remedy="Try again later.",
            ) from None
        yield


async def _run_collection(
    journal: Journal,
    keep_days: int,
    keep_mb: int,
    dry_run: bool,
    at: float,
    kept_blobs: Collection[str],
) -> CollectionReport:
    if not dry_run:
        await _finish_removals(journal)
    usages = await journal.read(partial(_load_usages, journal))
    damage = ""
    for usage in usages:
        damage = await journal.read(partial(_survey_session, journal.blobs, usage)) or damage
    blob_sizes = await to_thread.run_sync(_load_blob_sizes, journal.blobs)
    used_bytes = await journal.read(_count_used_bytes)
    expiry = at - keep_days * SECONDS_PER_DAY if keep_days else None
    removable, kept = plan_collection(usages, blob_sizes, used_bytes, expiry, keep_mb * MB)
    if dry_run:
        removed = removable
    else:
        removed = [usage for usage in removable if await _remove_session(journal, usage)]
    removed_ids = {usage.id for usage in removed}
    blob_count = blob_bytes = 0
    if damage:
        kept = {**kept, "blobs": damage}
    else:
        used = set(kept_blobs).union(
            *(usage.blob_digests for usage in usages if usage.id not in removed_ids)
        )
        blob_count, blob_bytes = await to_thread.run_sync(
            _discard_unused_blobs, journal.blobs, used, at - MIN_BLOB_AGE_S, dry_run
        )
    if not dry_run:
        await _release_free_pages(journal)
    return CollectionReport(
        sessions=tuple(usage.id for usage in removed),
        events=sum(usage.event_count for usage in removed),
        blobs=blob_count,
        bytes=blob_bytes + sum(usage.size_bytes for usage in removed),
        kept=kept,
    )


def plan_collection(
    usages: Sequence[SessionUsage],
    blob_sizes: Mapping[str, int],
    used_bytes: int,
    expiry: float | None,
    limit_bytes: int,
) -> tuple[list[SessionUsage], dict[str, str]]:
    """Return the sessions to remove, and the reasons why others that are due stay.

    A session is due if it was last used before `expiry`, or if the journal takes more than
    `limit_bytes` (0: no limit). `used_bytes` is the size of the database.
    """
    references = Counter(digest for usage in usages for digest in usage.blob_digests)
    excess = 0
    if limit_bytes:
        excess = used_bytes + sum(blob_sizes.get(digest, 0) for digest in references) - limit_bytes
    text_bytes = sum(usage.size_bytes for usage in usages)
    overhead = used_bytes / (text_bytes or 1)  # pages and indexes take more than the text
    dependents = Counter(each for usage in usages for each in usage.required_sessions)
    by_id = {usage.id: usage for usage in usages}
    candidates = [usage for usage in usages if not usage.keep_reason and not dependents[usage.id]]
    heapq.heapify(candidates)
    removable: list[SessionUsage] = []
    while candidates:
        usage = heapq.heappop(candidates)
        if excess <= 0 and not _is_expired(usage, expiry):
            continue
        removable.append(usage)
        references.subtract(usage.blob_digests)
        freed = [digest for digest in usage.blob_digests if not references[digest]]
        excess -= int(usage.size_bytes * overhead)
        excess -= sum(blob_sizes.get(digest, 0) for digest in freed)
        dependents.subtract(usage.required_sessions)
        for each in usage.required_sessions & by_id.keys():
            if not dependents[each] and not by_id[each].keep_reason:
                heapq.heappush(candidates, by_id[each])
    removable_ids = {usage.id for usage in removable}
    kept = {
        usage.id: usage.keep_reason or "Another session that is kept depends on it."
        for usage in usages
        if usage.id not in removable_ids and (excess > 0 or _is_expired(usage, expiry))
    }
    return removable, kept


def _is_expired(usage: SessionUsage, expiry: float | None) -> bool:
    return expiry is not None and usage.last_used_at < expiry


def _load_usages(journal: Journal, rows: Connection) -> list[SessionUsage]:
    """Return all sessions, partial ones included, and why some must be kept."""
    usages = {row[0]: SessionUsage(*row) for row in rows.execute(SELECT_SESSIONS)}
    live = _live_owners(journal, (usage.owner for usage in usages.values()))
    for session_id, reason in rows.execute(SELECT_PINNED_SESSIONS):
        usages[session_id].keep_reason = f"One of its runs is pinned: {reason}"
    for usage in usages.values():
        if usage.owner in live:
            usage.keep_reason = "A live server owns it."
    for session_id, required in rows.execute(SELECT_DEPENDENCIES):
        usages[session_id].required_sessions.add(required)
    return list(usages.values())


def _live_owners(journal: Journal, owners: Iterable[str | None]) -> set[str | None]:
    return {
        owner
        for owner in set(owners)
        if owner is not None and is_server_alive(journal.data_dir, owner)
    }


def _survey_session(blobs: BlobStore, usage: SessionUsage, rows: Connection) -> str:
    """Add size and blobs to `usage`; return a message if the blobs of an event cannot be known."""
    usage.event_count, usage.size_bytes = rows.execute(SELECT_EVENT_SIZE, (usage.id,)).fetchone()
    damage = ""
    for sequence, kind, body, large_fields in rows.execute(SELECT_BLOB_EVENTS, (usage.id,)):
        try:
            usage.blob_digests |= referenced_blobs(blobs, kind, body, large_fields)
        except (ValueError, KeyError, TypeError, AttributeError, JournalFailed, NotFound) as exc:
            damage = (
                f"Event {sequence} of session {usage.id!r} is damaged, and may refer to any of "
                f"them: {exc}"
            )
    return damage


def referenced_blobs(blobs: BlobStore, kind: str, body: str, large_fields: str | None) -> set[str]:
    """Return the digests of all blobs that an event refers to.

    Those are its large fields, the files that it changed, the inputs of its context, and what the
    answer of a call names.
    """
    fields = json.loads(body)
    digests: dict[str, str] = json.loads(large_fields) if large_fields else {}
    found = set(digests.values())
    if kind == "call_finished":
        return found.union(fields.get("blobs", ()))
    name = "changed" if kind == "files_changed" else "context"
    if name in digests:
        listed = json.loads(blobs.get(digests[name]))
    elif kind == "files_changed":
        listed = fields[name]
    else:
        listed = fields.get(name)
    return found | listed_digests(listed)


def _load_blob_sizes(blobs: BlobStore) -> dict[str, int]:
    return {digest: size for digest, size, _ in blobs.iter_blobs()}


def _count_used_bytes(rows: Connection) -> int:
    pragmas = ("page_count", "freelist_count", "page_size")
    pages, free, size = (rows.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in pragmas)
    return int((pages - free) * size)


async def _remove_session(journal: Journal, usage: SessionUsage) -> bool:
    """Remove a session unless it has been used or needed since; say whether it was removed."""
    if not await journal.write(partial(_hide_session, usage)):
        return False
    await _erase_session(journal, usage.id)
    return True


def _hide_session(usage: SessionUsage, rows: Connection) -> bool:
    current = rows.execute(f"{SELECT_SESSIONS} WHERE id = ?", (usage.id,)).fetchone()
    if current != (usage.id, usage.owner, usage.purpose, usage.last_used_at):
        return False
    if rows.execute(SELECT_DEPENDENTS, (usage.id,)).fetchone():
        return False
    mutations.hide_sessions(rows, [usage.id])
    return True


def list_removed_sessions(
    session_id: str, attached_purposes: Collection[str], rows: Connection
) -> dict[str, str | None]:
    """Return the sessions that go with a session, itself first, with the servers that own them.

    Sessions of the purposes `attached_purposes` go with the session that they depend on. Raises
    `Conflict` if any other session depends on one of them, or if a run is pinned.
    """
    found: dict[str, str | None] = {session_id: None}
    waiting = [session_id]
    while waiting:
        each = waiting.pop()
        for run_id, step in rows.execute(SELECT_SESSION_PINS, (each,)):
            raise Conflict(
                f"Step {step} of the session is pinned (run {run_id}), so it is not deleted.",
                remedy="Unpin the step first.",
            )
        for dependent, name, purpose, owner in rows.execute(SELECT_DEPENDENT_SESSIONS, (each,)):
            if dependent in found:
                continue
            if purpose not in attached_purposes:
                raise Conflict(
                    f"The session {name or dependent!r} was forked from this one and needs its "
                    "steps.",
                    remedy=f"Delete {name or dependent} first.",
                )
            found[dependent] = owner
            waiting.append(dependent)
    return found


async def hide_session(
    journal: Journal, session_id: str, attached_purposes: Collection[str]
) -> list[str]:
    """Make a session that this server owns, and those that go with it, unfindable for good.

    Returns their ids. Raises `Conflict` as `list_removed_sessions` does, or if another server has
    one of them; then nothing has changed.
    """

    def hide(rows: Connection) -> list[str]:
        found = list_removed_sessions(session_id, attached_purposes, rows)
        for each in _live_owners(journal, found.values()):
            raise Conflict(
                f"An attempt or an agent of this session is in use by a server ({each}).",
                remedy="Try again when it has ended.",
            )
        mutations.hide_sessions(rows, found)
        return list(found)

    return await journal.write(hide)


async def erase_hidden_sessions(journal: Journal, session_ids: Iterable[str]) -> None:
    """Erase the events of hidden sessions; the next collection frees their unused blobs."""
    for session_id in session_ids:
        await _erase_session(journal, session_id)


async def _finish_removals(journal: Journal) -> None:
    """Erase what a killed removal or import has left."""
    query = f"{SELECT_SESSIONS} WHERE purpose = ?"
    found = await journal.read(
        lambda rows: rows.execute(query, (mutations.PARTIAL_PURPOSE,)).fetchall()
    )
    live = _live_owners(journal, (owner for _, owner, *_ in found))
    abandoned = [session_id for session_id, owner, *_ in found if owner not in live]
    await journal.write(lambda rows: mutations.hide_sessions(rows, abandoned))
    for session_id in abandoned:
        await _erase_session(journal, session_id)


async def _erase_session(journal: Journal, session_id: str) -> None:
    limit = MAX_EVENTS_PER_TRANSACTION
    erase = partial(mutations.erase_events, session_id=session_id, limit=limit)
    while await journal.write(erase) == limit:
        pass


def _discard_unused_blobs(
    blobs: BlobStore, used: set[str], before: float, dry_run: bool
) -> tuple[int, int]:
    """Discard unused blobs that were last put before `before`; return their number and size."""
    count = freed_bytes = 0
    for digest, size, put_at in blobs.iter_blobs():
        if digest not in used and put_at < before and (dry_run or blobs.discard(digest, before)):
            count += 1
            freed_bytes += size
    return count, freed_bytes


async def _release_free_pages(journal: Journal) -> None:
    """Return free pages of the database to the file system."""
    while await journal.write(_vacuum_pages):
        pass


def _vacuum_pages(rows: Connection) -> bool:
    """Release some free pages; say whether there are more."""
    (before,) = rows.execute("PRAGMA freelist_count").fetchone()
    rows.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES_PER_TRANSACTION})").fetchall()
    (after,) = rows.execute("PRAGMA freelist_count").fetchone()
    return bool(0 < after < before)
