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
from .events import RunFinished, event_to_json
from .rows import RawEventRow, SessionRow, StoredEvent
from .schema import journal_error
from .store import Journal

SESSION_ID_PATTERN = re.compile(
    r"s_[A-Za-z0-9_-]{1,64}"
)  # where one id has another form, all are replaced
RUN_ID_PATTERN = re.compile(r"r_[A-Za-z0-9_-]{1,64}")
SESSION_NAME_PATTERN = re.compile(r"(?!s_)[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
IMPORT_PURPOSE = "import"
MAX_EVENTS_PER_TRANSACTION = 200  # events in one transaction, so that others get their turn
PROGRESS_INTERVAL = 500  # blobs or events between two words of progress
ROLLBACK_TIMEOUT_S = 30.0  # to take back what was imported; what is left then is the collector's
RUN_QUEUED_KIND = "run_queued"
SESSION_EVENT_KINDS = (
    "session_opened",
    "sandbox_started",
    "sandbox_ended",
)  # what an ancestor's runs need besides their own
INTERRUPTED_ERROR = {
    "type": "Interrupted",
    "message": "The run was under way when its session was exported.",
    "traceback": "",
}

ProgressCallback = Callable[[str], None]


def ignore_progress(_: str) -> None:
    """Say nothing."""


# export -------------------------------------------------------------------------------------------


@dataclass
class ArchiveContent:
    """What the events of an archive amount to; `lists` are blobs that name further blobs."""

    sessions: list[ArchivedSession]
    runs: int
    events: int = 0
    blobs: set[str] = field(default_factory=set)
    lists: set[str] = field(default_factory=set)


async def export_session(
    journal: Journal,
    session_id: str,
    path: Path,
    *,
    force: bool = False,
    skip_damaged: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> ArchiveManifest:
    """Write `session` into the archive `path`, in place of another file only with `force`; return what it holds.

    Raises `NotFound`, `InvalidRequest` if the file cannot be written, and `JournalFailed` if a blob is damaged, unless
    `skip_damaged` says to go on without it.
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
    progress: ProgressCallback,
) -> ArchiveManifest:
    with write_archive(path, force) as archive:
        with archive.open_events() as lines:
            content = from_thread.run(
                journal.read, lambda rows: _write_events(rows, session_id, lines)
            )
        _report_progress(progress, f"{content.events} events of {content.runs} runs are written.")
        skipped = _write_blobs(journal.blobs, content, archive, skip_damaged, progress)
        manifest = ArchiveManifest(content.sessions, content.runs, content.events, skipped)
        archive.write_manifest(manifest)
    return manifest


def _write_events(rows: Connection, session_id: str, lines: IO[bytes]) -> ArchiveContent:
    """Write the events of all runs that a session's lines pass through, each run after its parent."""
    found = queries.list_visited_runs(rows, session_id)
    runs = {run for run, _ in found}
    ids = list(dict.fromkeys([session_id, *(owner for _, owner in found)]))
    content = ArchiveContent(
        [_describe_session(queries.load_session(rows, each), runs) for each in ids], len(runs)
    )
    rest = {each: _select_events(rows, each, runs, whole=each == session_id) for each in ids}
    for run, owner in found:
        for row in rest[owner]:
            _write_event(owner, ids, row, content, lines)
            if row[3] == "run_started" and row[1] == run:
                break
    for each in ids:
        for row in rest[each]:
            _write_event(each, ids, row, content, lines)
    return content


def _describe_session(row: SessionRow, runs: set[str]) -> ArchivedSession:
    return ArchivedSession(
        row.id, row.name, row.created_at, row.origin if row.origin in runs else None
    )


def _select_events(
    rows: Connection, session_id: str, runs: set[str], *, whole: bool
) -> Iterator[RawEventRow]:
    """Yield the events of a session's `runs`, and what these need besides; of a `whole` one, all that is its own.

    Nobody waits in a queue where an archive comes to.
    """
    for row in queries.iter_raw_events(rows, session_id):
        is_ours = row[1] in runs and row[3] != RUN_QUEUED_KIND
        if is_ours if row[1] is not None else (whole or row[3] in SESSION_EVENT_KINDS):
            yield row


def _write_event(
    session_id: str, ids: Sequence[str], row: RawEventRow, content: ArchiveContent, lines: IO[bytes]
) -> None:
    n, _, _, kind, _, body, large = row
    try:
        lines.write(encode_event_line(ids.index(session_id), row))
        blobs: dict[str, str] = json.loads(large) if large else {}
        if kind == "files_changed":
            content.blobs |= _listed_digests(json.loads(body).get("changed"))
        content.blobs |= _listed_digests(json.loads(body).get("context"))
        content.lists |= {
            digest for name, digest in blobs.items() if name in ("changed", "context")
        }
    except (ValueError, AttributeError, TypeError, KeyError) as exc:
        raise JournalFailed(f"Event {n} of session {session_id!r} is damaged: {exc}") from exc
    content.events += 1
    content.blobs |= set(blobs.values())


def _listed_digests(entries: Mapping[str, Any] | Sequence[Any] | None) -> set[str]:
    """Return the blobs that are the content of files or inputs."""
    listed = entries.values() if isinstance(entries, Mapping) else entries or ()
    return {entry["digest"] for entry in listed} - {""}


def _write_blobs(
    blobs: BlobStore,
    content: ArchiveContent,
    archive: ArchiveWriter,
    skip_damaged: bool,
    progress: ProgressCallback,
) -> list[str]:
    """Add all blobs, and return the digests of those that are damaged."""
    skipped: list[str] = []
    for digest in sorted(content.lists):
        data = _write_blob(blobs, digest, archive, skip_damaged)
        if data is None:
            skipped.append(digest)
        else:
            content.blobs |= _listed_digests(json.loads(data))
    rest = sorted(content.blobs - content.lists)
    for count, digest in enumerate(rest):
        if _write_blob(blobs, digest, archive, skip_damaged) is None:
            skipped.append(digest)
        if count % PROGRESS_INTERVAL == 0:
            _report_progress(progress, f"{count} of {len(rest)} blobs are written.")
    return skipped


def _write_blob(
    blobs: BlobStore, digest: str, archive: ArchiveWriter, skip_damaged: bool
) -> bytes | None:
    """Add a blob and return its content, or None if it is damaged."""
    try:
        data = blobs.get(digest)
    except (JournalFailed, NotFound) as exc:
        if skip_damaged:
            return None
        remedy = "Restore it, or have what is damaged left out."
        raise JournalFailed(
            f"The session cannot be exported whole. {exc.message}", remedy=remedy
        ) from exc
    archive.add_blob(digest, data)
    return data


def _report_progress(progress: ProgressCallback, text: str) -> None:
    """Say how far it is, and stop if it was given up."""
    from_thread.run_sync(progress, text)
    from_thread.check_cancelled()


# import -------------------------------------------------------------------------------------------


async def import_session(
    journal: Journal, path: Path, principal: str, *, progress: ProgressCallback = ignore_progress
) -> SessionRow:
    """Take in the archive `path` as a session of `principal`, which no server has claimed; return it.

    Ids are kept if all are free here, else all are new; a name that is taken gets a number. Raises `InvalidRequest`,
    which names what is wrong with the archive, or `JournalFailed`; then nothing of it is in the journal.
    """
    arriving: list[str] = []
    try:
        return await to_thread.run_sync(
            partial(_import_session, journal, path, principal, arriving, progress)
        )
    except BaseException:
        with move_on_after(ROLLBACK_TIMEOUT_S, shield=True):
            await _roll_back(journal, arriving)
        raise


def _import_session(
    journal: Journal, path: Path, principal: str, arriving: list[str], progress: ProgressCallback
) -> SessionRow:
    with read_archive(path) as archive:
        lines = _validate_archive(archive, principal, progress)
        names = from_thread.run(
            journal.read, lambda rows: _choose_names(rows, archive.manifest, lines)
        )
        _store_blobs(journal.blobs, archive, lines.used_blobs, progress)
        travelling = list(zip(names.session_ids, archive.manifest.sessions, strict=True))
        from_thread.run(
            journal.write,
            lambda rows: _create_partial_sessions(
                rows, journal.owner, principal, travelling, arriving
            ),
        )
        lines = ArchivedEventReader(archive, names)
        arrivals = iter(lines)
        while batch := list(islice(arrivals, MAX_EVENTS_PER_TRANSACTION)):
            from_thread.run(journal.write, partial(_insert_events, batch))
            _report_progress(
                progress,
                f"{lines.event_count} of {archive.manifest.event_count} events are taken in.",
            )
        return from_thread.run(
            journal.write, lambda rows: _publish_sessions(rows, principal, travelling, lines)
        )


def _validate_archive(
    archive: ArchiveReader, principal: str, progress: ProgressCallback
) -> ArchivedEventReader:
    """Read the whole archive and return what it amounts to; raises `InvalidRequest`."""
    manifest = archive.manifest
    for session in manifest.sessions:
        if session.name is not None and not SESSION_NAME_PATTERN.fullmatch(session.name):
            raise archive.rejection(
                MANIFEST_MEMBER, f"has a session of the name {session.name!r:.80}, which is none"
            )
    for count, _ in enumerate(archive.verify_blobs()):
        if count % PROGRESS_INTERVAL == 0:
            _report_progress(progress, f"{count} of {len(archive.blob_digests)} blobs are checked.")
    lines = ArchivedEventReader(
        archive, ImportNames([session.id for session in manifest.sessions], str, principal)
    )
    for count, _ in enumerate(lines):
        if count % PROGRESS_INTERVAL == 0:
            _report_progress(progress, f"{count} of {manifest.event_count} events are checked.")
    return lines


def _choose_names(
    rows: Connection, manifest: ArchiveManifest, lines: ArchivedEventReader
) -> ImportNames:
    """Return the ids to use here."""
    sessions, runs = [session.id for session in manifest.sessions], list(lines.run_sessions)
    is_ours = all(map(SESSION_ID_PATTERN.fullmatch, sessions)) and all(
        map(RUN_ID_PATTERN.fullmatch, runs)
    )
    if (
        is_ours
        and len(set(sessions)) == len(sessions)
        and not queries.has_any_id(rows, sessions, runs)
    ):
        return ImportNames(sessions, str, lines.names.principal)
    new = {run: f"r_{secrets.token_urlsafe(9)}" for run in runs}
    return ImportNames(
        [f"s_{secrets.token_urlsafe(16)}" for _ in sessions], new.__getitem__, lines.names.principal
    )


def _store_blobs(
    blobs: BlobStore, archive: ArchiveReader, digests: set[str], progress: ProgressCallback
) -> None:
    try:
        for count, digest in enumerate(sorted(digests)):
            if not blobs.refresh(digest, archive.blob_sizes[digest]):
                with blobs.open_writer() as writer:
                    for chunk in archive.iter_chunks(digest):
                        writer.write(chunk)
                    writer.commit()
            if count % PROGRESS_INTERVAL == 0:
                _report_progress(progress, f"{count} of {len(digests)} blobs are taken in.")
    except OSError as exc:
        raise journal_error(exc, blobs.root) from exc


def _create_partial_sessions(
    rows: Connection,
    owner: str,
    principal: str,
    travelling: Sequence[tuple[str, ArchivedSession]],
    arriving: list[str],
) -> None:
    for session, told in travelling:
        row = SessionRow(
            session,
            None,
            principal,
            told.created_at,
            told.created_at,
            owner,
            None,
            0,
            None,
            mutations.PARTIAL_PURPOSE,
        )
        mutations.insert_session(rows, owner, row)
    arriving[:] = [
        session for session, _ in travelling
    ]  # not before: the ids might be somebody else's


def _insert_events(batch: Sequence[ImportedEvent], rows: Connection) -> None:
    for each in batch:
        mutations.insert_event(rows, each.stored, each.body, each.large)


def _publish_sessions(
    rows: Connection,
    principal: str,
    travelling: Sequence[tuple[str, ArchivedSession]],
    lines: ArchivedEventReader,
) -> SessionRow:
    """End what was under way, and let the sessions be seen; return the one that was exported."""
    now = time.time()
    for run, number in lines.unfinished_runs.items():
        flags = ["interrupted"] if run in lines.parent_ids else ["interrupted", "undone"]
        event = RunFinished("cancelled", error=INTERRUPTED_ERROR, flags=flags)
        lines.last_sequences[number] += 1
        stored = StoredEvent(
            lines.names.session_ids[number],
            lines.last_sequences[number],
            lines.names.map_run_id(run),
            now,
            event,
        )
        mutations.insert_event(rows, stored, event_to_json(event), None)
    made = []
    for number, (session, told) in enumerate(travelling):
        origin = None if told.origin is None else lines.names.map_run_id(told.origin)
        tip = None if number in lines.moved_sessions else origin
        row = SessionRow(
            session,
            told.name,
            principal,
            told.created_at,
            now,
            None,
            tip,
            0,
            origin,
            IMPORT_PURPOSE,
        )
        made.append(mutations.publish_session(rows, row))
    return made[0]


async def _roll_back(journal: Journal, sessions: Sequence[str]) -> None:
    """Remove what a failed import has left; what cannot be removed now is hidden, and the collector's."""
    query = "SELECT 1 FROM sessions WHERE id = ? AND owner = ? AND purpose = ?"

    def hide(rows: Connection) -> list[str]:
        ours = [
            each
            for each in sessions
            if rows.execute(query, (each, journal.owner, mutations.PARTIAL_PURPOSE)).fetchone()
        ]
        mutations.hide_sessions(rows, ours)
        return ours

    with suppress(JournalFailed):
        for session in await journal.write(hide):
            while (
                await journal.write(
                    partial(
                        mutations.erase_events, session_id=session, limit=MAX_EVENTS_PER_TRANSACTION
                    )
                )
                == MAX_EVENTS_PER_TRANSACTION
            ):
                pass
