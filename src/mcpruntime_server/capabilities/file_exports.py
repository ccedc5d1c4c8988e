"""Copies files that code exports to a folder of the user.

The content comes ahead, in pieces (`uploads`), and the call that writes the file names them. So an
export is a call like any other: a dry run plans it, and a replay answers it from the recording and
writes nothing.

Rule 1: nothing is overwritten: a file whose name is taken gets a number, unless it has the same
content. So a call can be repeated. Nothing is followed or written outside the folder, and nobody
but its owner can read what is written.
Rule 2: a file appears when all of its content is there. What a killed server leaves half written
is removed later.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from anyio.to_thread import run_sync

from ..errors import CallFailed, JournalFailed, NotFound
from ..journal.blob_store import BlobStore
from ..journal.call_scope import current_call_scope
from ..protocol.payloads import JsonObject
from .uploads import Uploads

EXPORT_TARGET = "files.export"
DRAFT_PREFIX = ".mcpruntime-draft-"
DRAFT_NAME = re.compile(re.escape(DRAFT_PREFIX) + "[0-9a-f]{16}")
MAX_DRAFT_AGE_S = 3600.0  # since it was written to; other servers may write into the folder, too
MAX_NAME_BYTES = 200
MAX_NUMBERED_NAMES = 1_000
READ_BYTES = 1 << 20


class FileExporter:
    """Writes exported files into `folder`."""

    def __init__(self, folder: Path, blobs: BlobStore, uploads: Uploads) -> None:
        self.folder = folder
        self._blobs = blobs
        self._uploads = uploads

    async def handle_call(self, target: str, args: JsonObject) -> str:
        """Write a file and return its path; raises `CallFailed`."""
        if target != EXPORT_TARGET:
            raise CallFailed("not_found", f"There is no {target!r:.100}.")
        name, pieces = args.get("name"), args.get("pieces")
        if not isinstance(name, str) or not isinstance(pieces, list):
            raise CallFailed("invalid_arguments", "A file has a name and pieces.")
        if not all(isinstance(each, str) for each in pieces):
            raise CallFailed("invalid_arguments", "A piece is named by its digest.")
        name = check_export_name(name)
        await self._uploads.check_pieces(pieces)
        path, size = await run_sync(self._write_pieces, name, pieces)
        current_call_scope().describe_call({"name": name, "size": size}, path)
        return path

    def _write_pieces(self, name: str, pieces: list[str]) -> tuple[str, int]:
        try:
            path = write_file(self.folder, name, map(self._blobs.get, pieces))
            return str(path), path.stat().st_size
        except NotFound:
            raise CallFailed(
                "not_found", f"The content of {name!r} is no longer stored: export it again."
            ) from None
        except JournalFailed as exc:
            raise CallFailed("unavailable", exc.message) from None
        except OSError as exc:
            raise CallFailed(
                "unavailable", f"{name!r} cannot be written to {self.folder}: {exc.strerror}."
            ) from None


def check_export_name(name: str) -> str:
    """Return a file name without a folder; raises `CallFailed` for anything else."""
    is_plain = "/" not in name and name.isprintable() and not name.startswith(".")
    if not name or not is_plain or len(name.encode()) > MAX_NAME_BYTES:
        raise CallFailed(
            "invalid_arguments",
            f"{name!r:.200} is not a name for an exported file: it has no folder, does not begin "
            f"with a dot, and has at most {MAX_NAME_BYTES} bytes.",
        )
    return name


def write_file(folder: Path, name: str, chunks: Iterable[bytes]) -> Path:
    """Write a file, with a number if its name is taken; return its path.

    Raises `OSError`, or `CallFailed` if there are too many files of this name.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = folder / f"{DRAFT_PREFIX}{secrets.token_hex(8)}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        digest = sha256()
        with os.fdopen(fd, "wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return publish_file(draft, folder / name, digest.hexdigest())
    finally:
        draft.unlink(missing_ok=True)


def remove_old_drafts(folder: Path) -> int:
    """Remove what killed servers have left half written; return the number of files.

    Nothing else in the folder is touched, and no draft that is being written.
    """
    count = 0
    try:
        names = [name for name in os.listdir(folder) if DRAFT_NAME.fullmatch(name)]
    except OSError:  # there is no such folder yet
        return 0
    for name in names:
        with suppress(OSError):
            info = os.lstat(folder / name)
            is_own = stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid()
            if is_own and time.time() - info.st_mtime > MAX_DRAFT_AGE_S:
                os.unlink(folder / name)
                count += 1
    return count


def publish_file(draft: Path, target: Path, digest: str) -> Path:
    """Give a file its name, with a number if another file has it; return its path."""
    for number in range(1, MAX_NUMBERED_NAMES + 1):
        path = target
        if number > 1:
            path = target.with_name(f"{target.stem} ({number}){target.suffix}")
        try:
            os.link(draft, path, follow_symlinks=False)  # fails if the name is taken
        except FileExistsError:
            if hash_regular_file(path) != digest:
                continue
        return path
    raise CallFailed("unavailable", f"There are too many files called {target.name!r}.")


def hash_regular_file(path: Path) -> str:
    """Return the SHA-256 of a regular file; "" for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        digest = sha256()
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
        return digest.hexdigest()
