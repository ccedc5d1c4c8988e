"""The content of workspace files on its way from a sandbox: pieces are put together, within limits."""

from __future__ import annotations

from ..kernel import wire


class Files:
    """Puts the pieces of files together; a sandbox that sends too much breaks the protocol."""

    def __init__(self, limit: int) -> None:
        self.complete: dict[str, tuple[int, bytes]] = {}
        self._room = limit
        self._pieces: list[bytes] = []

    def take(self, message: wire.FileData) -> None:
        """Take one piece; raises `WireError` beyond the limit."""
        if "\0" in message.path or not {"", ".", ".."}.isdisjoint(message.path.split("/")):
            raise wire.WireError(f"not a path in the workspace: {message.path!r:.80}")
        self._room -= len(message.data)
        if self._room < 0:
            raise wire.WireError("more file content than the workspace can hold")
        self._pieces.append(message.data)
        if message.last:
            self.complete[message.path] = (message.mode & 0o777, b"".join(self._pieces))
            self._pieces = []
