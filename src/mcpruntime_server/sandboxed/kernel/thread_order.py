"""Numbers that tell apart what threads do at the same time, the same ones in each replay.

A number follows from the name of the thread and from how often it has done the same in the run.
"""

from __future__ import annotations

import zlib

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Callable, Dict


class ThreadOrder:
    """Numbers what each thread does in a run."""

    def __init__(self, thread_name: Callable[[], str]) -> None:
        self._thread_name = thread_name
        self._counts: Dict[str, int] = {}  # by thread

    def start_run(self) -> None:
        """Count from 1 again."""
        self._counts.clear()

    def next_number(self, limit: int) -> int:
        """Return the next number of the calling thread, below `limit`."""
        thread = self._thread_name()
        count = self._counts[thread] = self._counts.get(thread, 0) + 1
        return zlib.crc32(f"{thread}:{count}".encode()) % limit

    def next_number_beside_main(self, limit: int) -> int:
        """Return the next number of the calling thread, from 1; 0 in the main thread."""
        return self.next_number(limit - 1) + 1 if self._thread_name() else 0
