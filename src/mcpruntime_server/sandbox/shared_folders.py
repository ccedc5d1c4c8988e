"""Folders on this machine that sandboxes see and cannot write to: one for each, with the inputs of its runs.

Rule 1: a folder stands, with a mark in it, before its sandbox starts. Whether the sandbox sees it
is not guessed: the kernel says what it reads in the mark, because an engine may be on another
machine, or in another view of this one.
Rule 2: nobody else on this machine comes by: the folder that holds them is the server's alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ..protocol.wire import MARKER_FILE

FOLDER_MODE = 0o755  # the sandbox has a user of its own, who is nobody here


class SharedFolders:
    """The folders of all sandboxes of a data folder, below `root`, by the names of their sandboxes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_folder(self, sandbox: str) -> Path:
        """Make the folder of a sandbox that is about to start."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self.root / sandbox
        folder.mkdir()
        folder.chmod(FOLDER_MODE)
        mark = folder / MARKER_FILE
        mark.write_text(sandbox, encoding="ascii")
        mark.chmod(FOLDER_MODE & 0o444)
        return folder

    def remove_folder(self, sandbox: str) -> None:
        """Remove the folder of a sandbox that is gone."""
        shutil.rmtree(self.root / sandbox, ignore_errors=True)

    def remove_orphans(self, is_orphan: Callable[[str], bool]) -> None:
        """Remove the folders of sandboxes whose servers are gone."""
        names = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        for name in names:
            if is_orphan(name):
                self.remove_folder(name)
