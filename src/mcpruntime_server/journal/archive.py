"""Export a session to one file, and import it into another journal.

Rule 1: an archive is self-contained. Besides the session it holds the ancestors of its runs that
are in other sessions, as sessions of their own, and every blob that an event refers to.
Rule 2: an archive is imported whole. It is checked from end to end before anything is written, its
sessions become visible when they are complete, and garbage collection removes what an import that
was killed has left.
Rule 3: an import resumes nothing: an unfinished run is finished, and clients' keys are left out.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from sqlite3 import Connection
from typing import IO

from anyio import from_thread, move_on_after, to_thread

from ..errors import JournalFailed, NotFound
from . import mutations, queries
from .archive_events import ArchivedEventReader, ImportedEvent, ImportNames, encode_event_line
from .archive_file import (
    MANIFEST_MEMBER,
    ArchivedSession,
    ArchiveManifest,
    ArchiveReader,
    ArchiveWriter,
    read_archive,
    write_archive,
)
from .blob_store import BlobStore
from .events import RunError, RunFinished, event_to_json, listed_digests
from .progress import ReportProgress, ignore_progress
from .rows import INTERRUPTED_FLAG, UNDONE_FLAG, RawEventRow, SessionRow, StoredEvent
from .schema import journal_error
from .store import Journal

# ids of other forms are all replaced when they are imported
SESSION_ID_PATTERN = re.compile(r"s_[A-Za-z0-9_-]{1,64}")
RUN_ID_PATTERN = re.compile(r"r_[A-Za-z0-9_-]{1,64}")
SESSION_NAME_PATTERN = re.compile(r"(?!s_)[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
IMPORT_PURPOSE = "import"
MAX_EVENTS_PER_TRANSACTION = 200  # so that others get their turn
PROGRESS_INTERVAL = 500  # blobs or events between two reports
ROLLBACK_TIMEOUT_S = 30.0  # for a failed import; garbage collection removes the rest
RUN_QUEUED_KIND = "run_queued"
SESSION_EVENT_KINDS = ("session_opened", "sandbox_started", "sandbox_stopped")  # runs need these
INTERRUPTED_ERROR: RunError = {
    "type": "Interrupted",
    "message": "The run was unfinished when its session was exported.",
    "traceback": "",
    "line": None,
    "hint": "",
}


def _report_progress(progress: ReportProgress, text: str) -> None:
    """Report on the event loop; raises the cancellation of the import or export, if any."""
    from_thread.run_sync(progress, text)
    from_thread.check_cancelled()


# export -----------------------------------------------------------------------------------------


@dataclass
class ArchiveContent:
    """What the events of an archive refer to; `list_blobs` name further blobs."""

    sessions: list[ArchivedSession]
    run_count: int
    event_count: int = 0
    blobs: set[str] = field(default_factory=set)
    list_blobs: set[str] = field(default_factory=set)


async def export_session(
    journal: Journal,
    session_id: str,
    path: Path,
    *,
    force: bool = False,
    skip_damaged: bool = False,
    progress: ReportProgress = ignore_progress,
) -> ArchiveManifest:
    """Write a session into the archive `path` and return its manifest; `force` replaces a file.

    Raises `NotFound`, `InvalidRequest` if the file cannot be written, and `JournalFailed` if a
    blob is damaged, unless `skip_damaged` leaves such blobs out.
    """
    return await to_thread.run_sync(
        partial(_export_session, journal, session_id, path, force, skip_damaged, progress)
    )


def _export_session(
    journal: Journal,
    session_id: str,
    path: Path,
    force: bool,
    skip_damaged: bool,
    progress: ReportProgress,
) -> ArchiveManifest:
    with write_archive(path, force) as archive:
        with archive.open_events() as lines:
            content = from_thread.run(
                journal.read, lambda rows: _write_events(rows, session_id, lines)
            )
        written = f"{content.event_count} events of {content.run_count} runs are written."
        _report_progress(progress, written)
        skipped = _write_blobs(journal.blobs, content, archive, skip_damaged, progress)
        manifest = ArchiveManifest(
            content.sessions, content.run_count, content.event_count, skipped
        )
        archive.write_manifest(manifest)
    return manifest


def _write_events(rows: Connection, session_id: str, lines: IO[bytes]) -> ArchiveContent:
    """Write the events of every run of a session and its ancestors, each run after its parent."""
    visited = queries.list_visited_runs(rows, session_id)
    run_ids = {run_id for run_id, _ in visited}
    session_ids = list(dict.fromkeys([session_id, *(owner_id for _, owner_id in visited)]))
    sessions = [
        _describe_session(queries.load_session(rows, each), run_ids) for each in session_ids
    ]
    content = ArchiveContent(sessions, len(run_ids))
    events = {
        each: _select_events(rows, each, run_ids, is_whole=each == session_id)
        for each in session_ids
    }

    def write(owner_id: str, row: RawEventRow) -> None:
        _write_event(owner_id, session_ids.index(owner_id), row, content, lines)

    for run_id, owner_id in visited:
        for row in events[owner_id]:
            write(owner_id, row)
            if row.kind == "run_started" and row.run_id == run_id:
                break
    for owner_id in session_ids:
        for row in events[owner_id]:
            write(owner_id, row)
    return content


def _describe_session(row: SessionRow, run_ids: set[str]) -> ArchivedSession:
    origin = row.origin if row.origin in run_ids else None
    return ArchivedSession(row.id, row.name, row.created_at, origin)


def _select_events(
    rows: Connection, session_id: str, run_ids: set[str], *, is_whole: bool
) -> Iterator[RawEventRow]:
    """Yield the events of a session's runs `run_ids`, and those without a run that they need.

    If the session `is_whole`, all events without a run are included. Queued runs are left out:
    nobody waits for them where the archive is imported.
    """
    for row in queries.iter_raw_events(rows, session_id):
        if row.run_id is None:
            is_selected = is_whole or row.kind in SESSION_EVENT_KINDS
        else:
            is_selected = row.run_id in run_ids and row.kind != RUN_QUEUED_KIND
        if is_selected:
            yield row


def _write_event(
    session_id: str, number: int, row: RawEventRow, content: ArchiveContent, lines: IO[bytes]
) -> None:
    """Write an event of session number `number` in the archive, and note its blobs."""
    try:
        lines.write(encode_event_line(number, row))
        fields = json.loads(row.body)
        digests: dict[str, str] = json.loads(row.large_fields) if row.large_fields else {}
        if row.kind == "files_changed":
            content.blobs |= listed_digests(fields.get("changed"))
        if row.kind == "call_finished":
            content.blobs |= set(fields.get("blobs", ()))
        content.blobs |= listed_digests(fields.get("context"))
        content.list_blobs |= {
            digest for name, digest in digests.items() if name in ("changed", "context")
        }
    except (ValueError, AttributeError, TypeError, KeyError) as exc:
        raise JournalFailed(
            f"Event {row.sequence} of session {session_id!r} is damaged: {exc}"
        ) from exc
    content.event_count += 1
    content.blobs |= set(digests.values())


def _write_blobs(
    blobs: BlobStore,
    content: ArchiveContent,
    archive: ArchiveWriter,
    skip_damaged: bool,
    progress: ReportProgress,
) -> list[str]:
    """Add all blobs, and return the digests of those that are damaged."""
    skipped: list[str] = []
    for digest in sorted(content.list_blobs):
        data = _write_blob(blobs, digest, archive, skip_damaged)
        if data is None:
            skipped.append(digest)
        else:
            content.blobs |= listed_digests(json.loads(data))
    rest = sorted(content.blobs - content.list_blobs)
    for count, digest in enumerate(rest):
        if _write_blob(blobs, digest, archive, skip_damaged) is None:
            skipped.append(digest)
        if count % PROGRESS_INTERVAL == 0:
            _report_progress(progress, f"{count} of {len(rest)} blobs are written.")
    return skipped


def _write_blob(
    blobs: BlobStore, digest: str, archive: ArchiveWriter, skip_damaged: bool
) -> bytes | None:
    """Add a blob and return its content, None if it is damaged and may be skipped."""
    try:
        data = blobs.get(digest)
    except (JournalFailed, NotFound) as exc:
        if skip_damaged:
            return None
        raise JournalFailed(
            f"The session cannot be exported whole. {exc.message}",
            remedy="Restore the blob, or export without what is damaged.",
        ) from exc
    archive.add_blob(digest, data)
    return data


# import -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImportedSession:
    """A session of an archive, and the id that it gets here."""

    id: str
    archived: ArchivedSession


async def import_session(
    journal: Journal,
    path: Path,
    principal: str,
    *,
    progress: ReportProgress = ignore_progress,
) -> SessionRow:
    """Import the archive `path` as a session of `principal` without an owner; return it.

    Ids are kept if all of them are free, else all are replaced; a taken name gets a number. Raises
    `InvalidRequest`, which says what is wrong with the archive, or `JournalFailed`; then nothing
    of it is in the journal.
    """
    created_ids: list[str] = []
    try:
        return await to_thread.run_sync(
            partial(_import_session, journal, path, principal, created_ids, progress)
        )
    except BaseException:
        with move_on_after(ROLLBACK_TIMEOUT_S, shield=True):
            await _roll_back(journal, created_ids)
        raise


def _import_session(
    journal: Journal,
    path: Path,
    principal: str,
    created_ids: list[str],
    progress: ReportProgress,
) -> SessionRow:
    with read_archive(path) as archive:
        checked = _validate_archive(archive, principal, progress)
        names = from_thread.run(
            journal.read, lambda rows: _choose_names(rows, archive.manifest, checked)
        )
        _store_blobs(journal.blobs, archive, checked.used_blobs, progress)
        sessions = list(map(ImportedSession, names.session_ids, archive.manifest.sessions))
        from_thread.run(
            journal.write,
            lambda rows: _create_partial_sessions(
                rows, journal.owner, principal, sessions, created_ids
            ),
        )
        reader = ArchivedEventReader(archive, names)
        events = iter(reader)
        while batch := list(islice(events, MAX_EVENTS_PER_TRANSACTION)):
            from_thread.run(journal.write, partial(_insert_events, batch))
            total = archive.manifest.event_count
            _report_progress(progress, f"{reader.event_count} of {total} events are imported.")
        return from_thread.run(
            journal.write, lambda rows: _publish_sessions(rows, principal, sessions, reader)
        )


def _validate_archive(
    archive: ArchiveReader, principal: str, progress: ReportProgress
) -> ArchivedEventReader:
    """Read and check the whole archive; return its reader. Raises `InvalidRequest`."""
    manifest = archive.manifest
    for session in manifest.sessions:
        if session.name is not None and not SESSION_NAME_PATTERN.fullmatch(session.name):
            raise archive.rejection(
                MANIFEST_MEMBER, f"has an invalid session name {session.name!r:.80}"
            )
    for count, _ in enumerate(archive.verify_blobs()):
        if count % PROGRESS_INTERVAL == 0:
            _report_progress(progress, f"{count} of {len(archive.blob_digests)} blobs are checked.")
    session_ids = [session.id for session in manifest.sessions]
    reader = ArchivedEventReader(archive, ImportNames(session_ids, str, principal))
    for count, _ in enumerate(reader):
        if count % PROGRESS_INTERVAL == 0:
            _report_progress(progress, f"{count} of {manifest.event_count} events are checked.")
    return reader


def _choose_names(
    rows: Connection, manifest: ArchiveManifest, checked: ArchivedEventReader
) -> ImportNames:
    """Return the ids to use in this journal."""
    session_ids = [session.id for session in manifest.sessions]
    run_ids = list(checked.run_sessions)
    are_valid = (
        all(map(SESSION_ID_PATTERN.fullmatch, session_ids))
        and all(map(RUN_ID_PATTERN.fullmatch, run_ids))
        and len(set(session_ids)) == len(session_ids)
    )
    principal = checked.names.principal
    if are_valid and not queries.has_any_id(rows, session_ids, run_ids):
        return ImportNames(session_ids, str, principal)
    new_run_ids = {run_id: f"r_{secrets.token_urlsafe(9)}" for run_id in run_ids}
    new_session_ids = [f"s_{secrets.token_urlsafe(16)}" for _ in session_ids]
    return ImportNames(new_session_ids, new_run_ids.__getitem__, principal)


def _store_blobs(
    blobs: BlobStore, archive: ArchiveReader, digests: set[str], progress: ReportProgress
) -> None:
    archive.start_pass()
    try:
        for count, digest in enumerate(sorted(digests)):
            if not blobs.refresh(digest, archive.blob_sizes[digest]):
                with blobs.open_writer() as writer:
                    for chunk in archive.iter_chunks(digest):
                        writer.write(chunk)
                    writer.commit()
            if count % PROGRESS_INTERVAL == 0:
                _report_progress(progress, f"{count} of {len(digests)} blobs are imported.")
    except OSError as exc:
        raise journal_error(exc, blobs.root) from exc


def _create_partial_sessions(
    rows: Connection,
    owner: str,
    principal: str,
    sessions: Sequence[ImportedSession],
    created_ids: list[str],
) -> None:
    for session in sessions:
        row = SessionRow(
            id=session.id,
            name=None,
            principal=principal,
            created_at=session.archived.created_at,
            last_used_at=session.archived.created_at,
            owner=owner,
            tip=None,
            run_count=0,
            origin=None,
            purpose=mutations.PARTIAL_PURPOSE,
        )
        mutations.insert_session(rows, owner, row)
    # only now: before, an id might have belonged to another session, which must not be rolled back
    created_ids[:] = [session.id for session in sessions]


def _insert_events(batch: Sequence[ImportedEvent], rows: Connection) -> None:
    for each in batch:
        mutations.insert_event(rows, each.stored, each.body, each.large_fields)


def _publish_sessions(
    rows: Connection,
    principal: str,
    sessions: Sequence[ImportedSession],
    reader: ArchivedEventReader,
) -> SessionRow:
    """Finish unfinished runs and make the sessions visible; return the one that was exported."""
    now = time.time()
    names = reader.names
    for run_id, number in reader.unfinished_runs.items():
        flags = [INTERRUPTED_FLAG]
        if run_id not in reader.parent_ids:
            flags.append(UNDONE_FLAG)
        event = RunFinished("cancelled", error=INTERRUPTED_ERROR, flags=flags)
        reader.last_sequences[number] += 1
        stored = StoredEvent(
            session_id=names.session_ids[number],
            sequence=reader.last_sequences[number],
            run_id=names.map_run_id(run_id),
            recorded_at=now,
            event=event,
        )
        mutations.insert_event(rows, stored, event_to_json(event), None)
    published = []
    for number, session in enumerate(sessions):
        archived = session.archived
        origin = None if archived.origin is None else names.map_run_id(archived.origin)
        row = SessionRow(
            id=session.id,
            name=archived.name,
            principal=principal,
            created_at=archived.created_at,
            last_used_at=now,
            owner=None,
            tip=None if number in reader.moved_sessions else origin,
            run_count=0,
            origin=origin,
            purpose=IMPORT_PURPOSE,
        )
        published.append(mutations.publish_session(rows, row))
    return published[0]


async def _roll_back(journal: Journal, session_ids: Sequence[str]) -> None:
    """Remove what a failed import has created.

    What cannot be removed now is hidden, and garbage collection removes it.
    """
    query = "SELECT 1 FROM sessions WHERE id = ? AND owner = ? AND purpose = ?"

    def hide(rows: Connection) -> list[str]:
        hidden = [
            each
            for each in session_ids
            if rows.execute(query, (each, journal.owner, mutations.PARTIAL_PURPOSE)).fetchone()
        ]
        mutations.hide_sessions(rows, hidden)
        return hidden

    limit = MAX_EVENTS_PER_TRANSACTION
    with suppress(JournalFailed):
        for session_id in await journal.write(hide):
            erase = partial(mutations.erase_events, session_id=session_id, limit=limit)
            while await journal.write(erase) == limit:
                pass
