"""Putting the content of an input where a sandbox sees it: as a link, else as a copy.

A link gives away the content that was asked for and nothing else: not the name, and no right to change it, because the
sandbox sees the folder read-only. Its owner can change the file; whoever reads it notices.
This module is synchronous: call it from a worker thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from ...errors import InputChanged, Unavailable

COPY_BYTES = 8 << 20  # bytes copied at once
FICLONE = 0x40049409  # the request to have a file share the blocks of another (FICLONE)
READABLE_MODE = 0o444  # the sandbox's user is nobody here
ReportCopied = Callable[[int], None]  # told how many bytes are copied; it may raise


def link_file(fd: int, target: Path) -> bool:
    """Have `target` be the open file itself; return whether that can be, and its sandbox may read it."""
    if not os.fstat(fd).st_mode & 0o004:
        return False
    try:
        descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(
                str(fd), target, src_dir_fd=descriptors, follow_symlinks=True
            )  # without the folder, it follows none
        finally:
            os.close(descriptors)
    except OSError:  # another device, a file of somebody else's, a file system without links
        return False
    return True


def copy_file(fd: int, target: Path, report_copied: ReportCopied, digest: str = "") -> None:
    """Copy an open file; raises `InputChanged` if it is not what `digest` says, `Unavailable` for lack of room."""
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


def _clone_blocks(fd: int, target: int) -> bool:
    try:
        import fcntl

        fcntl.ioctl(target, FICLONE, fd)
    except (ImportError, OSError):
        return False
    return True


def _copy_bytes(fd: int, target: int, report_copied: ReportCopied, digest: str) -> None:
    found, at = sha256(), 0
    while data := os.pread(fd, COPY_BYTES, at):
        if digest:
            found.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
        at += len(data)
        report_copied(at)
    if digest and found.hexdigest() != digest:
        raise InputChanged("The content of an input is damaged in the journal.")
