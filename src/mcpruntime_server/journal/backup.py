"""Backups: one tar file with everything that a server keeps, written while servers work.

Rule 1: no garbage is collected meanwhile, and the journal is copied before the blobs. A blob is
stored before the event that names it, so every event of the copy finds its blobs.
Rule 2: what only a running server needs is left out, and what can be made again: locks, logs,
sandboxes, staged inputs, indexes of knowledge.
Rule 3: a run that had not ended does not continue in the restored folder. What its server has done
after the copy is not known, and no call may be made twice.
Rule 4: a backup is restored into an empty folder, whole or not at all. Nothing in the file is
trusted: only plain files below the two folders are written, and each blob is verified.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO

from anyio import to_thread

from ..errors import InvalidRequest, Unavailable
from .events import RunError, RunFinished
from .retention import collection_lock
from .rows import UNDONE_FLAG
from .schema import connect_reader, journal_error
from .store import Journal, open_journal

MANIFEST = "mcpruntime-backup.json"
FORMAT = 1
DATA, SKILLS = "data", "skills"  # the folders in the file
JOURNAL = "journal.db"
BLOBS = "blobs"
TRANSIENT_NAME = re.compile(
    r"servers|logs|inputs|sandboxes|.*\.lock|\.(?:backup|restore)-.*"
    r"|journal\.db(?:-shm|-wal)?|knowledge-[0-9]+\.db(?:-shm|-wal)?"
)
MAX_MANIFEST_BYTES = 64 * 1024
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class BackupSummary:
    """What a backup holds, or what was restored."""

    files: int
    bytes: int
    ended_runs: int = 0  # that had not ended, and do not continue


def write_backup(data_dir: Path, skills_dir: Path, target: IO[bytes]) -> BackupSummary:
    """Write everything below the data folder, and the skills, to `target`. This blocks.

    Raises `JournalFailed`, and `Unavailable` while garbage is collected or a file changes.
    """
    if not (data_dir / JOURNAL).is_file():
        raise InvalidRequest(
            f"There is no journal in {data_dir}.", remedy="Name the folder with --data-dir."
        )
    files = size = 0
    with (
        collection_lock(data_dir),
        tempfile.TemporaryDirectory(prefix=".backup-", dir=data_dir) as drafts,
        tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        snapshot = Path(drafts, JOURNAL)
        copy_database(data_dir / JOURNAL, snapshot)
        manifest = json.dumps({"format": FORMAT, "created_at": time.time()}).encode()
        tar.addfile(describe_file(MANIFEST, len(manifest)), io.BytesIO(manifest))
        entries = [(f"{DATA}/{JOURNAL}", snapshot), *list_state(data_dir, skills_dir)]
        for name, path in entries:
            with suppress(FileNotFoundError), path.open("rb") as file:  # it may be gone
                size_bytes = os.fstat(file.fileno()).st_size
                try:
                    tar.addfile(describe_file(name, size_bytes), file)
                except OSError as exc:
                    raise Unavailable(f"{path} could not be copied: {exc}.") from exc
                files, size = files + 1, size + size_bytes
    return BackupSummary(files, size)


def copy_database(source: Path, target: Path) -> None:
    """Copy a database that others may be writing, as it is at one moment."""
    try:
        with closing(connect_reader(source)) as reader, closing(sqlite3.connect(target)) as copy:
            reader.backup(copy)
    except sqlite3.Error as exc:
        raise journal_error(exc, source) from exc


def list_state(data_dir: Path, skills_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files to copy beside the journal, with their names in the backup.

    The skills are apart, because another server may keep them in another place.
    """
    skills = skills_dir.resolve()
    for name, path in list_data_files(data_dir):
        parts = PurePosixPath(name).parts
        is_draft = parts[:2] == (BLOBS, "tmp")
        if not (TRANSIENT_NAME.fullmatch(parts[0]) or is_draft or skills in path.parents):
            yield f"{DATA}/{name}", path
    for name, path in list_data_files(skills):
        yield f"{SKILLS}/{name}", path


def list_data_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder by their relative names; links are left out."""
    folder = folder.resolve()
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix(), path


def describe_file(name: str, size: int) -> tarfile.TarInfo:
    """Return the header of a file that only its owner may read."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, time.time()
    return entry


async def restore_backup(source: IO[bytes], data_dir: Path, skills_dir: Path) -> BackupSummary:
    """Fill an empty data folder, and an empty folder of skills, from a backup.

    Raises `InvalidRequest` if a folder is not empty or the file is not a backup, and
    `JournalFailed`.
    """
    draft = await to_thread.run_sync(make_draft, data_dir, skills_dir)
    try:
        summary = await to_thread.run_sync(extract_backup, source, draft)
        async with open_journal(draft / DATA) as journal:
            ended = await end_unfinished_runs(journal)
        await to_thread.run_sync(move_into_place, draft, data_dir, skills_dir)
    except OSError as exc:
        raise Unavailable(f"The backup could not be restored: {exc}.") from exc
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return BackupSummary(summary.files, summary.bytes, ended)


def make_draft(data_dir: Path, skills_dir: Path) -> Path:
    """Return a new folder in the data folder, where the files are written first."""
    for folder in (data_dir, skills_dir):
        check_empty(folder)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".restore-", dir=data_dir))
    except OSError as exc:
        raise Unavailable(f"{data_dir} cannot be written: {exc.strerror}.") from exc


def move_into_place(draft: Path, data_dir: Path, skills_dir: Path) -> None:
    """Let the files be found, the journal last: without it, a folder counts as new."""
    shutil.rmtree(draft / DATA / "servers")
    if (draft / SKILLS).exists():
        shutil.copytree(draft / SKILLS, skills_dir, dirs_exist_ok=True)
    for path in sorted((draft / DATA).iterdir(), key=lambda each: each.name == JOURNAL):
        path.rename(data_dir / path.name)


def check_empty(folder: Path) -> None:
    """Raise `InvalidRequest` unless a folder is empty or does not exist."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {"lost+found", "README.md"}:
        raise InvalidRequest(
            f"{folder} is not empty.",
            remedy="Restore into a new folder with --data-dir, or move this one away.",
        )


def extract_backup(source: IO[bytes], target: Path) -> BackupSummary:
    """Write the files of a backup below `target`; raises `InvalidRequest` if it is damaged."""
    files = size = 0
    try:
        with tarfile.open(fileobj=source, mode="r|*") as tar:
            entries = iter(tar)
            read_manifest(tar, next(entries, None))
            for entry in entries:
                path = target / check_entry_name(entry)
                content = tar.extractfile(entry)
                assert content is not None, "it is a plain file"
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                digest = copy_content(content, path)
                if path.parent.parent.name == BLOBS and digest != path.name:
                    raise damaged_error(f"the content of {entry.name} is not what it was")
                files, size = files + 1, size + entry.size
    except (tarfile.TarError, EOFError, ValueError) as exc:
        raise damaged_error(str(exc)) from exc
    if not (target / DATA / JOURNAL).is_file():
        raise damaged_error("it ends early, or has no journal")
    return BackupSummary(files, size)


def read_manifest(tar: tarfile.TarFile, entry: tarfile.TarInfo | None) -> None:
    """Read the first entry; raises `InvalidRequest` if this version cannot restore the rest."""
    if entry is None or entry.name != MANIFEST or entry.size > MAX_MANIFEST_BYTES:
        raise InvalidRequest("This file is not a backup of this program.")
    content = tar.extractfile(entry)
    manifest = json.loads(content.read()) if content is not None else None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InvalidRequest(
            "This backup has another format.",
            remedy="Restore it with the version of this program that wrote it, or a newer one.",
        )


def check_entry_name(entry: tarfile.TarInfo) -> PurePosixPath:
    """Return the path of an entry below the target; raises `ValueError` if it may not be there."""
    path = PurePosixPath(entry.name)
    is_inside = path.parts[:1] in ((DATA,), (SKILLS,)) and len(path.parts) > 1
    if not entry.isreg() or not is_inside or ".." in path.parts:
        raise ValueError(f"{entry.name!r:.80} does not belong into a backup")
    return path


def copy_content(content: IO[bytes], path: Path) -> str:
    """Write a new file; return the digest of its content."""
    digest = sha256()
    with path.open("xb") as file:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def damaged_error(reason: str) -> InvalidRequest:
    """Return the error for a file that cannot be restored."""
    return InvalidRequest(
        f"The backup is damaged: {reason}.", remedy="Use another one; nothing was restored."
    )


async def end_unfinished_runs(journal: Journal) -> int:
    """End the runs that were queued or under way when the backup was made; return their number."""
    unfinished = await journal.list_interrupted_runs()
    for session, run in unfinished:
        await journal.claim_session(session.id)
        error: RunError = {
            "type": "Restored",
            "message": "It had not ended when the backup was made that this was restored from.",
            "traceback": "",
            "line": None,
            "hint": "What it did after that is not known: check before you run it again.",
        }
        journal.append(session.id, RunFinished("crashed", None, error, None, [UNDONE_FLAG]), run.id)
    for session_id in {session.id for session, _ in unfinished}:
        await journal.release_session(session_id)
    return len(unfinished)
