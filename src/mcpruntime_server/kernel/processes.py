"""Processes and descriptors as the supervisor handles them: making, finding, killing, collecting, limiting.

Nothing here knows the wire or what a worker is.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

HIGH_FD = 200  # our own descriptors are kept above the numbers that user code gets or guesses
FORK_ROUNDS = 500  # times 10 ms: while killed processes are being reaped, none can be made
KILL_ROUNDS = 200  # passes over processes that may go on forking meanwhile


def fork() -> int:
    """Fork, waiting for room where a process limit is reached."""
    for _ in range(FORK_ROUNDS):
        try:
            return os.fork()
        except BlockingIOError:
            time.sleep(0.01)
            reap()
    return os.fork()


def high(fd: int) -> int:
    """Move `fd` above the numbers that user code gets, closed in programs that it starts."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH_FD)
    os.close(fd)
    return high


def first_to_die() -> None:
    """Make the kernel's OOM killer choose the worker and its children before the supervisor."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # not Linux


def is_dead(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def reap(keep: int = 0) -> None:
    """Collect dead children other than `keep`, which is left to be buried."""
    while True:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None or dead.si_pid == keep:
            return
        os.waitpid(dead.si_pid, 0)


def kill_all(listed: Callable[[], List[int]], keep: int = 0) -> None:
    """Kill the processes that `listed` finds until none but `keep` is left; they may go on forking meanwhile."""
    for _ in range(KILL_ROUNDS):
        found = [pid for pid in listed() if pid != keep]
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        reap(keep)


def others() -> List[int]:
    """Return every process of this namespace but its init and this one."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and entry not in ("1", str(os.getpid()))]


def descendants() -> List[int]:
    """Return every process below this one, which adopts orphans."""
    parents: Dict[int, List[int]] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            parents.setdefault(parent, []).append(int(entry))
    found: List[int] = []
    level = parents.get(os.getpid(), [])
    while level:
        found += level
        level = [child for pid in level for child in parents.get(pid, [])]
    return found


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none escapes `descendants`."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_child_subreaper = 36
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def limit(limits: Dict[str, Any]) -> None:
    """Apply `resource` limits by name, as far as the hard limits allow."""
    import resource

    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))
