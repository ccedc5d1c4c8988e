"""The files that a run has changed, on their way to the listener of its execution."""

from __future__ import annotations

import anyio

from ..protocol import wire
from .execution_listener import ExecutionListener


class FileReception:
    """Passes the files of the last run that has announced some to its listener."""

    def __init__(self) -> None:
        self._listener: ExecutionListener | None = None  # until all files have arrived
        self._finished = anyio.Event()
        self._finished.set()

    def start(self, listener: ExecutionListener, message: wire.FilesChanged) -> None:
        """Expect the content of the files that a run has announced."""
        self._listener = listener
        self._finished = anyio.Event()
        listener.on_files(message)

    def receive(self, message: wire.FileData | wire.FilesSaved) -> None:
        """Pass on a chunk of a file, or that there are no more."""
        if self._listener is None:
            return
        if isinstance(message, wire.FileData):
            self._listener.on_file_data(message)
            return
        self._listener.on_saved(message)
        self._listener = None
        self._finished.set()

    def stop(self) -> None:
        """Expect nothing more: the sandbox is gone."""
        self._finished.set()

    async def wait_until_finished(self) -> None:
        """Wait until all files have arrived, or the sandbox is gone."""
        await self._finished.wait()
