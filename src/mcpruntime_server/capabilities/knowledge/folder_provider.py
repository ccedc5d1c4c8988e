"""A folder of documents as a provider.

Rule 1: nothing outside the folder is read. Each step of a path is opened by itself, without following a link, so that a
path that is exchanged for a link meanwhile leads nowhere.
Rule 2: only plain files of bounded size are opened, and never in a way that waits (FIFOs, devices).
Rule 3: what is passed over is told, with the reason.
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

MAX_ENTRIES = 1_000_000  # entries of one listing
MAX_FOLDER_DEPTH = 32  # of folders in folders
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FolderProvider:
    """The documents in a folder, by their paths relative to it."""

    def __init__(
        self, root: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self.skipped = SkippedDocuments()
        self._root = root
        self._include = [compile_glob(each) for each in include]
        self._exclude = [compile_glob(each) for each in exclude]

    def names(self) -> Mapping[str, str]:
        """Return the size and the times of each document by its path; raises `Unavailable`."""
        self.skipped = SkippedDocuments()
        found: dict[str, str] = {}
        try:
            for path, status in self._iter_files():
                if len(found) == MAX_DOCUMENTS:
                    self.skipped.add(f"and all that follow, beyond {MAX_DOCUMENTS:,} files", path)
                    break
                found[path] = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        except OSError as exc:
            raise Unavailable(
                f"The folder {self._root} cannot be read: {exc.strerror}.",
                remedy="Check `path` in the settings.",
            ) from exc
        return found

    def read(self, name: str) -> str:
        """Return the text of a file; raises `PassedOver`, `OSError`."""
        handle = self._open_file(name)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise DocumentSkipped("not a plain file")
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        return decode_document(data)

    def get_format(self, name: str) -> str:
        """Return how a file is taken apart, by its suffix."""
        return guess_format(name)

    def _open_file(self, name: str) -> int:
        *folders, file = name.split("/")
        if not all(part not in ("", ".", "..") for part in (*folders, file)):
            raise DocumentSkipped("not a path in the folder")
        at = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in folders:
            try:
                inner = os.open(part, OPEN_FLAGS | os.O_DIRECTORY, dir_fd=at)
            finally:
                os.close(at)
            at = inner
        try:
            return os.open(file, OPEN_FLAGS, dir_fd=at)
        finally:
            os.close(at)

    def _iter_files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the documents; raises `OSError` if the folder itself cannot be read."""
        left: list[tuple[str, int]] = [("", 0)]
        seen = 0
        while left:
            folder, depth = left.pop()
            try:
                with os.scandir(self._root / folder) as found:
                    entries = sorted(
                        islice(found, MAX_ENTRIES - seen + 1), key=lambda entry: entry.name
                    )
            except OSError:
                if not folder:
                    raise
                self.skipped.add("cannot be read", folder)
                continue
            inner = []
            for entry in entries:
                seen += 1
                if seen > MAX_ENTRIES:
                    self.skipped.add(f"and all that follow, beyond {MAX_ENTRIES:,} entries", folder)
                    return
                path = f"{folder}/{entry.name}" if folder else entry.name
                if self._is_folder(entry, path, depth):
                    inner.append((path, depth + 1))
                elif status := self._get_file_status(entry, path):
                    yield path, status
            left += reversed(inner)

    def _is_folder(self, entry: os.DirEntry[str], path: str, depth: int) -> bool:
        """Return whether to look into an entry."""
        if (
            not entry.is_dir(follow_symlinks=False)
            or entry.name.startswith(".")
            or not is_valid_name(path)
        ):
            return False
        if self._is_excluded(f"{path}/"):
            self.skipped.add("excluded", path)
        elif depth >= MAX_FOLDER_DEPTH:
            self.skipped.add("too deep", path)
        else:
            return True
        return False

    def _get_file_status(self, entry: os.DirEntry[str], path: str) -> os.stat_result | None:
        """Return the status of an entry that is a document; what is none is passed over."""
        if (
            entry.is_dir(follow_symlinks=False)
            and not entry.name.startswith(".")
            and is_valid_name(path)
        ):
            return None  # a folder, and told already
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
        """Return why an entry is no document; "" if it is one."""
        if entry.name.startswith("."):
            return "hidden"
        if not is_valid_name(path):
            return "not a printable name"
        if entry.is_symlink():
            return "a link"
        if not entry.is_file(follow_symlinks=False):
            return "not a plain file"
        if self._is_excluded(path):
            return "excluded"
        if self._include and not any(each.fullmatch(path) for each in self._include):
            return "not included"
        if not self._include and os.path.splitext(entry.name)[1].lower() not in FORMAT_BY_SUFFIX:
            return "not of a kind that is read"
        return "too large" if status.st_size > MAX_DOCUMENT_BYTES else ""

    def _is_excluded(self, path: str) -> bool:
        return any(each.fullmatch(path) for each in self._exclude)


def decode_document(data: bytes) -> str:
    """Return what a file says; raises `PassedOver`."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DocumentSkipped("too large")
    if b"\0" in data:
        raise DocumentSkipped("not text")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise DocumentSkipped("not UTF-8") from None


def compile_glob(pattern: str) -> re.Pattern[str]:
    """Return what matches the paths that a pattern means; one without a slash means names in any folder."""
    text = pattern.removeprefix("./")
    inside = text.endswith("/")
    text = text.rstrip("/")
    parts = text.split("/") if "/" in text or inside else ["**", text]
    made = "".join(
        "(?:[^/]+/)*" if part == "**" else f"{_translate_part(part)}/" for part in parts[:-1]
    )
    last = ".*" if parts[-1] == "**" else _translate_part(parts[-1])
    return re.compile(made + last + ("/.*" if inside else "/?"), re.DOTALL)


def _translate_part(part: str) -> str:
    """Return what matches one part of a path."""
    return "".join(
        "[^/]*" if char == "*" else "[^/]" if char == "?" else re.escape(char)
        for char in re.sub(r"\*+", "*", part)
    )
