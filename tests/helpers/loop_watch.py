"""Records how long the event loop of a server serves nobody, in a file that tests read.

A timer is due every few milliseconds; how late it is, is how long a request would have waited for
its first callback. That covers long callbacks, many short ones in a row, and threads that hold the
interpreter's lock. The time in which the loop's thread could have worked, but had no processor,
does not count: the kernel knows it (`schedstat`). So other processes do not change the figure.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# `make attack` measures what attacks cost others; elsewhere, other tests load the machine.
IS_MEASURED = os.environ.get("ATTACKS", "0") not in ("", "0") and sys.platform == "linux"
PERIOD_S = 0.004
MIN_STALL_S = 0.001  # shorter ones are not recorded
RECORD = struct.Struct("dd")  # the end on the monotonic clock of the machine, and the length


class LoopWatch:
    """Watches one event loop; append its stalls to `path`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self._loop = loop
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._waited_s = self._read_wait_s()
        self._due = 0.0
        self._sleep()

    def _sleep(self) -> None:
        self._due = time.perf_counter() + PERIOD_S
        self._loop.call_later(PERIOD_S, self._wake)

    def _wake(self) -> None:
        now, waited_s = time.perf_counter(), self._read_wait_s()
        stall_s = now - self._due - (waited_s - self._waited_s)
        self._waited_s = waited_s
        if stall_s > MIN_STALL_S:
            os.write(self._file, RECORD.pack(now, stall_s))
        self._sleep()

    def _read_wait_s(self) -> float:
        """Return how long this thread has waited for a processor."""
        return int(os.pread(self._schedstat, 128, 0).split()[1]) / 1e9


def watch_main_loop(path: Path) -> None:
    """Watch the loop that the main thread of this process runs, once it does."""
    run_forever = asyncio.BaseEventLoop.run_forever

    def run_watched(self: asyncio.BaseEventLoop) -> None:
        if threading.current_thread() is threading.main_thread():
            LoopWatch(self, path)
        run_forever(self)

    asyncio.BaseEventLoop.run_forever = run_watched  # type: ignore[method-assign]


def read_stalls_s(path: Path, since: float) -> Iterator[float]:
    """Yield the stalls in a file that have ended after `since`, in seconds."""
    for ended, stall_s in RECORD.iter_unpack(path.read_bytes()):
        if ended > since:
            yield stall_s
