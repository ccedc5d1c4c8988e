"""Files of this machine that are inputs: opened without being led out of the roots, known by what they were.

Rule 1: a path is resolved first, then walked part by part from its root without following links. So what is opened lies
below a root even if somebody exchanges folders or links meanwhile.
Rule 2: a file is known by device, inode and time of change (its stamp) and size. One that is not the same any more is
never taken for it, unless its content is.
Rule 3: only regular files; nothing else is even opened.
This module is synchronous: call it from a worker thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import InvalidRequest

READ_BYTES = 1 << 20  # bytes read at once
NO_ROOTS_REMEDY = "Name the folder that it is in under [server] context_roots in the settings."
FILE_TYPES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


@dataclass(frozen=True)
class InputRoots:
    """The folders below which inputs may be; nothing in `own`, the server's folder, is one."""

    folders: Sequence[Path]
    server_dir: Path

    def resolve_path(self, path: str) -> tuple[str, str]:
        """Return the root that a path is under and the rest of it, links resolved; raises `InvalidRequest`."""
        if "\0" in path or not path.startswith("/"):
            raise InvalidRequest(f"{path!r:.200} is no absolute path.")
        real = os.path.realpath(path)
        listed = ", ".join(map(str, self.folders))
        if is_inside(real, os.path.realpath(self.server_dir)):
            raise InvalidRequest(
                f"{path!r:.200} is the server's own.", remedy="Name a file of yours."
            )
        for folder in self.folders:
            root = os.path.realpath(folder)
            if real == root:
                raise InvalidRequest(f"{path!r:.200} is a folder.", remedy="Name a file in it.")
            if is_inside(real, root):
                return root, os.path.relpath(real, root)
        raise InvalidRequest(
            f"{path!r:.200} is not in a folder that files may be taken from.",
            remedy=f"These are: {listed}." if listed else NO_ROOTS_REMEDY,
        )

    @contextmanager
    def open_file(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield a descriptor to read a file from, and its real path; raises `InvalidRequest`."""
        root, rest = self.resolve_path(path)
        try:
            fd = open_beneath(root, rest)
        except OSError as exc:
            raise InvalidRequest(f"{path!r:.200} cannot be read: {exc.strerror}.") from None
        try:
            yield fd, os.path.join(root, rest)
        finally:
            os.close(fd)


def is_inside(path: str, folder: str) -> bool:
    """Return whether a real path is in a folder, given by its real path."""
    return os.path.commonpath((path, folder)) == folder and path != folder


def open_beneath(root: str, rest: str) -> int:
    """Return a descriptor of the regular file `rest`, walked to from `root` without following links.

    Raises `OSError`, and `InvalidRequest` if something else is there.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        *between, name = rest.split("/")
        for part in between:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(part, flags, dir_fd=folder)
            os.close(folder)
            folder = inner
        check_regular_file(name, os.stat(name, dir_fd=folder, follow_symlinks=False))
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
    finally:
        os.close(folder)
    try:
        check_regular_file(name, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_regular_file(name: str, info: os.stat_result) -> None:
    """Raise `InvalidRequest` if something is no regular file."""
    if not stat.S_ISREG(info.st_mode):
        kind = next((word for fits, word in FILE_TYPES if fits(info.st_mode)), "a device")
        raise InvalidRequest(f"{name!r:.200} is {kind}, and no file.")


def compute_stamp(info: os.stat_result) -> str:
    """Return what tells this file, as it is now, from others."""
    return f"{info.st_dev}:{info.st_ino}:{info.st_mtime_ns}"


def parse_file_uri(address: str) -> str:
    """Return the path that a `file:` address names; raises `InvalidRequest`."""
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise InvalidRequest(
            f"{address!r:.200} names no file of this machine.", remedy="Write file:///path/to/file."
        )
    return unquote(parts.path)


def read_range(fd: int, start: int, end: int) -> bytes:
    """Return the bytes from `start` to `end`, or to the end of the file."""
    pieces, at = [], start
    while at < end and (data := os.pread(fd, min(READ_BYTES, end - at), at)):
        pieces.append(data)
        at += len(data)
    return b"".join(pieces)


def hash_in_steps(fd: int) -> Iterator[str]:
    """Yield "" as long as there is more to read, and then the SHA-256 of the file."""
    found, at = sha256(), 0
    while data := os.pread(fd, READ_BYTES, at):
        found.update(data)
        at += len(data)
        yield ""
    yield found.hexdigest()
