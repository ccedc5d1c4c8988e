"""Where the code itself finds what a client was shown only a part of: files in a hidden folder of its workspace.

They are not the session's files: they are neither journaled (the journal has the text already) nor restored.
"""

from __future__ import annotations

from collections import deque

from ..sandbox.link import Link

FOLDER = ".mcpruntime"  # the kernel does not report what changes in it
SHARE = 4  # the kept texts take at most this fraction of the workspace; the oldest go first


class Overflow:
    """The texts that are kept in one sandbox at a time, of `size` bytes together at most."""

    def __init__(self, workspace_bytes: int) -> None:
        self._size = workspace_bytes // SHARE
        self._link: Link | None = None
        self._kept: deque[tuple[str, int]] = deque()

    def keep(self, link: Link, name: str, text: str) -> str:
        """Write `text` where the next run can read it; return the path, or "" if it is too large to be kept."""
        data = text.encode("utf-8", "backslashreplace")
        if len(data) > self._size:
            return ""
        if link is not self._link:
            self._link = link
            self._kept.clear()
        while self._kept and len(data) + sum(size for _, size in self._kept) > self._size:
            link.put(self._kept.popleft()[0], 0o600, b"")
        path = f"{FOLDER}/{name}"
        link.put(path, 0o600, data)
        self._kept.append((path, len(data)))
        return path
