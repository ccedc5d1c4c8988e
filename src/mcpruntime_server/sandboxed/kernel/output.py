"""The output of a worker on its way through the supervisor: bounded, coalesced, never lost."""

from __future__ import annotations

import os
import select
import time

from ...protocol import wire
from . import processes

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterator

COALESCE_S = 0.01  # output that follows within this time is sent together
READ_BYTES = 64 * 1024
MESSAGE_BYTES = 32 * 1024  # of output in one message: the host decodes it at once
MAX_DRAIN_READS = 2  # enough for a full pipe; a child that prints on must not hold everything up
MAX_IDLE_BYTES = 64 * 1024  # kept of what background threads print between two runs


class OutputPipe:
    """One output stream of the worker."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self.read_end, write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self.write_end = processes.move_fd_high(write_end)
        self.buffer = bytearray()
        self.dropped_bytes = 0
        self.bytes_left = MAX_IDLE_BYTES

    def read_available(self, max_reads: int = 1) -> None:
        """Read what is in the pipe; what exceeds the limit is dropped and counted."""
        for _ in range(max_reads):
            try:
                data = os.read(self.read_end, READ_BYTES)
            except BlockingIOError:
                return
            kept = data[: max(self.bytes_left, 0)]
            self.buffer += kept
            self.bytes_left -= len(kept)
            self.dropped_bytes += len(data) - len(kept)
            if len(data) < READ_BYTES:
                return

    def take_messages(self, run_number: int, *, is_last: bool) -> Iterator[wire.Output]:
        """Yield the buffered output as messages, and empty the buffer.

        What is dropped is counted up to the last messages of a run, which say how much it was.
        """
        dropped_bytes = 0
        if is_last or self.bytes_left > 0:  # else more will be dropped
            dropped_bytes, self.dropped_bytes = self.dropped_bytes, 0
        buffer, self.buffer = self.buffer, bytearray()
        for start in range(0, len(buffer), MESSAGE_BYTES):
            data = bytes(buffer[start : start + MESSAGE_BYTES])
            yield wire.Output(run_number, self.name, 0, data)
        if dropped_bytes:
            yield wire.Output(run_number, self.name, dropped_bytes, b"")


class OutputStreams:
    """Both output streams of the worker."""

    def __init__(self, max_bytes: int, send_to_host: Callable[[wire.Message], None]) -> None:
        self.pipes = [OutputPipe("stdout", max_bytes), OutputPipe("stderr", max_bytes)]
        self.by_descriptor: Dict[int, OutputPipe] = {pipe.read_end: pipe for pipe in self.pipes}
        self.run_number = 0
        self.flush_at = 0.0  # when buffered output is due; 0: there is none
        self._last_sent_at = 0.0
        self._send_to_host = send_to_host
        self._poller = select.poll()  # asks both pipes at once
        for descriptor in self.by_descriptor:
            self._poller.register(descriptor, select.POLLIN)

    def start_run(self, run_number: int) -> None:
        """Attribute what is printed from now on to a run."""
        self.run_number = run_number
        for pipe in self.pipes:
            pipe.bytes_left = pipe.max_bytes

    def finish_run(self) -> None:
        """Keep what is printed from now on for the next run."""
        self.run_number = 0
        for pipe in self.pipes:
            pipe.bytes_left = MAX_IDLE_BYTES

    def handle_readable(self, descriptor: int) -> None:
        """Read a pipe. The first output is sent at once, what follows closely is sent together."""
        pipe = self.by_descriptor[descriptor]
        pipe.read_available()
        if not self.run_number:
            return  # kept for the next run
        now = time.perf_counter()
        if now - self._last_sent_at >= COALESCE_S or len(pipe.buffer) >= READ_BYTES:
            self.send_buffered()
        elif not self.flush_at:
            self.flush_at = self._last_sent_at + COALESCE_S

    def send_available(self, *, is_last: bool = False) -> None:
        """Send everything that has been printed up to now; `is_last` at the end of a run."""
        for descriptor, _ in self._poller.poll(0):
            self.by_descriptor[descriptor].read_available(MAX_DRAIN_READS)
        self.send_buffered(is_last=is_last)

    def send_buffered(self, *, is_last: bool = False) -> None:
        """Send everything that has been read."""
        self.flush_at = 0.0
        for pipe in self.pipes:
            if not pipe.buffer and not pipe.dropped_bytes:
                continue
            for message in pipe.take_messages(self.run_number, is_last=is_last):
                self._last_sent_at = time.perf_counter()
                self._send_to_host(message)

    def add_warning(self, problem: str) -> None:
        """Put `problem` at the beginning of the next run's stderr."""
        self.pipes[1].buffer += f"mcpruntime: {problem}\n".encode("utf-8", "backslashreplace")
