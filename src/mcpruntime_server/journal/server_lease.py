"""Leases of servers: each holds a lock on its file `<data>/servers/<owner>.lock` while it runs.

The operating system releases the lock when the process ends for whatever reason, so a lease never
outlives its server and needs no renewal. Sessions name their owner in the journal, sandboxes in a
label.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class ServerLease:
    """The lock of one server, held from `__init__` to `close`; `owner` is its id."""

    def __init__(self, data_dir: Path) -> None:
        folder = data_dir / "servers"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.owner = secrets.token_hex(8)
        self.path = lease_path(data_dir, self.owner)
        draft = self.path.with_suffix(".new")
        self._handle = os.open(draft, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        os.write(self._handle, f"{os.getpid()}\n".encode())
        # renamed only now: a lock file that nobody has locked belongs to a dead server
        os.rename(draft, self.path)
        remove_stale_leases(data_dir)

    def close(self) -> None:
        """Release the lock; the owner counts as dead from now on."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._handle)

    def __enter__(self) -> ServerLease:
        """Return the lease itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the lease."""
        self.close()


def lease_path(data_dir: Path, owner: str) -> Path:
    """Return the lock file of `owner`."""
    return data_dir / "servers" / f"{owner}.lock"


def is_server_alive(data_dir: Path, owner: str) -> bool:
    """Say whether the server `owner` runs on this data folder."""
    return _is_locked(lease_path(data_dir, owner))


def server_process_id(data_dir: Path, owner: str) -> int | None:
    """Return the process id of the server `owner`, for messages."""
    try:
        return int(lease_path(data_dir, owner).read_text())
    except (OSError, ValueError):
        return None


def remove_stale_leases(data_dir: Path) -> None:
    """Remove the lock files of dead servers."""
    for path in (data_dir / "servers").glob("*.lock"):
        if not _is_locked(path):
            path.unlink(missing_ok=True)


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # a shared lock, so that two processes that check at once do not see each other
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)
