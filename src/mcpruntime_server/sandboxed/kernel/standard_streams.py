"""The standard streams of user code: pipes for output, and an input that cannot be read."""

from __future__ import annotations

import builtins
import io
import os
import sys

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Dict, Optional


class StandardStreams:
    """Connects fds 1 and 2, `sys.stdout` and `sys.stderr` to pipes, whatever code does to them."""

    def __init__(self, stdout: int, stderr: int) -> None:
        self.pipes = {1: stdout, 2: stderr}
        self._streams: Dict[str, io.TextIOWrapper] = {}

    def install(self) -> None:
        """Replace the streams of this process."""
        builtins.input = _refuse_input
        sys.stdin = _UnreadableStdin()
        self.reset()

    def reset(self) -> None:
        """Connect the output streams again, which code may have replaced or closed."""
        for fd, name in ((1, "stdout"), (2, "stderr")):
            if not _is_same_file(fd, self.pipes[fd]):
                os.dup2(self.pipes[fd], fd)
            stream = self._streams.get(name)
            if stream is None or stream.closed:
                raw = io.FileIO(fd, "w", closefd=False)
                stream = io.TextIOWrapper(
                    io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True
                )
                self._streams[name] = stream
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

    def flush(self) -> None:
        """Write what is buffered."""
        for stream in self._streams.values():
            try:
                stream.flush()
            except (ValueError, OSError):
                pass  # user code closed it


def _is_same_file(fd: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(fd, other)
    except OSError:
        return False


def _refuse_input(prompt: object = "") -> str:
    raise RuntimeError("input() is not available here. Write the value into the code instead.")


class _UnreadableStdin(io.TextIOBase):
    """A stdin whose error explains why it cannot be read."""

    def readable(self) -> bool:
        return True

    def read(self, size: Optional[int] = -1, /) -> str:
        return _refuse_input()

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        return _refuse_input()
