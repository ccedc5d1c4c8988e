"""The files of the workspace: which of them have changed, and their content in chunks.

Only regular files count; links, sockets and pipes are ignored, and nothing is opened that could
block. Paths are relative to the workspace, with `/`.
"""

from __future__ import annotations

import os
import stat

from ...protocol import wire

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterator, List, Optional, Tuple, Union

    FileStamp = Tuple[int, int, int, int]  # modified and changed (ns), size, mode

HIDDEN_FOLDERS = (".mcpruntime", "__pycache__")  # of the runtime, and a cache: not watched
MAX_MARKER_CHARS = 200
MAX_FILES = 50_000  # the rest is only counted, so that messages stay bounded
MAX_PATHS_BYTES = 3_500_000  # of the paths of all files as JSON, for the same reason


class Workspace:
    """A folder, and what its files looked like at the last scan."""

    def __init__(self, root: str, max_file_bytes: int) -> None:
        self.root = root
        self.max_file_bytes = max_file_bytes
        self.skipped_count = (
            0  # files beyond the limits, or named in invalid UTF-8, at the last scan
        )
        self._known_stamps: Dict[str, FileStamp] = {}
        self._unsaved_paths: List[str] = []

    def record_changes(self) -> Tuple[List[str], List[str]]:
        """Return the paths changed and removed since the last scan; changed ones become unsaved."""
        changed, removed = self.find_changes()
        unsaved = changed
        if self._unsaved_paths:
            unsaved = sorted({*self._unsaved_paths, *changed} - set(removed))
        self._unsaved_paths = unsaved
        return changed, removed

    def find_changes(self) -> Tuple[List[str], List[str]]:
        """Return the paths changed and removed since the last scan."""
        self.skipped_count = 0
        found = dict(self._walk_files())
        known = self._known_stamps
        changed = sorted(path for path, stamp in found.items() if known.get(path) != stamp)
        # A known file that was not found may still exist, beyond the limits.
        missing = [path for path in known if path not in found]
        removed = sorted(path for path in missing if not self._is_file(path))
        self._known_stamps = found
        return changed, removed

    def _is_file(self, path: str) -> bool:
        try:
            return stat.S_ISREG(os.lstat(os.path.join(self.root, path)).st_mode)
        except OSError:
            return False

    def take_unsaved_paths(self) -> List[str]:
        """Return the paths whose content has not been sent, and consider it sent."""
        paths, self._unsaved_paths = self._unsaved_paths, []
        return paths

    def _walk_files(self) -> Iterator[Tuple[str, FileStamp]]:
        folders = [""]
        count = path_bytes = 0
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(os.path.join(self.root, folder)))
            except OSError:
                continue  # it has been removed or made unreadable
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
                    path_bytes += _measure_path(path)
                    if count > MAX_FILES or path_bytes > MAX_PATHS_BYTES:
                        self.skipped_count += 1
                        continue
                    yield path, _file_stamp(info)

    def read_file(self, path: str) -> Iterator[Tuple[int, bool, bytes]]:
        """Yield (mode, whether it is the last, bytes) of each chunk of a file, at least one.

        Raises OSError if it cannot be read.
        """
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(os.path.join(self.root, path), flags)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(f"{path} is no longer a regular file")
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
        """Write a chunk of a file that the host restores; it does not count as a change."""
        full = os.path.join(self.root, path)
        if not offset:
            self._prepare_path(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if not offset:
            flags |= os.O_TRUNC
        fd = os.open(full, flags, 0o600)
        try:
            os.pwrite(fd, data, offset)
            if is_last:
                os.fchmod(fd, mode)
                if HIDDEN_FOLDERS[0] not in path.split("/"):  # scans do not find hidden files
                    self._known_stamps[path] = _file_stamp(os.fstat(fd))
        finally:
            os.close(fd)

    def _prepare_path(self, path: str) -> None:
        """Make the folders of `path`, and remove what stands in the way of a writable file."""
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
        """Delete what is at `path`, and each folder that this leaves empty."""
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
    """Exchanges the files of the workspace with the host."""

    def __init__(self, workspace: Workspace, send_to_host: Callable[[wire.Message], None]) -> None:
        self._workspace = workspace
        self._send_to_host = send_to_host
        self._unsaved_run: Optional[int] = None  # the run whose files have not been sent

    def announce_changes(self, run_number: int) -> None:
        """Tell the host what a run has changed, if anything; `send_contents` sends the content."""
        before = self._workspace.skipped_count
        changed, removed = self._workspace.record_changes()
        skipped_count = self._workspace.skipped_count
        if changed or removed or skipped_count != before:
            self._send_to_host(wire.FilesChanged(run_number, changed, removed, skipped_count))
            self._unsaved_run = run_number

    def send_contents(self) -> None:
        """Send the content of the files that were announced last, if it has not been sent."""
        if self._unsaved_run is None:
            return
        run_number, self._unsaved_run = self._unsaved_run, None
        paths = self._workspace.take_unsaved_paths()
        unreadable = [path for path in paths if not self._send_file(run_number, path)]
        self._send_to_host(wire.FilesSaved(run_number, unreadable))

    def _send_file(self, run_number: int, path: str) -> bool:
        try:
            for mode, last, data in self._workspace.read_file(path):
                self._send_to_host(wire.FileData(run_number, path, mode, last, data))
        except OSError:
            return False
        return True

    def apply_message(self, message: Union[wire.WriteFile, wire.RemoveFile]) -> str:
        """Write or delete a file for the host; return what went wrong, or ""."""
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


def _file_stamp(info: os.stat_result) -> FileStamp:
    return info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_mode


def _measure_path(path: str) -> int:
    """Return how many bytes a path has as JSON, at most."""
    if path.isascii() and path.isprintable():
        return 2 * len(path)
    return 3 * len(path.encode("utf-16-le"))


def _is_folder(full: str) -> bool:
    """Return whether there is a folder, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(full).st_mode)
    except OSError:
        return False


def _delete_tree(full: str) -> None:
    """Delete a file, or a folder with all its content."""
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
    """Return the content of the marker file in the inputs folder; "" if there is none."""
    try:
        with open(f"{wire.INPUTS_FOLDER}/{wire.MARKER_FILE}", encoding="ascii") as file:
            return file.read(MAX_MARKER_CHARS)
    except (OSError, ValueError):
        return ""
