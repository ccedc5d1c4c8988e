"""The workspace as files: what changed since the last look, and moving content in and out in pieces.

Used by the supervisor. Only regular files count; links, sockets and pipes are passed over, and nothing is opened
that could block. Paths are relative to the workspace, with `/`.
"""

from __future__ import annotations

import os
import stat

from ...protocol import wire

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterator, List, Optional, Tuple, Union

    FileStamp = Tuple[int, int, int, int]  # modified and changed (ns), size, mode

HIDDEN_FOLDERS = (
    ".mcpruntime",
    "__pycache__",
)  # folders that are the runtime's own, or only a cache
MAX_MARKER_CHARS = 200
MAX_FILES = 50_000  # more are counted and not kept, so that what is told and saved stays bounded


class Workspace:
    """A folder and the state in which it was last seen."""

    def __init__(self, root: str, max_file_bytes: int) -> None:
        self.root = root
        self.max_file_bytes = max_file_bytes
        self.skipped_count = 0  # files that the last scan did not look at: too many, or named in bytes that are no text
        self._known_stamps: Dict[str, FileStamp] = {}
        self._unsaved_paths: List[str] = []

    def record_changes(self) -> Tuple[List[str], List[str]]:
        """Return the paths changed and removed since the last look; the changed ones become `unsaved`."""
        changed, removed = self.find_changes()
        self._unsaved_paths = (
            sorted({*self._unsaved_paths, *changed} - set(removed))
            if self._unsaved_paths
            else changed
        )
        return changed, removed

    def find_changes(self) -> Tuple[List[str], List[str]]:
        """Return the paths changed and removed since the last look."""
        self.skipped_count = 0
        found = dict(self._walk_files())
        changed = sorted(
            path for path, stamp in found.items() if self._known_stamps.get(path) != stamp
        )
        gone = (path for path in self._known_stamps if path not in found)
        removed = sorted(
            path for path in gone if not self._is_file(path)
        )  # others are beyond the limit
        self._known_stamps = found
        return changed, removed

    def _is_file(self, path: str) -> bool:
        try:
            return stat.S_ISREG(os.lstat(os.path.join(self.root, path)).st_mode)
        except OSError:
            return False

    def take_unsaved_paths(self) -> List[str]:
        """Return the paths whose content has not been sent yet, and forget them."""
        paths, self._unsaved_paths = self._unsaved_paths, []
        return paths

    def _walk_files(self) -> Iterator[Tuple[str, FileStamp]]:
        folders = [""]
        count = 0
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(os.path.join(self.root, folder)))
            except OSError:
                continue  # removed meanwhile, or made unreadable
            for entry in entries:
                path = folder + entry.name
                try:
                    info = entry.stat(follow_symlinks=False)
                    path.encode("utf-8")
                except OSError:
                    continue
                except UnicodeEncodeError:
                    self.skipped_count += 1
                    continue
                if stat.S_ISDIR(info.st_mode) and entry.name not in HIDDEN_FOLDERS:
                    folders.append(path + "/")
                elif stat.S_ISREG(info.st_mode):
                    count += 1
                    if count > MAX_FILES:
                        self.skipped_count += 1
                        continue
                    yield path, (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_mode)

    def read_file(self, path: str) -> Iterator[Tuple[int, bool, bytes]]:
        """Yield (mode, last, bytes) of a file's content, at least once; raises OSError where it cannot be read."""
        fd = os.open(
            os.path.join(self.root, path),
            os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC,
        )
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(f"{path} is no regular file any more")
            left = min(info.st_size, self.max_file_bytes)
            while True:
                data = os.read(fd, min(wire.CHUNK_BYTES, left)) if left else b""
                left -= len(data)
                last = not left or not data
                yield stat.S_IMODE(info.st_mode), last, data
                if last:
                    return
        finally:
            os.close(fd)

    def write_file(self, path: str, mode: int, offset: int, is_last: bool, data: bytes) -> None:
        """Write a piece of a file that the host restores, and take it as seen."""
        full = os.path.join(self.root, path)
        if not offset:
            self._prepare_path(path)
        flags = (
            os.O_WRONLY
            | os.O_CREAT
            | os.O_NOFOLLOW
            | os.O_NONBLOCK
            | os.O_CLOEXEC
            | (0 if offset else os.O_TRUNC)
        )
        fd = os.open(full, flags, 0o600)
        try:
            os.pwrite(fd, data, offset)
            if is_last:
                os.fchmod(fd, mode)
                info = os.fstat(fd)
                if HIDDEN_FOLDERS[0] not in path.split(
                    "/"
                ):  # else the next scan would take it for removed
                    self._known_stamps[path] = (
                        info.st_mtime_ns,
                        info.st_ctime_ns,
                        info.st_size,
                        info.st_mode,
                    )
        finally:
            os.close(fd)

    def _prepare_path(self, path: str) -> None:
        """Have folders lead to `path`, and nothing be there but a file that may be written and is this path's alone."""
        full = self.root
        *folders, name = path.split("/")
        for folder in folders:
            full = os.path.join(full, folder)
            if not _is_folder(full):
                _delete_tree(full)
                os.mkdir(full)
            elif not os.access(full, os.R_OK | os.W_OK | os.X_OK):
                os.chmod(full, 0o700)
        full = os.path.join(full, name)
        try:
            info = os.lstat(full)
        except OSError:
            return
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
            _delete_tree(full)
        elif not os.access(full, os.W_OK):
            os.chmod(full, 0o600)

    def remove_file(self, path: str) -> None:
        """Delete what is at `path`, and the folders that become empty by that."""
        _delete_tree(os.path.join(self.root, path))
        self._known_stamps.pop(path, None)
        folder = os.path.dirname(path)
        while folder:
            try:
                os.rmdir(os.path.join(self.root, folder))
            except OSError:
                return  # not empty
            folder = os.path.dirname(folder)


class FileTransfer:
    """The workspace's files on their way between here and the host."""

    def __init__(self, workspace: Workspace, send_to_host: Callable[[wire.Message], None]) -> None:
        self._workspace = workspace
        self._send_to_host = send_to_host
        self._unsaved_run: Optional[int] = None  # the run whose files are still to be sent

    def announce_changes(self, run_number: int) -> None:
        """Say what run `run` has changed, if anything; the content follows with `save`."""
        before = self._workspace.skipped_count
        changed, removed = self._workspace.record_changes()
        passed_over = self._workspace.skipped_count
        if changed or removed or passed_over != before:
            self._send_to_host(wire.FilesChanged(run_number, changed, removed, passed_over))
            self._unsaved_run = run_number

    def send_contents(self) -> None:
        """Send the content of the files that were announced last."""
        if self._unsaved_run is None:
            return
        run, self._unsaved_run = self._unsaved_run, None
        skipped = [
            path for path in self._workspace.take_unsaved_paths() if not self._send_file(run, path)
        ]
        self._send_to_host(wire.FilesSaved(run, skipped))

    def _send_file(self, run_number: int, path: str) -> bool:
        try:
            for mode, last, data in self._workspace.read_file(path):
                self._send_to_host(wire.FileData(run_number, path, mode, last, data))
        except OSError:
            return False
        return True

    def apply_message(self, message: Union[wire.WriteFile, wire.RemoveFile]) -> str:
        """Write or delete a file for the host; return what went wrong, or nothing."""
        try:
            if isinstance(message, wire.RemoveFile):
                self._workspace.remove_file(message.path)
            else:
                self._workspace.write_file(
                    message.path, message.mode, message.offset, message.is_last, message.data
                )
        except (OSError, ValueError) as exc:
            if isinstance(message, wire.RemoveFile) or message.is_last:
                return f"{message.path!r} could not be restored in the workspace: {exc}"
        return ""


def _is_folder(full: str) -> bool:
    """Return whether a folder is there, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(full).st_mode)
    except OSError:
        return False


def _delete_tree(full: str) -> None:
    """Delete whatever is there, a folder with all that it holds."""
    if not _is_folder(full):
        try:
            os.unlink(full)
        except FileNotFoundError:
            pass
        return
    for entry in os.listdir(full):
        _delete_tree(os.path.join(full, entry))
    os.rmdir(full)


def read_inputs_marker() -> str:
    """Return what the mark in the folder of inputs says; "" where there is none."""
    try:
        with open(f"{wire.INPUTS_FOLDER}/{wire.MARKER_FILE}", encoding="ascii") as file:
            return file.read(MAX_MARKER_CHARS)
    except (OSError, ValueError):
        return ""
