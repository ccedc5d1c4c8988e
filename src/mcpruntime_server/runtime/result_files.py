"""Where the code itself finds what a client was shown only a part of: files in a hidden folder of its workspace.

They are not the session's files: they are neither journaled (the journal has the text already) nor restored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from ..sandbox.link import SandboxLink
from .run_report import display_value

HIDDEN_FOLDER = ".mcpruntime"  # the kernel does not report what changes in it
RESULT_WORKSPACE_SHARE = (
    4  # the kept texts take at most this fraction of the workspace; the oldest go first
)


class ResultFiles:
    """The texts that are kept in one sandbox at a time, of `size` bytes together at most."""

    def __init__(self, workspace_bytes: int, max_chars: int, max_items: int) -> None:
        self._max_bytes = workspace_bytes // RESULT_WORKSPACE_SHARE
        self._max_chars = max_chars
        self._max_items = max_items
        self._link: SandboxLink | None = None
        self._files: deque[tuple[str, int]] = deque()

    def save_long_results(
        self, link: SandboxLink, run: str, texts: Mapping[str, str], value: Mapping[str, Any] | None
    ) -> dict[str, str]:
        """Write what of a run's results is too long to be shown whole; return where, by field.

        `shown` and `items` are the characters and items that a client is shown. What is too large is not kept.
        """
        long = {name: text for name, text in texts.items() if len(text) > self._max_chars}
        if value is not None and display_value(value, self._max_chars, self._max_items)[1]:
            long["value"] = value["text"]
        if link.closed.is_set():
            return {}
        kept = {name: self._write_file(link, f"{run}.{name}", text) for name, text in long.items()}
        return {name: path for name, path in kept.items() if path}

    def _write_file(self, link: SandboxLink, name: str, text: str) -> str:
        data = text.encode("utf-8", "backslashreplace")
        if len(data) > self._max_bytes:
            return ""
        if link is not self._link:
            self._link = link
            self._files.clear()
        while self._files and len(data) + sum(size for _, size in self._files) > self._max_bytes:
            link.write_file(self._files.popleft()[0], 0o600, b"")
        path = f"{HIDDEN_FOLDER}/{name}"
        link.write_file(path, 0o600, data)
        self._files.append((path, len(data)))
        return path
