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

from ..errors import InputChanged, Unavailable

PIECE = 8 << 20  # bytes copied at once
CLONE = 0x40049409  # the request to have a file share the blocks of another (FICLONE)
READABLE = 0o444  # the sandbox's user is nobody here
Tell = Callable[[int], None]  # told how many bytes are copied; it may raise


def link(fd: int, target: Path) -> bool:
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


def copy(fd: int, target: Path, tell: Tell, digest: str = "") -> None:
    """Copy an open file; raises `InputChanged` if it is not what `digest` says, `Unavailable` for lack of room."""
    info = os.fstat(fd)
    draft = target.with_name(f".{target.name}")
    try:
        with open(draft, "wb") as file:
            if digest or not _clone(fd, file.fileno()):
                _copy(fd, file.fileno(), tell, digest)
            os.fchmod(file.fileno(), READABLE)
            os.utime(file.fileno(), ns=(info.st_atime_ns, info.st_mtime_ns))
        os.rename(draft, target)
    except OSError as exc:
        raise Unavailable(f"An input cannot be copied to {target.parent}: {exc.strerror}.") from exc
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


def _clone(fd: int, target: int) -> bool:
    try:
        import fcntl

        fcntl.ioctl(target, CLONE, fd)
    except (ImportError, OSError):
        return False
    return True


def _copy(fd: int, target: int, tell: Tell, digest: str) -> None:
    found, at = sha256(), 0
    while data := os.pread(fd, PIECE, at):
        if digest:
            found.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
        at += len(data)
        tell(at)
    if digest and found.hexdigest() != digest:
        raise InputChanged("The content of an input is damaged in the journal.")
