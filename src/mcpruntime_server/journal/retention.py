"""What the journal forgets: whole sessions, the least recently used first, and blobs that nothing refers to.

Rule 1: a session stays while a live server has it, while one of its runs is pinned, and while another session that
stays builds on it. Scratch sessions go first.
Rule 2: a session that goes is hidden in one transaction, with its runs, and its events are erased in small ones. Who is
killed in between leaves something that nobody sees, and that the next collection erases.
Rule 3: a blob goes only if it is older than `FRESH_S` and nothing referred to it when it was looked for; whoever writes
an event has put or refreshed its blobs since. Where an event cannot be read, no blob goes.
Other servers may use the folder meanwhile: each step is short, and checks anew what it relies on.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from sqlite3 import Connection

from anyio import to_thread

from ..errors import JournalFailed, NotFound, Unavailable
from . import mutations
from . import server_lease as leases
from .blob_store import BlobStore
from .schema import journal_error
from .store import Journal

SECONDS_PER_DAY = 24 * 3600
MIN_BLOB_AGE_S = 3600  # a blob is put before the event that refers to it is committed, and a full disk may come in between
MB = 1024 * 1024
MAX_EVENTS_PER_TRANSACTION = (
    500  # events erased in one transaction: a few milliseconds, so that others get their turn
)
VACUUM_PAGES_PER_TRANSACTION = 256  # given back in one transaction, for the same reason

SELECT_SESSIONS = "SELECT id, owner, purpose, used FROM sessions"
SELECT_DEPENDENCIES = """
    SELECT DISTINCT child.session, parent.session FROM runs AS child JOIN runs AS parent ON parent.id = child.parent
    WHERE child.session <> parent.session
    UNION
    SELECT sessions.id, runs.session FROM sessions JOIN runs ON runs.id IN (tip, origin)
    WHERE runs.session <> sessions.id"""
SELECT_PINNED_SESSIONS = "SELECT runs.session, reason FROM pins JOIN runs ON runs.id = pins.run"
SELECT_DEPENDENTS = """
    SELECT 1 FROM runs AS parent JOIN runs AS child ON child.parent = parent.id
    WHERE parent.session = ?1 AND child.session <> ?1
    UNION ALL
    SELECT 1 FROM sessions JOIN runs ON runs.id IN (tip, origin) WHERE runs.session = ?1 AND sessions.id <> ?1
    UNION ALL
    SELECT 1 FROM pins JOIN runs ON runs.id = pins.run WHERE runs.session = ?1"""
SELECT_EVENT_SIZE = "SELECT count(*), coalesce(sum(length(body) + coalesce(length(large), 0)), 0) FROM events WHERE session = ?"
SELECT_BLOB_EVENTS = """
    SELECT n, kind, body, large FROM events
    WHERE session = ? AND (large IS NOT NULL OR kind IN ('files_changed', 'run_queued', 'run_started'))"""


@dataclass(frozen=True)
class CollectionReport:
    """What a collection has removed, or would remove; `kept` says of sessions that were due why they stay."""

    sessions: tuple[str, ...]
    events: int
    blobs: int
    bytes: int  # of blobs and of events, as their text
    kept: Mapping[str, str]


@dataclass
class SessionUsage:
    """A session and what it takes; `needs` are sessions that it builds on, `stays` is why it must not go."""

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
        """Say which goes first."""
        return (self.purpose != "rerun", self.last_used_at) < (
            other.purpose != "rerun",
            other.last_used_at,
        )


async def collect_garbage(
    journal: Journal,
    keep_days: int,
    keep_mb: int,
    *,
    dry_run: bool = False,
    now: float | None = None,
) -> CollectionReport:
    """Remove sessions unused for `keep_days`, then others until the journal takes at most `keep_mb`; 0 is no limit.

    With `dry_run` nothing is changed. Raises `Unavailable` while another collection is under way, and `JournalFailed`
    if the journal cannot be read or written.
    """
    try:
        with _collection_lock(journal.data_dir):
            return await _run_collection(
                journal, keep_days, keep_mb, dry_run, time.time() if now is None else now
            )
    except OSError as exc:
        raise journal_error(exc, journal.data_dir) from exc


@contextmanager
def _collection_lock(data_dir: Path) -> Iterator[None]:
    """Keep other collectors out; the system lets them in again when the process ends."""
    with open(data_dir / "collect.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                "The journal is being cleared up already.", remedy="Try again later."
            ) from None
        yield


async def _run_collection(
    journal: Journal, keep_days: int, keep_mb: int, dry_run: bool, at: float
) -> CollectionReport:
    if not dry_run:
        await _finish_removals(journal)
    usages = await journal.read(partial(_load_usages, journal))
    damaged = ""
    for usage in usages:
        damaged = await journal.read(partial(_survey_session, journal.blobs, usage)) or damaged
    found = await to_thread.run_sync(
        lambda: {digest: size for digest, size, _ in journal.blobs.iter_blobs()}
    )
    taken = await journal.read(_count_used_bytes)
    going, kept = plan_collection(
        usages, found, taken, at - keep_days * SECONDS_PER_DAY if keep_days else None, keep_mb * MB
    )
    if not dry_run:
        going = [usage for usage in going if await _remove_session(journal, usage)]
    gone = {usage.id for usage in going}
    if damaged:
        kept = {**kept, "blobs": damaged}
        swept = (0, 0)
    else:
        used = set[str]().union(*(usage.blob_digests for usage in usages if usage.id not in gone))
        swept = await to_thread.run_sync(
            _discard_unused_blobs, journal.blobs, used, at - MIN_BLOB_AGE_S, dry_run
        )
    if not dry_run:
        await _release_free_pages(journal)
    events, size = (
        sum(usage.event_count for usage in going),
        sum(usage.size_bytes for usage in going),
    )
    return CollectionReport(
        tuple(usage.id for usage in going), events, swept[0], swept[1] + size, kept
    )


def plan_collection(
    usages: Sequence[SessionUsage],
    blobs: Mapping[str, int],
    taken: int,
    due: float | None,
    limit: int,
) -> tuple[list[SessionUsage], dict[str, str]]:
    """Return the sessions that are to go, and why others that should go stay.

    `taken` is what the events take in bytes and `limit` what all may take, 0 for no limit; `due` is the time since
    which a session must have been used to stay.
    """
    refers = Counter(digest for usage in usages for digest in usage.blob_digests)
    excess = taken + sum(blobs.get(digest, 0) for digest in refers) - limit if limit else 0
    share = taken / (
        sum(usage.size_bytes for usage in usages) or 1
    )  # pages and indexes are more than the text
    needed = Counter(each for usage in usages for each in usage.required_sessions)
    known = {usage.id: usage for usage in usages}
    free = [usage for usage in usages if not usage.keep_reason and not needed[usage.id]]
    heapq.heapify(free)
    going: list[SessionUsage] = []
    while free:
        usage = heapq.heappop(free)
        if excess <= 0 and not _is_due(usage, due):
            continue
        going.append(usage)
        refers.subtract(usage.blob_digests)
        excess -= int(usage.size_bytes * share) + sum(
            blobs.get(digest, 0) for digest in usage.blob_digests if not refers[digest]
        )
        needed.subtract(usage.required_sessions)
        for each in usage.required_sessions & known.keys():
            if not needed[each] and not known[each].keep_reason:
                heapq.heappush(free, known[each])
    gone = {usage.id for usage in going}
    kept = [
        usage for usage in usages if usage.id not in gone and (excess > 0 or _is_due(usage, due))
    ]
    return going, {
        usage.id: usage.keep_reason or "A session that is kept builds on it." for usage in kept
    }


def _is_due(usage: SessionUsage, due: float | None) -> bool:
    return due is not None and usage.last_used_at < due


def _load_usages(journal: Journal, rows: Connection) -> list[SessionUsage]:
    """Return all sessions, those included that are being imported, and why some must stay."""
    usages = {row[0]: SessionUsage(*row) for row in rows.execute(SELECT_SESSIONS)}
    live = _live_owners(journal, (usage.owner for usage in usages.values()))
    for session, reason in rows.execute(SELECT_PINNED_SESSIONS):
        usages[session].keep_reason = f"One of its runs is pinned: {reason}"
    for usage in usages.values():
        if usage.owner in live:
            usage.keep_reason = "A live server has it."
    for session, needs in rows.execute(SELECT_DEPENDENCIES):
        usages[session].required_sessions.add(needs)
    return list(usages.values())


def _live_owners(journal: Journal, owners: Iterable[str | None]) -> set[str | None]:
    return {
        owner
        for owner in set(owners)
        if owner is not None and leases.is_server_alive(journal.data_dir, owner)
    }


def _survey_session(blobs: BlobStore, usage: SessionUsage, rows: Connection) -> str:
    """Find out what a session takes; return what is wrong with an event of which that cannot be known."""
    usage.event_count, usage.size_bytes = rows.execute(SELECT_EVENT_SIZE, (usage.id,)).fetchone()
    damaged = ""
    for n, kind, body, large in rows.execute(SELECT_BLOB_EVENTS, (usage.id,)):
        try:
            fields = json.loads(body)
            long: dict[str, str] = json.loads(large) if large else {}
            usage.blob_digests |= set(long.values())
            if kind == "files_changed":
                changed = (
                    json.loads(blobs.get(long["changed"]))
                    if "changed" in long
                    else fields["changed"]
                )
                usage.blob_digests |= {entry["digest"] for entry in changed.values()}
            elif "context" in long or fields.get("context"):
                inputs = (
                    json.loads(blobs.get(long["context"]))
                    if "context" in long
                    else fields["context"]
                )
                usage.blob_digests |= {each["digest"] for each in inputs if each["digest"]}
        except (ValueError, KeyError, TypeError, AttributeError, JournalFailed, NotFound) as exc:
            damaged = (
                f"Event {n} of session {usage.id!r} is damaged, and may refer to any of them: {exc}"
            )
    return damaged


def _count_used_bytes(rows: Connection) -> int:
    pragmas = ("page_count", "freelist_count", "page_size")
    pages, free, size = (rows.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in pragmas)
    return int((pages - free) * size)


async def _remove_session(journal: Journal, usage: SessionUsage) -> bool:
    """Remove a session, unless somebody has come to use or need it; say whether it is gone."""
    if not await journal.write(partial(_hide_session, usage)):
        return False
    await _erase_session(journal, usage.id)
    return True


def _hide_session(usage: SessionUsage, rows: Connection) -> bool:
    same = rows.execute(f"{SELECT_SESSIONS} WHERE id = ?", (usage.id,)).fetchone()
    if same != (usage.id, usage.owner, usage.purpose, usage.last_used_at):
        return False
    if rows.execute(SELECT_DEPENDENTS, (usage.id,)).fetchone():
        return False
    mutations.hide_sessions(rows, [usage.id])
    return True


async def _finish_removals(journal: Journal) -> None:
    """Erase what a removal or an import that was killed has left."""
    query = f"{SELECT_SESSIONS} WHERE purpose = ?"
    found = await journal.read(
        lambda rows: rows.execute(query, (mutations.PARTIAL_PURPOSE,)).fetchall()
    )
    live = _live_owners(journal, (owner for _, owner, *_ in found))
    left = [session for session, owner, *_ in found if owner not in live]
    await journal.write(lambda rows: mutations.hide_sessions(rows, left))
    for session in left:
        await _erase_session(journal, session)


async def _erase_session(journal: Journal, session_id: str) -> None:
    while (
        await journal.write(
            partial(mutations.erase_events, session_id=session_id, limit=MAX_EVENTS_PER_TRANSACTION)
        )
        == MAX_EVENTS_PER_TRANSACTION
    ):
        pass


def _discard_unused_blobs(
    blobs: BlobStore, used: set[str], before: float, dry_run: bool
) -> tuple[int, int]:
    """Discard blobs that are not used and were not put since `before`; return their number and size."""
    count = freed = 0
    for digest, size, put in blobs.iter_blobs():
        if digest not in used and put < before and (dry_run or blobs.discard(digest, before)):
            count += 1
            freed += size
    return count, freed


async def _release_free_pages(journal: Journal) -> None:
    """Return free pages to the disk."""
    while await journal.write(_vacuum_pages):
        pass


def _vacuum_pages(rows: Connection) -> bool:
    """Give some pages back, and say whether there are more."""
    (before,) = rows.execute("PRAGMA freelist_count").fetchone()
    rows.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES_PER_TRANSACTION})").fetchall()
    (after,) = rows.execute("PRAGMA freelist_count").fetchone()
    return bool(0 < after < before)
