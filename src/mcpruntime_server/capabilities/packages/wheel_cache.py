"""Unpacked wheels by digest, which all sandboxes share and see read-only.

Rule 1: nothing of a wheel runs here. It is unpacked as data: no links, no paths that lead out, no
`.pth` files, bounded in size and number of files.
Rule 2: a folder appears when all of it is there, and never changes.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from ...errors import CallFailed

DIGEST = re.compile("[0-9a-f]{64}")
DRAFT_PREFIX = ".draft-"
MAX_DRAFT_AGE_S = 3600.0
MAX_WHEEL_FILES = 100_000
FOLDER_MODE = 0o755  # the sandbox's user is another one than the server's
FILE_MODE = 0o644
READ_BYTES = 1 << 20
BYTES_PER_MB = 1024 * 1024
ROOT_SCHEMES = ("purelib", "platlib")  # of `NAME.data`, which belong beside the packages
NOT_IMPORTABLE = (".pth",)  # that Python would execute


@dataclass(frozen=True)
class CachedWheel:
    """A wheel in the cache."""

    digest: str
    name: str
    size: int
    used_at: float


class WheelCache:
    """The unpacked wheels below `root`, each at most `max_bytes` large."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self._max_bytes = max_bytes

    def create(self) -> None:
        """Create the folder if it is missing; only the server may enter its parent."""
        self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.mkdir(exist_ok=True)
        self.root.chmod(FOLDER_MODE)

    def has(self, digest: str) -> bool:
        """Return whether a wheel is cached, and note that it is used."""
        folder = self.root / digest
        if not DIGEST.fullmatch(digest) or not folder.is_dir():
            return False
        os.utime(folder)
        return True

    def add(self, wheel: Path, digest: str) -> None:
        """Unpack a downloaded wheel; raises `CallFailed` if its digest differs."""
        if hash_wheel(wheel) != digest:
            raise CallFailed("protocol", f"{wheel.name} does not have the digest of the index.")
        draft = self.root / f"{DRAFT_PREFIX}{secrets.token_hex(8)}"
        draft.mkdir()
        try:
            self._unpack(wheel, draft)
            for each in (draft, *filter(Path.is_dir, draft.rglob("*"))):
                each.chmod(FOLDER_MODE)  # whatever the umask of the server
            try:
                draft.rename(self.root / digest)
            except OSError:  # another server was faster
                if not self.has(digest):
                    raise
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as exc:
            raise CallFailed("protocol", f"{wheel.name} cannot be unpacked: {exc}") from exc
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _unpack(self, wheel: Path, folder: Path) -> None:
        left = self._max_bytes
        with zipfile.ZipFile(wheel) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_WHEEL_FILES:
                raise ValueError(f"it has more than {MAX_WHEEL_FILES:,} files")
            for entry in entries:
                path = place_entry(entry)
                if path is None:
                    continue
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as file:
                    while data := source.read(READ_BYTES):
                        left -= len(data)
                        if left < 0:
                            raise ValueError(f"it has more than {self._max_bytes:,} bytes")
                        file.write(data)
                target.chmod(FILE_MODE)

    def list_wheels(self) -> list[CachedWheel]:
        """Return all wheels, the most recently used first."""
        found = []
        for folder in map(self.root.joinpath, list_wheel_digests(self.root)):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            used_at = folder.stat().st_mtime
            found.append(CachedWheel(folder.name, read_name(folder), size, used_at))
        return sorted(found, key=lambda wheel: -wheel.used_at)

    def prune(self, unused_days: float) -> list[CachedWheel]:
        """Remove drafts and wheels unused for so many days; return the removed wheels."""
        oldest = time.time() - unused_days * 24 * 3600
        removed = [wheel for wheel in self.list_wheels() if wheel.used_at < oldest]
        for wheel in removed:
            shutil.rmtree(self.root / wheel.digest, ignore_errors=True)
        for draft in self.root.glob(f"{DRAFT_PREFIX}*"):
            if draft.stat().st_mtime < time.time() - MAX_DRAFT_AGE_S:
                shutil.rmtree(draft, ignore_errors=True)
        return removed


def list_wheel_digests(root: Path) -> set[str]:
    """Return the digests of the wheels in a cache, which may not exist."""
    return set(filter(DIGEST.fullmatch, os.listdir(root))) if root.is_dir() else set()


def place_entry(entry: zipfile.ZipInfo) -> PurePosixPath | None:
    """Return the path of a wheel's file below the package folder; None if it is left out.

    Raises `ValueError` if it is no plain file inside the wheel.
    """
    name = entry.filename
    if entry.is_dir():
        return None
    kind = stat.S_IFMT(entry.external_attr >> 16)
    path = PurePosixPath(name)
    is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name
    if kind not in (0, stat.S_IFREG) or not is_inside or "\0" in name or ":" in path.parts[0]:
        raise ValueError(f"{name!r:.100} is not a file inside it")
    if path.suffix in NOT_IMPORTABLE:
        return None
    if path.parts[0].endswith(".data"):
        if len(path.parts) < 3 or path.parts[1] not in ROOT_SCHEMES:
            return None  # scripts, headers, data
        path = PurePosixPath(*path.parts[2:])
    return path


def hash_wheel(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = sha256()
    for data in read_chunks(path):
        digest.update(data)
    return digest.hexdigest()


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in chunks."""
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            yield data


def read_name(folder: Path) -> str:
    """Return name and version of an unpacked wheel, by its `dist-info`."""
    found = next(folder.glob("*.dist-info"), None)
    return found.name.removesuffix(".dist-info") if found else ""
