"""What a worker prints, on its way through the supervisor."""

from __future__ import annotations

import os

from . import processes, wire

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Optional

READ = 64 * 1024
IDLE_OUTPUT = 64 * 1024  # bytes kept of what background threads print between two runs


class OutputPipe:
    """One of the worker's output streams: bounded, coalesced, and never lost."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.read_end, write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self.write_end = processes.high(write_end)
        self.held = bytearray()
        self.dropped = 0
        self.room = IDLE_OUTPUT

    def drain(self, reads: int = 1) -> None:
        """Take what is in the pipe, with so many reads at most; beyond the limit it is counted and dropped."""
        for _ in range(reads):
            try:
                data = os.read(self.read_end, READ)
            except BlockingIOError:
                return
            kept = data[: max(self.room, 0)]
            self.held += kept
            self.room -= len(kept)
            self.dropped += len(data) - len(kept)
            if len(data) < READ:
                return

    def take(self, run: int) -> Optional[wire.Output]:
        """Return what is held as a message, or None if there is nothing to say."""
        if not self.held and not self.dropped:
            return None
        message = wire.Output(run, self.name, self.dropped, bytes(self.held))
        self.held.clear()
        self.dropped = 0
        return message
