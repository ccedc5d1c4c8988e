"""Where the code itself finds what a client was shown only a part of: files in a hidden folder of its workspace.

They are not the session's files: they are neither journaled (the journal has the text already) nor restored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from ..sandbox.link import Link
from .report import shown_value

FOLDER = ".mcpruntime"  # the kernel does not report what changes in it
SHARE = 4  # the kept texts take at most this fraction of the workspace; the oldest go first


class Overflow:
    """The texts that are kept in one sandbox at a time, of `size` bytes together at most."""

    def __init__(self, workspace_bytes: int, shown: int, items: int) -> None:
        self._size = workspace_bytes // SHARE
        self._shown = shown
        self._items = items
        self._link: Link | None = None
        self._kept: deque[tuple[str, int]] = deque()

    def keep(self, link: Link, run: str, texts: Mapping[str, str], value: Mapping[str, Any] | None) -> dict[str, str]:
        """Write what of a run's results is too long to be shown whole; return where, by field.

        `shown` and `items` are the characters and items that a client is shown. What is too large is not kept.
        """
        long = {name: text for name, text in texts.items() if len(text) > self._shown}
        if value is not None and shown_value(value, self._shown, self._items)[1]:
            long["value"] = value["text"]
        if link.closed.is_set():
            return {}
        kept = {name: self._write(link, f"{run}.{name}", text) for name, text in long.items()}
        return {name: path for name, path in kept.items() if path}

    def _write(self, link: Link, name: str, text: str) -> str:
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
