"""What one run uses: wall time, processor time and memory."""

from __future__ import annotations

import os
import resource
from time import perf_counter, process_time  # bound before `determinism` replaces them in `time`

from .system_calls import OwnProcFiles

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Dict


class UsageMeter:
    """Measures what one run uses, from `start` to `measure_usage`."""

    def __init__(self) -> None:
        self.started_cpu_s = self.started_at = 0.0
        try:
            self.clear_refs_fd = _open_clear_refs()
        except OSError:
            self.clear_refs_fd = -1  # no such file: the peak is then that of all runs so far

    def reinitialize(self) -> None:
        """Let the descriptor refer to this process, which is a fork of the one that opened it."""
        if self.clear_refs_fd >= 0:
            own = _open_clear_refs()
            os.dup2(own, self.clear_refs_fd, inheritable=False)
            os.close(own)

    def start(self) -> None:
        """Start to measure."""
        if self.clear_refs_fd >= 0:
            try:
                os.pwrite(self.clear_refs_fd, b"5", 0)  # resets the peak memory
            except OSError:
                self.clear_refs_fd = -1  # user code closed it
        self.started_cpu_s = _cpu_seconds()
        self.started_at = perf_counter()

    def measure_usage(self) -> Dict[str, float]:
        """Return wall time, processor time (children included) and peak memory of the run."""
        return {
            "wall_ms": round((perf_counter() - self.started_at) * 1e3, 3),
            "cpu_ms": round((_cpu_seconds() - self.started_cpu_s) * 1e3, 3),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


def _open_clear_refs() -> int:
    with OwnProcFiles():
        return os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + children.ru_utime + children.ru_stime
