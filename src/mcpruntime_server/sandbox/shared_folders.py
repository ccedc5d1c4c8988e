"""Folders on this machine that sandboxes see read-only, each with the inputs of its runs.

Rule 1: a folder exists, with a marker file in it, before its sandbox starts. The supervisor reports
what it reads in the marker. So the host knows whether the sandbox sees the folder, even if the
engine is on another machine or in another mount namespace.
Rule 2: other users of this machine have no access, because only the server may enter `root`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ..protocol.wire import MARKER_FILE

HIDDEN_SUFFIX = ".hidden"  # of the folder beside it with the files that its sandbox must not see
FOLDER_MODE = 0o755  # the sandbox's user is another one than the server's
READ_ONLY_MODE = 0o444


class SharedFolders:
    """The folders of all sandboxes of one data folder, below `root`, by sandbox name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_folder(self, sandbox: str) -> Path:
        """Create the folder of a sandbox that is about to start."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self.root / sandbox
        folder.mkdir()
        folder.chmod(FOLDER_MODE)
        marker = folder / MARKER_FILE
        marker.write_text(sandbox, encoding="ascii")
        marker.chmod(READ_ONLY_MODE)
        return folder

    def remove_folder(self, sandbox: str) -> None:
        """Remove the folder of a sandbox that is gone."""
        shutil.rmtree(self.root / sandbox, ignore_errors=True)
        shutil.rmtree(self.root / f"{sandbox}{HIDDEN_SUFFIX}", ignore_errors=True)

    def has_folder(self, sandbox: str) -> bool:
        """Return whether a sandbox has a folder: from before its start until it is given up."""
        return (self.root / sandbox).exists()

    def remove_orphans(self, is_orphan: Callable[[str], bool]) -> None:
        """Remove the folders of sandboxes whose servers are gone."""
        names = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        for name in names:
            if is_orphan(name):
                self.remove_folder(name)


def hide_file(folder: Path, name: str) -> None:
    """Take a file out of the folder of a sandbox, and keep it beside the folder."""
    hidden = folder.with_name(f"{folder.name}{HIDDEN_SUFFIX}")
    hidden.mkdir(mode=0o700, exist_ok=True)
    (folder / name).rename(hidden / name)


def show_file(folder: Path, name: str) -> None:
    """Put a hidden file back into the folder of its sandbox."""
    hidden = folder.with_name(f"{folder.name}{HIDDEN_SUFFIX}")
    (hidden / name).rename(folder / name)
