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
from . import changes
from . import lease as leases
from .blobs import BlobStore
from .schema import failure
from .store import Journal

DAY_S = 24 * 3600
FRESH_S = 3600  # a blob is put before the event that refers to it is committed, and a full disk may come in between
MB = 1024 * 1024
BATCH = 500  # events erased in one transaction: a few milliseconds, so that others get their turn
VACUUM_PAGES = 256  # given back in one transaction, for the same reason

SESSIONS = "SELECT id, owner, purpose, used FROM sessions"
NEEDS = """
    SELECT DISTINCT child.session, parent.session FROM runs AS child JOIN runs AS parent ON parent.id = child.parent
    WHERE child.session <> parent.session
    UNION
    SELECT sessions.id, runs.session FROM sessions JOIN runs ON runs.id IN (tip, origin)
    WHERE runs.session <> sessions.id"""
PINNED = "SELECT runs.session, reason FROM pins JOIN runs ON runs.id = pins.run"
IS_NEEDED = """
    SELECT 1 FROM runs AS parent JOIN runs AS child ON child.parent = parent.id
    WHERE parent.session = ?1 AND child.session <> ?1
    UNION ALL
    SELECT 1 FROM sessions JOIN runs ON runs.id IN (tip, origin) WHERE runs.session = ?1 AND sessions.id <> ?1
    UNION ALL
    SELECT 1 FROM pins JOIN runs ON runs.id = pins.run WHERE runs.session = ?1"""
SIZE = "SELECT count(*), coalesce(sum(length(body) + coalesce(length(large), 0)), 0) FROM events WHERE session = ?"
BLOBS = """
    SELECT n, kind, body, large FROM events
    WHERE session = ? AND (large IS NOT NULL OR kind IN ('files_changed', 'run_queued', 'run_started'))"""


@dataclass(frozen=True)
class Collected:
    """What a collection has removed, or would remove; `kept` says of sessions that were due why they stay."""

    sessions: tuple[str, ...]
    events: int
    blobs: int
    bytes: int  # of blobs and of events, as their text
    kept: Mapping[str, str]


@dataclass
class Usage:
    """A session and what it takes; `needs` are sessions that it builds on, `stays` is why it must not go."""

    id: str
    owner: str | None
    purpose: str
    used: float
    stays: str = ""
    needs: set[str] = field(default_factory=set)
    events: int = 0
    size: int = 0
    blobs: set[str] = field(default_factory=set)

    def __lt__(self, other: Usage) -> bool:
        """Say which goes first."""
        return (self.purpose != "rerun", self.used) < (other.purpose != "rerun", other.used)


async def collect(
    journal: Journal, keep_days: int, keep_mb: int, *, dry_run: bool = False, now: float | None = None
) -> Collected:
    """Remove sessions unused for `keep_days`, then others until the journal takes at most `keep_mb`; 0 is no limit.

    With `dry_run` nothing is changed. Raises `Unavailable` while another collection is under way, and `JournalFailed`
    if the journal cannot be read or written.
    """
    try:
        with _alone(journal.data_dir):
            return await _collect(journal, keep_days, keep_mb, dry_run, time.time() if now is None else now)
    except OSError as exc:
        raise failure(exc, journal.data_dir) from exc


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Keep other collectors out; the system lets them in again when the process ends."""
    with open(data_dir / "collect.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable("The journal is being cleared up already.", remedy="Try again later.") from None
        yield


async def _collect(journal: Journal, keep_days: int, keep_mb: int, dry_run: bool, at: float) -> Collected:
    if not dry_run:
        await _finish_removals(journal)
    usages = await journal.read(partial(_sessions, journal))
    damaged = ""
    for usage in usages:
        damaged = await journal.read(partial(_survey, journal.blobs, usage)) or damaged
    found = await to_thread.run_sync(lambda: {digest: size for digest, size, _ in journal.blobs.listed()})
    taken = await journal.read(_bytes_used)
    going, kept = plan(usages, found, taken, at - keep_days * DAY_S if keep_days else None, keep_mb * MB)
    if not dry_run:
        going = [usage for usage in going if await _remove(journal, usage)]
    gone = {usage.id for usage in going}
    if damaged:
        kept = {**kept, "blobs": damaged}
        swept = (0, 0)
    else:
        used = set[str]().union(*(usage.blobs for usage in usages if usage.id not in gone))
        swept = await to_thread.run_sync(_sweep, journal.blobs, used, at - FRESH_S, dry_run)
    if not dry_run:
        await _give_back(journal)
    events, size = sum(usage.events for usage in going), sum(usage.size for usage in going)
    return Collected(tuple(usage.id for usage in going), events, swept[0], swept[1] + size, kept)


def plan(
    usages: Sequence[Usage], blobs: Mapping[str, int], taken: int, due: float | None, limit: int
) -> tuple[list[Usage], dict[str, str]]:
    """Return the sessions that are to go, and why others that should go stay.

    `taken` is what the events take in bytes and `limit` what all may take, 0 for no limit; `due` is the time since
    which a session must have been used to stay.
    """
    refers = Counter(digest for usage in usages for digest in usage.blobs)
    excess = taken + sum(blobs.get(digest, 0) for digest in refers) - limit if limit else 0
    share = taken / (sum(usage.size for usage in usages) or 1)  # pages and indexes are more than the text
    needed = Counter(each for usage in usages for each in usage.needs)
    known = {usage.id: usage for usage in usages}
    free = [usage for usage in usages if not usage.stays and not needed[usage.id]]
    heapq.heapify(free)
    going: list[Usage] = []
    while free:
        usage = heapq.heappop(free)
        if excess <= 0 and not _is_due(usage, due):
            continue
        going.append(usage)
        refers.subtract(usage.blobs)
        excess -= int(usage.size * share) + sum(blobs.get(digest, 0) for digest in usage.blobs if not refers[digest])
        needed.subtract(usage.needs)
        for each in usage.needs & known.keys():
            if not needed[each] and not known[each].stays:
                heapq.heappush(free, known[each])
    gone = {usage.id for usage in going}
    kept = [usage for usage in usages if usage.id not in gone and (excess > 0 or _is_due(usage, due))]
    return going, {usage.id: usage.stays or "A session that is kept builds on it." for usage in kept}


def _is_due(usage: Usage, due: float | None) -> bool:
    return due is not None and usage.used < due


def _sessions(journal: Journal, rows: Connection) -> list[Usage]:
    """Return all sessions, those included that are being imported, and why some must stay."""
    usages = {row[0]: Usage(*row) for row in rows.execute(SESSIONS)}
    live = _live(journal, (usage.owner for usage in usages.values()))
    for session, reason in rows.execute(PINNED):
        usages[session].stays = f"One of its runs is pinned: {reason}"
    for usage in usages.values():
        if usage.owner in live:
            usage.stays = "A live server has it."
    for session, needs in rows.execute(NEEDS):
        usages[session].needs.add(needs)
    return list(usages.values())


def _live(journal: Journal, owners: Iterable[str | None]) -> set[str | None]:
    return {owner for owner in set(owners) if owner is not None and leases.alive(journal.data_dir, owner)}


def _survey(blobs: BlobStore, usage: Usage, rows: Connection) -> str:
    """Find out what a session takes; return what is wrong with an event of which that cannot be known."""
    usage.events, usage.size = rows.execute(SIZE, (usage.id,)).fetchone()
    damaged = ""
    for n, kind, body, large in rows.execute(BLOBS, (usage.id,)):
        try:
            fields = json.loads(body)
            long: dict[str, str] = json.loads(large) if large else {}
            usage.blobs |= set(long.values())
            if kind == "files_changed":
                changed = json.loads(blobs.get(long["changed"])) if "changed" in long else fields["changed"]
                usage.blobs |= {entry["digest"] for entry in changed.values()}
            elif "context" in long or fields.get("context"):
                inputs = json.loads(blobs.get(long["context"])) if "context" in long else fields["context"]
                usage.blobs |= {each["digest"] for each in inputs if each["digest"]}
        except (ValueError, KeyError, TypeError, AttributeError, JournalFailed, NotFound) as exc:
            damaged = f"Event {n} of session {usage.id!r} is damaged, and may refer to any of them: {exc}"
    return damaged


def _bytes_used(rows: Connection) -> int:
    pragmas = ("page_count", "freelist_count", "page_size")
    pages, free, size = (rows.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in pragmas)
    return int((pages - free) * size)


async def _remove(journal: Journal, usage: Usage) -> bool:
    """Remove a session, unless somebody has come to use or need it; say whether it is gone."""
    if not await journal.change(partial(_hide, usage)):
        return False
    await _erase(journal, usage.id)
    return True


def _hide(usage: Usage, rows: Connection) -> bool:
    same = rows.execute(f"{SESSIONS} WHERE id = ?", (usage.id,)).fetchone()
    if same != (usage.id, usage.owner, usage.purpose, usage.used):
        return False
    if rows.execute(IS_NEEDED, (usage.id,)).fetchone():
        return False
    changes.hide_sessions(rows, [usage.id])
    return True


async def _finish_removals(journal: Journal) -> None:
    """Erase what a removal or an import that was killed has left."""
    query = f"{SESSIONS} WHERE purpose = ?"
    found = await journal.read(lambda rows: rows.execute(query, (changes.PARTIAL,)).fetchall())
    live = _live(journal, (owner for _, owner, *_ in found))
    left = [session for session, owner, *_ in found if owner not in live]
    await journal.change(lambda rows: changes.hide_sessions(rows, left))
    for session in left:
        await _erase(journal, session)


async def _erase(journal: Journal, session: str) -> None:
    while await journal.change(partial(changes.erase, session=session, limit=BATCH)) == BATCH:
        pass


def _sweep(blobs: BlobStore, used: set[str], before: float, dry_run: bool) -> tuple[int, int]:
    """Discard blobs that are not used and were not put since `before`; return their number and size."""
    count = freed = 0
    for digest, size, put in blobs.listed():
        if digest not in used and put < before and (dry_run or blobs.discard(digest, before)):
            count += 1
            freed += size
    return count, freed


async def _give_back(journal: Journal) -> None:
    """Return free pages to the disk."""
    while await journal.change(_vacuum):
        pass


def _vacuum(rows: Connection) -> bool:
    """Give some pages back, and say whether there are more."""
    (before,) = rows.execute("PRAGMA freelist_count").fetchone()
    rows.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
    (after,) = rows.execute("PRAGMA freelist_count").fetchone()
    return bool(0 < after < before)
