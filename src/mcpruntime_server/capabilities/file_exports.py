"""Copies files that code exports to a folder of the user.

The content comes with the calls, in pieces, because the host gets the files of a workspace only at
the end of a run. So an export is a call like any other: it is journaled, a dry run plans it, and a
replay answers it from the recording and writes nothing.

Rule 1: nothing is overwritten: a file whose name is taken gets a number. Nothing is followed or
written outside the folder, and nobody but its owner can read what is written.
Rule 2: a file appears when all of its content is there and has the SHA-256 that was announced. A
run that a crash has interrupted continues with the pieces that are there.
"""

from __future__ import annotations

import base64
import binascii
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from ..errors import CallFailed
from ..journal.call_scope import current_call_scope

EXPORT_TARGET = "files.export"
MAX_NAME_BYTES = 200
MAX_NUMBERED_NAMES = 1_000
DRAFT_SUFFIX = ".part"


class FileExporter:
    """Writes exported files into `folder`, of at most `max_bytes` each."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    async def handle_call(self, target: str, args: dict[str, Any]) -> str | None:
        """Take one piece of a file; return the path once it is complete.

        Raises `CallFailed`.
        """
        if target != EXPORT_TARGET:
            raise CallFailed("not_found", f"There is no {target!r:.100}.")
        piece = FilePiece(args, self._max_bytes)
        scope = current_call_scope()
        draft = f".{scope.run_id}-{piece.digest[:16]}{DRAFT_SUFFIX}"
        try:
            path = await run_sync(self._write_piece, self.folder / draft, piece)
        except OSError as exc:
            raise CallFailed(
                "unavailable", f"{piece.name!r} cannot be written to {self.folder}: {exc.strerror}."
            ) from None
        scope.describe_call({"name": piece.name, "size": piece.size}, path or "")
        return path

    def _write_piece(self, draft: Path, piece: FilePiece) -> str | None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(draft, flags, 0o600)
        try:
            os.pwrite(fd, piece.data, piece.offset)
            if not piece.is_last:
                return None
            os.truncate(fd, piece.size)
            with os.fdopen(os.dup(fd), "rb") as file:
                file.seek(0)
                digest = sha256()
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        finally:
            os.close(fd)
        if digest.hexdigest() != piece.digest:
            draft.unlink()
            raise CallFailed("invalid_arguments", f"The content of {piece.name!r} is incomplete.")
        return str(publish_file(draft, self.folder / piece.name))


class FilePiece:
    """A checked piece of a file, as code has sent it."""

    def __init__(self, args: dict[str, Any], max_bytes: int) -> None:
        name, digest, data = (args.get(key) for key in ("name", "sha256", "data"))
        size, offset = args.get("size"), args.get("offset")
        if not (isinstance(name, str) and isinstance(digest, str) and isinstance(data, str)):
            raise CallFailed("invalid_arguments", "A piece has a name, its SHA-256 and its data.")
        if type(size) is not int or type(offset) is not int:
            raise CallFailed("invalid_arguments", "A piece has the file's size and an offset.")
        if size > max_bytes:
            message = f"{name!r:.200} has {size:,} bytes; at most {max_bytes:,} can be exported."
            raise CallFailed("invalid_arguments", message)
        try:
            self.data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise CallFailed("invalid_arguments", "The data of a piece is base64.") from None
        if not 0 <= offset <= offset + len(self.data) <= size:
            raise CallFailed("invalid_arguments", "The piece is not within the file.")
        self.name = check_name(name)
        self.digest = digest
        self.size = size
        self.offset = offset
        self.is_last = offset + len(self.data) == size


def check_name(name: str) -> str:
    """Return a file name without a folder; raises `CallFailed` for anything else."""
    is_plain = "/" not in name and name.isprintable() and not name.startswith(".")
    if not name or not is_plain or len(name.encode()) > MAX_NAME_BYTES:
        raise CallFailed(
            "invalid_arguments",
            f"{name!r:.200} is not a name for an exported file: it has no folder, does not begin "
            f"with a dot, and has at most {MAX_NAME_BYTES} bytes.",
        )
    return name


def publish_file(draft: Path, target: Path) -> Path:
    """Give a file its name, with a number if that is taken; return its path."""
    for number in range(1, MAX_NUMBERED_NAMES + 1):
        path = target
        if number > 1:
            path = target.with_name(f"{target.stem} ({number}){target.suffix}")
        try:
            os.link(draft, path, follow_symlinks=False)  # fails if the name is taken
        except FileExistsError:
            continue
        draft.unlink()
        return path
    draft.unlink()
    raise CallFailed("unavailable", f"There are too many files called {target.name!r}.")
