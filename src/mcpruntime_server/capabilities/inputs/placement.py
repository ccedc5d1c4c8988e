"""Puts the content of an input where a sandbox can see it, as a copy.

A hard link would be instant, but code in the sandbox could lock the file (`flock`) and so keep its
owner from it. File systems that can share blocks between files make the copy as fast. This module
is synchronous: call it from a worker thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from ...errors import InputChanged, Unavailable

COPY_BYTES = 8 << 20  # bytes of one read and write
FICLONE = 0x40049409  # the ioctl that makes a file share the blocks of another
# The sandbox's user is unknown on this machine, sees the folder read-only, and copies the mode.
READABLE_MODE = 0o644
ReportCopied = Callable[[int], None]  # gets the number of bytes copied so far; may raise


def copy_file(fd: int, target: Path, report_copied: ReportCopied, digest: str = "") -> None:
    """Copy an open file.

    Raises `InputChanged` if the content does not have the SHA-256 `digest`, `Unavailable` if there
    is no space.
    """
    info = os.fstat(fd)
    draft = target.with_name(f".{target.name}")
    try:
        with open(draft, "wb") as file:
            if digest or not _clone_blocks(fd, file.fileno()):
                _copy_bytes(fd, file.fileno(), report_copied, digest)
            os.fchmod(file.fileno(), READABLE_MODE)
            os.utime(file.fileno(), ns=(info.st_atime_ns, info.st_mtime_ns))
        os.rename(draft, target)
    except OSError as exc:
        raise Unavailable(f"An input cannot be copied to {target.parent}: {exc.strerror}.") from exc
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


def _clone_blocks(fd: int, target_fd: int) -> bool:
    try:
        import fcntl

        fcntl.ioctl(target_fd, FICLONE, fd)
    except (ImportError, OSError):
        return False
    return True


def _copy_bytes(fd: int, target_fd: int, report_copied: ReportCopied, digest: str) -> None:
    found = sha256()
    offset = 0
    while data := os.pread(fd, COPY_BYTES, offset):
        if digest:
            found.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target_fd, view) :]
        offset += len(data)
        report_copied(offset)
    if digest and found.hexdigest() != digest:
        raise InputChanged("The content of an input is damaged in the journal.")
