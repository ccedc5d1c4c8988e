"""Unpacked wheels by digest, which all sandboxes share and see read-only.

Rule 1: nothing of a wheel runs here. A process of its own unpacks it as data (`wheel_unpacking`).
Rule 2: a folder appears when all of it is there, and never changes.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ...errors import CallFailed
from .wheel_unpacking import FOLDER_MODE

DIGEST = re.compile("[0-9a-f]{64}")
DRAFT_PREFIX = ".draft-"
MAX_DRAFT_AGE_S = 3600.0
UNPACKING_MODULE = "mcpruntime_server.capabilities.packages.wheel_unpacking"
UNPACKING_TIMEOUT_S = 300.0  # for a hundred thousand files, on a slow disk
MAX_REASON_BYTES = 500
READ_BYTES = 1 << 20
BYTES_PER_MB = 1024 * 1024


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
            try:
                draft.rename(self.root / digest)
            except OSError:  # another server was faster
                if not self.has(digest):
                    raise
        except (OSError, ValueError) as exc:
            raise CallFailed("protocol", f"{wheel.name} cannot be unpacked: {exc}") from exc
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _unpack(self, wheel: Path, folder: Path) -> None:
        command = [sys.executable, "-P", "-m", UNPACKING_MODULE, str(wheel), str(folder)]
        command.append(str(self._max_bytes))
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=UNPACKING_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"it takes more than {UNPACKING_TIMEOUT_S:g} s") from None
        if done.returncode:
            reason = done.stderr[-MAX_REASON_BYTES:].decode("utf-8", "replace").strip()
            raise ValueError(reason or "the process that unpacks it has ended")

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
