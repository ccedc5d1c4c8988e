"""A session as one file that can be carried away: `export_session` writes it, `import_session` takes it in.

Rule 1: an archive is self-contained. Besides the session it holds the runs of other sessions that its lines pass
through, as sessions of their own, and every blob that an event refers to.
Rule 2: an archive that is taken in is taken whole. It is checked from end to end before anything is written; its
sessions are seen when they are complete, and what is left by a server that dies meanwhile is the collector's.
Rule 3: nobody's work goes on by being imported: a run that was under way is ended, and a client's keys are left out.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from sqlite3 import Connection
from typing import IO, Any

from anyio import from_thread, move_on_after, to_thread

from ..errors import JournalFailed, NotFound
from . import changes, queries
from .archive_events import Arrival, Lines, Names, line_of
from .archive_file import MANIFEST, ArchiveReader, ArchiveWriter, Manifest, Travelling, read_archive, write_archive
from .blobs import BlobStore
from .events import RunFinished, to_json
from .rows import Row, SessionRow, Stored
from .schema import failure
from .store import Journal

SESSION_ID = re.compile(r"s_[A-Za-z0-9_-]{1,64}")  # where one id has another form, all are replaced
RUN_ID = re.compile(r"r_[A-Za-z0-9_-]{1,64}")
NAME = re.compile(r"(?!s_)[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
IMPORT = "import"
BATCH = 200  # events in one transaction, so that others get their turn
TICK = 500  # blobs or events between two words of progress
UNDO_S = 30.0  # to take back what was imported; what is left then is the collector's
QUEUED = "run_queued"
OF_SESSION = ("session_opened", "sandbox_started", "sandbox_ended")  # what an ancestor's runs need besides their own
STOPPED = {"type": "Interrupted", "message": "The run was under way when its session was exported.", "traceback": ""}

Progress = Callable[[str], None]


def quiet(_: str) -> None:
    """Say nothing."""


# export -------------------------------------------------------------------------------------------


@dataclass
class Content:
    """What the events of an archive amount to; `lists` are blobs that name further blobs."""

    sessions: list[Travelling]
    runs: int
    events: int = 0
    blobs: set[str] = field(default_factory=set)
    lists: set[str] = field(default_factory=set)


async def export_session(
    journal: Journal,
    session: str,
    path: Path,
    *,
    force: bool = False,
    skip_damaged: bool = False,
    progress: Progress = quiet,
) -> Manifest:
    """Write `session` into the archive `path`, in place of another file only with `force`; return what it holds.

    Raises `NotFound`, `InvalidRequest` if the file cannot be written, and `JournalFailed` if a blob is damaged, unless
    `skip_damaged` says to go on without it.
    """
    return await to_thread.run_sync(partial(_export, journal, session, path, force, skip_damaged, progress))


def _export(
    journal: Journal, session: str, path: Path, force: bool, skip_damaged: bool, progress: Progress
) -> Manifest:
    with write_archive(path, force) as archive:
        with archive.events() as lines:
            content = from_thread.run(journal.read, lambda rows: _write_events(rows, session, lines))
        _tell(progress, f"{content.events} events of {content.runs} runs are written.")
        skipped = _write_blobs(journal.blobs, content, archive, skip_damaged, progress)
        manifest = Manifest(content.sessions, content.runs, content.events, skipped)
        archive.manifest(manifest)
    return manifest


def _write_events(rows: Connection, session: str, lines: IO[bytes]) -> Content:
    """Write the events of all runs that a session's lines pass through, each run after its parent."""
    found = queries.passed(rows, session)
    runs = {run for run, _ in found}
    ids = list(dict.fromkeys([session, *(owner for _, owner in found)]))
    content = Content([_travelling(queries.session_row(rows, each), runs) for each in ids], len(runs))
    rest = {each: _of_archive(rows, each, runs, whole=each == session) for each in ids}
    for run, owner in found:
        for row in rest[owner]:
            _write_event(owner, ids, row, content, lines)
            if row[3] == "run_started" and row[1] == run:
                break
    for each in ids:
        for row in rest[each]:
            _write_event(each, ids, row, content, lines)
    return content


def _travelling(row: SessionRow, runs: set[str]) -> Travelling:
    return Travelling(row.id, row.name, row.created, row.origin if row.origin in runs else None)


def _of_archive(rows: Connection, session: str, runs: set[str], *, whole: bool) -> Iterator[Row]:
    """Yield the events of a session's `runs`, and what these need besides; of a `whole` one, all that is its own.

    Nobody waits in a queue where an archive comes to.
    """
    for row in queries.raw_events(rows, session):
        is_ours = row[1] in runs and row[3] != QUEUED
        if is_ours if row[1] is not None else (whole or row[3] in OF_SESSION):
            yield row


def _write_event(session: str, ids: Sequence[str], row: Row, content: Content, lines: IO[bytes]) -> None:
    n, _, _, kind, _, body, large = row
    try:
        lines.write(line_of(ids.index(session), row))
        blobs: dict[str, str] = json.loads(large) if large else {}
        if kind == "files_changed":
            content.blobs |= _named_in(json.loads(body).get("changed"))
        content.blobs |= _named_in(json.loads(body).get("context"))
        content.lists |= {digest for name, digest in blobs.items() if name in ("changed", "context")}
    except (ValueError, AttributeError, TypeError, KeyError) as exc:
        raise JournalFailed(f"Event {n} of session {session!r} is damaged: {exc}") from exc
    content.events += 1
    content.blobs |= set(blobs.values())


def _named_in(entries: Mapping[str, Any] | Sequence[Any] | None) -> set[str]:
    """Return the blobs that are the content of files or inputs."""
    listed = entries.values() if isinstance(entries, Mapping) else entries or ()
    return {entry["digest"] for entry in listed} - {""}


def _write_blobs(
    blobs: BlobStore, content: Content, archive: ArchiveWriter, skip_damaged: bool, progress: Progress
) -> list[str]:
    """Add all blobs, and return the digests of those that are damaged."""
    skipped: list[str] = []
    for digest in sorted(content.lists):
        data = _write_blob(blobs, digest, archive, skip_damaged)
        if data is None:
            skipped.append(digest)
        else:
            content.blobs |= _named_in(json.loads(data))
    rest = sorted(content.blobs - content.lists)
    for count, digest in enumerate(rest):
        if _write_blob(blobs, digest, archive, skip_damaged) is None:
            skipped.append(digest)
        if count % TICK == 0:
            _tell(progress, f"{count} of {len(rest)} blobs are written.")
    return skipped


def _write_blob(blobs: BlobStore, digest: str, archive: ArchiveWriter, skip_damaged: bool) -> bytes | None:
    """Add a blob and return its content, or None if it is damaged."""
    try:
        data = blobs.get(digest)
    except (JournalFailed, NotFound) as exc:
        if skip_damaged:
            return None
        remedy = "Restore it, or have what is damaged left out."
        raise JournalFailed(f"The session cannot be exported whole. {exc.message}", remedy=remedy) from exc
    archive.blob(digest, data)
    return data


def _tell(progress: Progress, text: str) -> None:
    """Say how far it is, and stop if it was given up."""
    from_thread.run_sync(progress, text)
    from_thread.check_cancelled()


# import -------------------------------------------------------------------------------------------


async def import_session(journal: Journal, path: Path, principal: str, *, progress: Progress = quiet) -> SessionRow:
    """Take in the archive `path` as a session of `principal`, which no server has claimed; return it.

    Ids are kept if all are free here, else all are new; a name that is taken gets a number. Raises `InvalidRequest`,
    which names what is wrong with the archive, or `JournalFailed`; then nothing of it is in the journal.
    """
    arriving: list[str] = []
    try:
        return await to_thread.run_sync(partial(_import, journal, path, principal, arriving, progress))
    except BaseException:
        with move_on_after(UNDO_S, shield=True):
            await _take_back(journal, arriving)
        raise


def _import(journal: Journal, path: Path, principal: str, arriving: list[str], progress: Progress) -> SessionRow:
    with read_archive(path) as archive:
        lines = _checked(archive, principal, progress)
        names = from_thread.run(journal.read, lambda rows: _names(rows, archive.manifest, lines))
        _keep_blobs(journal.blobs, archive, lines.blobs, progress)
        travelling = list(zip(names.sessions, archive.manifest.sessions, strict=True))
        from_thread.run(journal.change, lambda rows: _begin(rows, journal.owner, principal, travelling, arriving))
        lines = Lines(archive, names)
        arrivals = iter(lines)
        while batch := list(islice(arrivals, BATCH)):
            from_thread.run(journal.change, partial(_record, batch))
            _tell(progress, f"{lines.count} of {archive.manifest.events} events are taken in.")
        return from_thread.run(journal.change, lambda rows: _complete(rows, principal, travelling, lines))


def _checked(archive: ArchiveReader, principal: str, progress: Progress) -> Lines:
    """Read the whole archive and return what it amounts to; raises `InvalidRequest`."""
    manifest = archive.manifest
    for session in manifest.sessions:
        if session.name is not None and not NAME.fullmatch(session.name):
            raise archive.refusal(MANIFEST, f"has a session of the name {session.name!r:.80}, which is none")
    for count, _ in enumerate(archive.check_blobs()):
        if count % TICK == 0:
            _tell(progress, f"{count} of {len(archive.blobs)} blobs are checked.")
    lines = Lines(archive, Names([session.id for session in manifest.sessions], str, principal))
    for count, _ in enumerate(lines):
        if count % TICK == 0:
            _tell(progress, f"{count} of {manifest.events} events are checked.")
    return lines


def _names(rows: Connection, manifest: Manifest, lines: Lines) -> Names:
    """Return the ids to use here."""
    sessions, runs = [session.id for session in manifest.sessions], list(lines.runs)
    is_ours = all(map(SESSION_ID.fullmatch, sessions)) and all(map(RUN_ID.fullmatch, runs))
    if is_ours and len(set(sessions)) == len(sessions) and not queries.taken(rows, sessions, runs):
        return Names(sessions, str, lines.names.principal)
    new = {run: f"r_{secrets.token_urlsafe(9)}" for run in runs}
    return Names([f"s_{secrets.token_urlsafe(16)}" for _ in sessions], new.__getitem__, lines.names.principal)


def _keep_blobs(blobs: BlobStore, archive: ArchiveReader, digests: set[str], progress: Progress) -> None:
    try:
        for count, digest in enumerate(sorted(digests)):
            if not blobs.refresh(digest, archive.sizes[digest]):
                with blobs.writer() as writer:
                    for chunk in archive.chunks(digest):
                        writer.write(chunk)
                    writer.keep()
            if count % TICK == 0:
                _tell(progress, f"{count} of {len(digests)} blobs are taken in.")
    except OSError as exc:
        raise failure(exc, blobs.root) from exc


def _begin(
    rows: Connection, owner: str, principal: str, travelling: Sequence[tuple[str, Travelling]], arriving: list[str]
) -> None:
    for session, told in travelling:
        row = SessionRow(session, None, principal, told.created, told.created, owner, None, 0, None, changes.PARTIAL)
        changes.create_session(rows, owner, row)
    arriving[:] = [session for session, _ in travelling]  # not before: the ids might be somebody else's


def _record(batch: Sequence[Arrival], rows: Connection) -> None:
    for each in batch:
        changes.write_event(rows, each.stored, each.body, each.large)


def _complete(
    rows: Connection, principal: str, travelling: Sequence[tuple[str, Travelling]], lines: Lines
) -> SessionRow:
    """End what was under way, and let the sessions be seen; return the one that was exported."""
    now = time.time()
    for run, number in lines.unfinished.items():
        flags = ["interrupted"] if run in lines.parents else ["interrupted", "undone"]
        event = RunFinished("cancelled", error=STOPPED, flags=flags)
        lines.last[number] += 1
        stored = Stored(lines.names.sessions[number], lines.last[number], lines.names.run(run), now, event)
        changes.write_event(rows, stored, to_json(event), None)
    made = []
    for number, (session, told) in enumerate(travelling):
        origin = None if told.origin is None else lines.names.run(told.origin)
        tip = None if number in lines.moved else origin
        row = SessionRow(session, told.name, principal, told.created, now, None, tip, 0, origin, IMPORT)
        made.append(changes.complete_session(rows, row))
    return made[0]


async def _take_back(journal: Journal, sessions: Sequence[str]) -> None:
    """Remove what a failed import has left; what cannot be removed now is hidden, and the collector's."""
    query = "SELECT 1 FROM sessions WHERE id = ? AND owner = ? AND purpose = ?"

    def hide(rows: Connection) -> list[str]:
        ours = [each for each in sessions if rows.execute(query, (each, journal.owner, changes.PARTIAL)).fetchone()]
        changes.hide_sessions(rows, ours)
        return ours

    with suppress(JournalFailed):
        for session in await journal.change(hide):
            while await journal.change(partial(changes.erase, session=session, limit=BATCH)) == BATCH:
                pass
