"""Content-addressed storage: bytes are stored once, in a file named after their SHA-256.

Rule 1: a blob appears whole or not at all: it is written to a draft and renamed into place.
Rule 2: several threads and processes may store the same content at once; the last rename wins.
Rule 3: a blob is protected from `discard` for as long after it was put or refreshed as the caller
of `discard` says.
Rule 4: what is read is verified. A damaged blob is an error that names it, and storing the content
again repairs it.
Rule 5: with `is_synced`, a blob is on the disk before its digest is returned: an event never names
what the loss of the machine could take away.
This module is synchronous (call it from a worker thread) and does not know what the bytes mean.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from itertools import chain
from pathlib import Path
from typing import IO, TypeVar

from mcpruntime_server.errors import JournalFailed, NotFound

from .disk_sync import sync_file, sync_folder

ABANDONED_DRAFT_AGE_S = 24 * 3600  # without a write: then a killed server has left the draft
MAX_SYNCS = 8  # at once: a file system commits those that wait together
READ_ATTEMPTS = 10  # on a blob that garbage collection has set aside for a moment
SET_ASIDE_PREFIX = "aside-"  # of the name of a blob that is about to be discarded
ReadChunks = Callable[[], Iterator[bytes]]
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


class BlobStore:
    """Blobs below one folder, as `ab/abcd...`; `tmp/` holds drafts."""

    def __init__(self, root: Path, *, is_synced: bool = False) -> None:
        self.root = root
        self.is_synced = is_synced
        self.drafts = drafts = root / "tmp"
        drafts.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_synced:  # all folders at once: else each new blob would sync the root as well
            for number in range(256):
                (root / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            sync_folder(root)
        for draft in drafts.iterdir():
            with suppress(FileNotFoundError):  # another server may do the same now
                if draft.name.startswith(SET_ASIDE_PREFIX):
                    digest = draft.name.removeprefix(SET_ASIDE_PREFIX)
                    self._restore_set_aside(self.blob_path(digest))
                    draft.unlink()
                elif draft.stat().st_mtime < time.time() - ABANDONED_DRAFT_AGE_S:
                    draft.unlink()

    def blob_path(self, digest: str) -> Path:
        """Return the path of a blob; raises `NotFound` if `digest` is not a digest."""
        if not DIGEST_PATTERN.fullmatch(digest):
            raise NotFound(
                f"{digest!r} is not the name of a blob.", remedy="A name is 64 hexadecimal digits."
            )
        return self.root / digest[:2] / digest

    def put(self, data: bytes) -> str:
        """Store `data` and return its digest."""
        digest = sha256(data).hexdigest()
        if not self.refresh(digest, len(data)):
            with self.open_writer() as writer:
                writer.write(data)
                writer.commit()
        return digest

    def put_all(self, contents: Collection[bytes]) -> list[str]:
        """Store each of `contents` and return their digests."""
        if not self.is_synced or len(contents) == 1:
            return [self.put(data) for data in contents]
        with ThreadPoolExecutor(MAX_SYNCS) as pool:
            return list(pool.map(self.put, contents))

    def open_blob(self, digest: str) -> IO[bytes]:
        """Open a blob for reading, however large it is; raises as `get` does."""
        file = self._access(digest, lambda path: path.open("rb"))
        try:
            if file_digest(file, "sha256").hexdigest() != digest:
                raise self._damage_error(digest, file.tell())
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def put_stream(self, read_chunks: ReadChunks) -> str:
        """Store what `read_chunks` yields, chunk by chunk, and return its digest."""
        chunks = read_chunks()
        first, second = next(chunks, b""), next(chunks, None)
        if second is None:
            return self.put(first)
        with self.open_writer() as writer:
            for data in chain((first, second), chunks):
                writer.write(data)
            return writer.commit()

    def put_streams(self, contents: Collection[ReadChunks]) -> list[str]:
        """Store each of `contents` and return their digests."""
        if not self.is_synced or len(contents) == 1:
            return [self.put_stream(each) for each in contents]
        with ThreadPoolExecutor(MAX_SYNCS) as pool:
            return list(pool.map(self.put_stream, contents))

    def get(self, digest: str) -> bytes:
        """Return the content of a blob.

        Raises `NotFound`, or `JournalFailed` if it is damaged or unreadable.
        """
        data = self._access(digest, Path.read_bytes)
        if sha256(data).hexdigest() != digest:
            raise self._damage_error(digest, len(data))
        return data

    def _damage_error(self, digest: str, size: int) -> JournalFailed:
        path = self.blob_path(digest)
        return JournalFailed(
            f"The blob {path} is damaged: the digest of its {size} bytes is not its name.",
            remedy="Restore the file from a backup; everything that does not use it is intact.",
        )

    @contextmanager
    def open_writer(self) -> Iterator[BlobWriter]:
        """Write a blob in chunks; without `commit()` nothing of it remains."""
        with tempfile.NamedTemporaryFile(dir=self.root / "tmp", delete=False) as file:
            try:
                yield BlobWriter(self, file, Path(file.name))
            finally:
                Path(file.name).unlink(missing_ok=True)

    def iter_blobs(self) -> Iterator[tuple[str, int, float]]:
        """Yield each blob's digest, its size in bytes, and when it was last put or refreshed."""
        for folder in self.root.glob("??"):
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if DIGEST_PATTERN.fullmatch(entry.name):
                            info = entry.stat()
                            yield entry.name, info.st_size, info.st_mtime

    def discard(self, digest: str, before: float) -> bool:
        """Remove a blob unless it was put or refreshed after `before`; say whether it was removed.

        It is set aside first, so that a concurrent `refresh` either is noticed or finds the blob
        missing and puts it again. Only one process at a time may do this.
        """
        path = self.blob_path(digest)
        aside = self._set_aside_path(path)
        with suppress(FileNotFoundError):  # it is gone, or a starting server has restored it
            path.rename(aside)
            is_old = aside.stat().st_mtime < before
            if not is_old:
                self._restore_set_aside(path)
            aside.unlink()
            return is_old
        return False

    def refresh(self, digest: str, size: int | None = None) -> bool:
        """Protect a blob from `discard` as if it were new; say whether it exists with that size.

        Without a size, any is right.
        """
        path = self.blob_path(digest)
        try:
            os.utime(path)
            found = path.stat().st_size  # afterwards, so that a concurrent discard is seen
            if size not in (None, found):
                return False
        except FileNotFoundError:
            return False
        return not self.is_synced or _sync_blob(path)

    def _access(self, digest: str, access: Callable[[Path], T]) -> T:
        """Return what `access` does with the file of a blob, which may be set aside meanwhile."""
        path = self.blob_path(digest)
        try:
            for _ in range(READ_ATTEMPTS):
                with suppress(FileNotFoundError):
                    return access(path)
                self._restore_set_aside(path)
            return access(path)
        except FileNotFoundError:
            raise NotFound(f"The blob {digest} is not in {self.root}.") from None
        except OSError as exc:
            raise JournalFailed(f"The blob {path} cannot be read: {exc.strerror}.") from exc

    def _restore_set_aside(self, path: Path) -> None:
        """Restore a blob that was set aside, unless it exists again."""
        with suppress(FileNotFoundError, FileExistsError):
            os.link(self._set_aside_path(path), path)

    def _set_aside_path(self, path: Path) -> Path:
        return self.root / "tmp" / f"{SET_ASIDE_PREFIX}{path.name}"


class BlobWriter:
    """A blob that is being written."""

    def __init__(self, store: BlobStore, file: IO[bytes], draft: Path) -> None:
        self._store = store
        self._file = file
        self._draft = draft
        self._hash = sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._file.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    def commit(self) -> str:
        """Move the blob into its place and return its digest."""
        self._file.flush()
        digest = self._hash.hexdigest()
        path = self._store.blob_path(digest)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if self._store.is_synced:
            sync_file(self._file.fileno())
        os.replace(self._draft, path)
        if self._store.is_synced:
            sync_folder(path.parent)
        return digest


def _sync_blob(path: Path) -> bool:
    """Put a blob that another server may have stored on the disk; return False if that fails."""
    try:
        with path.open("rb") as file:
            sync_file(file.fileno())
        sync_folder(path.parent)
    except OSError:
        return False  # it is stored again, from what the caller has
    return True
