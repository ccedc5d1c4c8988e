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

    def has_folder(self, sandbox: str) -> bool:
        """Return whether a sandbox has a folder: from before its start until it is given up."""
        return (self.root / sandbox).exists()

    def remove_orphans(self, is_orphan: Callable[[str], bool]) -> None:
        """Remove the folders of sandboxes whose servers are gone."""
        names = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        for name in names:
            if is_orphan(name):
                self.remove_folder(name)
