"""A folder of documents as a provider.

Rule 1: nothing outside the folder is read. Each part of a path is opened on its own without
following a link, so a path that is replaced by a link in the meantime leads nowhere.
Rule 2: only regular files of limited size are read, and opening one never blocks (FIFOs, devices).
Rule 3: everything that is skipped is reported with the reason.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from ...errors import Unavailable
from .boundaries import FORMAT_BY_SUFFIX, guess_format
from .provider import (
    MAX_DOCUMENT_BYTES,
    MAX_DOCUMENTS,
    DocumentSkipped,
    SkippedDocuments,
    is_valid_name,
)

MAX_ENTRIES = 1_000_000  # of one listing
MAX_FOLDER_DEPTH = 32
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FolderProvider:
    """The documents in a folder, named by their paths relative to it."""

    def __init__(
        self, root: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self.skipped = SkippedDocuments()
        self._root = root
        self._include = [compile_glob(each) for each in include]
        self._exclude = [compile_glob(each) for each in exclude]

    def names(self) -> Mapping[str, str]:
        """Return the version of each document, made of its size and times; raises `Unavailable`."""
        self.skipped = SkippedDocuments()
        versions: dict[str, str] = {}
        try:
            for path, status in self._iter_files():
                if len(versions) == MAX_DOCUMENTS:
                    self.skipped.add(f"and all that follow, beyond {MAX_DOCUMENTS:,} files", path)
                    break
                versions[path] = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        except OSError as exc:
            raise Unavailable(
                f"The folder {self._root} cannot be read: {exc.strerror}.",
                remedy="Check `path` in the settings.",
            ) from exc
        return versions

    def read(self, name: str) -> str:
        """Return the text of a file; raises `DocumentSkipped`, `OSError`."""
        fd = self._open_file(name)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DocumentSkipped("not a regular file")
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        return decode_document(data)

    def get_format(self, name: str) -> str:
        """Return the format of a file by its suffix."""
        return guess_format(name)

    def _open_file(self, name: str) -> int:
        *folders, file_name = name.split("/")
        if any(part in ("", ".", "..") for part in (*folders, file_name)):
            raise DocumentSkipped("not a path in the folder")
        folder_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in folders:
            try:
                inner_fd = os.open(part, OPEN_FLAGS | os.O_DIRECTORY, dir_fd=folder_fd)
            finally:
                os.close(folder_fd)
            folder_fd = inner_fd
        try:
            return os.open(file_name, OPEN_FLAGS, dir_fd=folder_fd)
        finally:
            os.close(folder_fd)

    def _iter_files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the documents; raises `OSError` if the folder itself cannot be read."""
        pending: list[tuple[str, int]] = [("", 0)]
        count = 0
        while pending:
            folder, depth = pending.pop()
            try:
                with os.scandir(self._root / folder) as listing:
                    bounded = islice(listing, MAX_ENTRIES - count + 1)
                    entries = sorted(bounded, key=lambda entry: entry.name)
            except OSError:
                if not folder:
                    raise
                self.skipped.add("cannot be read", folder)
                continue
            subfolders = []
            for entry in entries:
                count += 1
                if count > MAX_ENTRIES:
                    self.skipped.add(f"and all that follow, beyond {MAX_ENTRIES:,} entries", folder)
                    return
                path = f"{folder}/{entry.name}" if folder else entry.name
                if self._is_listed_folder(entry, path, depth):
                    subfolders.append((path, depth + 1))
                elif status := self._get_file_status(entry, path):
                    yield path, status
            pending += reversed(subfolders)

    def _is_listed_folder(self, entry: os.DirEntry[str], path: str, depth: int) -> bool:
        """Return whether an entry is a folder whose content is listed."""
        if not _is_plain_folder(entry, path):
            return False
        if self._is_excluded(f"{path}/"):
            self.skipped.add("excluded", path)
            return False
        if depth >= MAX_FOLDER_DEPTH:
            self.skipped.add("too deep", path)
            return False
        return True

    def _get_file_status(self, entry: os.DirEntry[str], path: str) -> os.stat_result | None:
        """Return the status of an entry that is a document; any other entry is skipped."""
        if _is_plain_folder(entry, path):
            return None  # `_is_listed_folder` has reported it
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            self.skipped.add("gone", ascii(path))
            return None
        if reason := self._get_skip_reason(entry, path, status):
            self.skipped.add(reason, path if is_valid_name(path) else ascii(path))
            return None
        return status

    def _get_skip_reason(self, entry: os.DirEntry[str], path: str, status: os.stat_result) -> str:
        """Return why an entry is not a document; "" if it is one."""
        if entry.name.startswith("."):
            return "hidden"
        if not is_valid_name(path):
            return "not a printable name"
        if entry.is_symlink():
            return "a link"
        if not entry.is_file(follow_symlinks=False):
            return "not a regular file"
        if self._is_excluded(path):
            return "excluded"
        if self._include:
            if not any(pattern.fullmatch(path) for pattern in self._include):
                return "not included"
        elif os.path.splitext(entry.name)[1].lower() not in FORMAT_BY_SUFFIX:
            return "of an unknown format"
        return "too large" if status.st_size > MAX_DOCUMENT_BYTES else ""

    def _is_excluded(self, path: str) -> bool:
        return any(pattern.fullmatch(path) for pattern in self._exclude)


def _is_plain_folder(entry: os.DirEntry[str], path: str) -> bool:
    """Return whether an entry is a folder that is neither hidden nor badly named."""
    is_folder = entry.is_dir(follow_symlinks=False)
    return is_folder and not entry.name.startswith(".") and is_valid_name(path)


def decode_document(data: bytes) -> str:
    """Return the content of a file as text; raises `DocumentSkipped`."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DocumentSkipped("too large")
    if b"\0" in data:
        raise DocumentSkipped("not text")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise DocumentSkipped("not UTF-8") from None


def compile_glob(pattern: str) -> re.Pattern[str]:
    """Return a regular expression for the paths that a pattern matches.

    A pattern without a slash matches names in any folder.
    """
    text = pattern.removeprefix("./")
    is_folder_pattern = text.endswith("/")
    text = text.rstrip("/")
    parts = text.split("/") if "/" in text or is_folder_pattern else ["**", text]
    folders = [
        "(?:[^/]+/)*" if part == "**" else f"{_translate_part(part)}/" for part in parts[:-1]
    ]
    last = ".*" if parts[-1] == "**" else _translate_part(parts[-1])
    end = "/.*" if is_folder_pattern else "/?"
    return re.compile("".join(folders) + last + end, re.DOTALL)


def _translate_part(part: str) -> str:
    """Return a regular expression for one part of a path."""
    wildcards = {"*": "[^/]*", "?": "[^/]"}
    return "".join(wildcards.get(char) or re.escape(char) for char in re.sub(r"\*+", "*", part))
