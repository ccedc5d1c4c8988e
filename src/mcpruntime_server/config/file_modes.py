"""Keep what the server stores to the user who runs it: folders 0700, files 0600.

Rule 1: a process of this package creates files with a umask of its own, so nothing has to ask for a
mode. The user's MCP servers get the user's umask back.
Rule 2: what exists with other modes is changed if this package made it. A folder that the user has
named is the user's: `doctor` warns of it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .models import Config

PRIVATE_UMASK = 0o077
SHARED_BITS = stat.S_IRWXG | stat.S_IRWXO
INHERIT_UMASK = -1  # what `subprocess` takes for the umask of this process
DATA_NAME = re.compile(  # of what this package keeps in the data folder
    r"blobs|catalogues|collect\.lock|exports|inputs|logs|packages|sandboxes|servers|skills_store"
    r"|tool_shims|request_state\.key|open-viewer\.html"
    r"|(?:credentials|tokens)\.(?:json|lock)|(?:journal|knowledge-[0-9]+)\.db(?:-shm|-wal)?"
)
FOLDER_SETTINGS = (("server", "shims_dir"), ("server", "export_dir"), ("skills", "folder"))

_user_umasks: list[int] = []


@contextmanager
def create_private_files() -> Iterator[None]:
    """Let only this user read what the process creates inside the block."""
    _user_umasks.append(os.umask(PRIVATE_UMASK))
    try:
        yield
    finally:
        os.umask(_user_umasks.pop())


def user_umask() -> int:
    """Return the umask with which the user started the process, as `subprocess` takes it."""
    return _user_umasks[0] if _user_umasks else INHERIT_UMASK


def make_private(config: Config) -> None:
    """Take from others what they may do with the files that this package keeps."""
    data_dir = config.server.data_dir
    with suppress(OSError):
        names = os.listdir(data_dir)
        own = [name for name in names if DATA_NAME.fullmatch(name)]
        for name in own:
            _take_from_others(data_dir / name)
        if own == names:
            _take_from_others(data_dir)
    for path, is_named in _list_folders(config):
        if not is_named:
            _take_from_others(path)


def find_shared_folders(config: Config) -> list[Path]:
    """Return the folders with files of this package that other users of the machine may enter."""
    paths = [config.server.data_dir, *(path for path, _ in _list_folders(config))]
    return [path for path in paths if _mode_of(path) & SHARED_BITS]


def _list_folders(config: Config) -> Iterator[tuple[Path, bool]]:
    """Yield the other folders that this package fills, and whether the user has named them."""
    paths = (config.server.shims_dir, config.server.export_dir, config.skills.folder)
    for key, path in zip(FOLDER_SETTINGS, paths, strict=True):
        yield path, key in config.sources.origins


def _mode_of(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _take_from_others(path: Path) -> None:
    """Remove the rights of others to a file or folder of this user; links are not followed."""
    with suppress(OSError):
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        is_link = stat.S_ISLNK(status.st_mode)
        if mode & SHARED_BITS and not is_link and status.st_uid == os.geteuid():
            path.chmod(mode & ~SHARED_BITS)
