"""Files of this machine that are inputs: opened only below the allowed roots, and recognised later.

Rule 1: a path is resolved first, then opened part by part from its root without following links. So
the opened file is below a root even if folders or links are replaced in the meantime.
Rule 2: a file is recognised by its size and its stamp: device, inode and time of modification. If
they differ, it counts as the same file only if its content is the same.
Rule 3: only regular files are opened.
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
from .patterns import ANY_FOLDERS, is_pattern, iter_files, match_paths, split_pattern

READ_BYTES = 1 << 20  # bytes of one read
NO_ROOTS_REMEDY = "Add its folder to [server] context_roots in the settings."
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FILE_TYPES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


@dataclass(frozen=True)
class InputRoots:
    """The folders that inputs may be in.

    `server_dir`, the server's own folder, is never one of them.
    """

    folders: Sequence[Path]
    server_dir: Path

    def resolve_path(self, path: str) -> tuple[str, str]:
        """Return the root that contains a path, and the rest of it, links resolved.

        Raises `InvalidRequest`.
        """
        if "\0" in path or not path.startswith("/"):
            raise InvalidRequest(f"{path!r:.200} is not an absolute path.")
        real_path = os.path.realpath(path)
        server_dir = os.path.realpath(self.server_dir)
        if real_path == server_dir or is_inside(real_path, server_dir):
            raise InvalidRequest(
                f"{path!r:.200} is in the server's data folder.", remedy="Name a file of your own."
            )
        for folder in self.folders:
            root = os.path.realpath(folder)
            if real_path == root or is_inside(real_path, root):
                return root, os.path.relpath(real_path, root)
        allowed = ", ".join(map(str, self.folders))
        raise InvalidRequest(
            f"{path!r:.200} is not in a folder that inputs may come from.",
            remedy=f"Allowed folders: {allowed}." if allowed else NO_ROOTS_REMEDY,
        )

    def list_files(self, path: str) -> tuple[str, list[str]] | None:
        """Return the folder and the relative paths that a folder or a pattern names.

        Return None if `path` names one file. Raises `InvalidRequest`.
        """
        if is_pattern(path) and not os.path.lexists(path):
            folder, pattern = split_pattern(path)
        elif os.path.isdir(path):
            folder, pattern = path.rstrip("/") or "/", ANY_FOLDERS
        else:
            return None
        root, relative_path = self.resolve_path(folder)
        real_folder = os.path.normpath(os.path.join(root, relative_path))
        server_dir = os.path.realpath(self.server_dir)
        paths = (
            each
            for each in iter_files(real_folder)
            if not is_inside(os.path.join(real_folder, each), server_dir)
        )
        return real_folder, match_paths(paths, pattern)

    @contextmanager
    def open_file(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield a descriptor for reading a file, and its real path; raises `InvalidRequest`."""
        root, relative_path = self.resolve_path(path)
        try:
            fd = open_beneath(root, relative_path)
        except OSError as exc:
            raise InvalidRequest(f"{path!r:.200} cannot be read: {exc.strerror}.") from None
        try:
            yield fd, os.path.join(root, relative_path)
        finally:
            os.close(fd)


def is_inside(path: str, folder: str) -> bool:
    """Return whether a real path is inside a folder, which is a real path, too."""
    return os.path.commonpath((path, folder)) == folder and path != folder


def open_beneath(root: str, relative_path: str) -> int:
    """Return a descriptor of a regular file, opened from `root` on without following links.

    Raises `OSError`, or `InvalidRequest` if it is not a regular file.
    """
    folder_fd = os.open(root, FOLDER_FLAGS)
    try:
        *folders, name = relative_path.split("/")
        for part in folders:
            inner_fd = os.open(part, FOLDER_FLAGS, dir_fd=folder_fd)
            os.close(folder_fd)
            folder_fd = inner_fd
        check_regular_file(name, os.stat(name, dir_fd=folder_fd, follow_symlinks=False))
        fd = os.open(name, FILE_FLAGS, dir_fd=folder_fd)
    finally:
        os.close(folder_fd)
    try:
        check_regular_file(name, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_regular_file(name: str, info: os.stat_result) -> None:
    """Raise `InvalidRequest` if `info` is not that of a regular file."""
    if stat.S_ISREG(info.st_mode):
        return
    file_type = next((words for is_type, words in FILE_TYPES if is_type(info.st_mode)), "a device")
    raise InvalidRequest(f"{name!r:.200} is {file_type}, not a file.")


def compute_stamp(info: os.stat_result) -> str:
    """Return the stamp that tells this version of a file from others."""
    return f"{info.st_dev}:{info.st_ino}:{info.st_mtime_ns}"


def parse_file_uri(address: str) -> str:
    """Return the path in a `file:` address; raises `InvalidRequest`."""
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise InvalidRequest(
            f"{address!r:.200} does not name a file of this machine.",
            remedy="Write file:///path/to/file.",
        )
    return unquote(parts.path)


def read_range(fd: int, start: int, end: int) -> bytes:
    """Return the bytes from `start` to `end`, or to the end of the file."""
    parts = []
    offset = start
    while offset < end and (data := os.pread(fd, min(READ_BYTES, end - offset), offset)):
        parts.append(data)
        offset += len(data)
    return b"".join(parts)


def hash_file(fd: int) -> str:
    """Return the SHA-256 of a file."""
    *_, digest = hash_in_steps(fd)
    return digest


def hash_in_steps(fd: int) -> Iterator[str]:
    """Yield "" after each read and finally the SHA-256 of the file; the caller can stop early."""
    digest = sha256()
    offset = 0
    while data := os.pread(fd, READ_BYTES, offset):
        digest.update(data)
        offset += len(data)
        yield ""
    yield digest.hexdigest()
