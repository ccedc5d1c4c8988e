"""What a worker prints, on its way through the supervisor."""

from __future__ import annotations

import os
import time

from . import processes, wire

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Callable, Dict, Optional

COALESCE_S = 0.01  # after one piece of output, the next is held back this long, to be sent together
READ = 64 * 1024
WHOLE_PIPE = 2  # reads that empty a pipe of the usual size; more would let a child that prints on hold everything up
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


class Outputs:
    """Both streams of the worker's, as messages in the order in which they came."""

    def __init__(self, limit: int, tell: Callable[[wire.Message], None]) -> None:
        self.pipes = [OutputPipe("stdout", limit), OutputPipe("stderr", limit)]
        self.by_descriptor: Dict[int, OutputPipe] = {pipe.read_end: pipe for pipe in self.pipes}
        self.run = 0
        self.flush_at = 0.0  # when held output is due; 0 while none is held back
        self._last = 0.0  # when output was sent last
        self._tell = tell

    def begin(self, run: int) -> None:
        """Count what is printed from here on to run `run`."""
        self.run = run
        for pipe in self.pipes:
            pipe.room = pipe.limit

    def end(self) -> None:
        """Keep what is printed from here on for the next run."""
        self.run = 0
        for pipe in self.pipes:
            pipe.room = IDLE_OUTPUT

    def read(self, descriptor: int) -> None:
        """Take output from a pipe; the first piece goes out at once, what follows closely is sent together."""
        pipe = self.by_descriptor[descriptor]
        pipe.drain()
        if not self.run:
            return  # kept for the next run
        now = time.perf_counter()
        if now - self._last >= COALESCE_S or len(pipe.held) >= READ:
            self.flush()
        elif not self.flush_at:
            self.flush_at = self._last + COALESCE_S

    def drain(self) -> None:
        """Send all that was printed up to now."""
        for pipe in self.pipes:
            pipe.drain(WHOLE_PIPE)
        self.flush()

    def flush(self) -> None:
        """Send all output that is held back."""
        self.flush_at = 0.0
        for pipe in self.pipes:
            message = pipe.take(self.run)
            if message is not None:
                self._last = time.perf_counter()
                self._tell(message)

    def complain(self, problem: str) -> None:
        """Have the next run's stderr begin with `problem`."""
        self.pipes[1].held += f"mcpruntime: {problem}\n".encode("utf-8", "backslashreplace")
