"""Processes and descriptors: fork, find, kill, reap and limit them.

This module knows neither the wire nor what a worker is.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time

from .system_calls import OwnProcFiles

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Set

MIN_RUNTIME_FD = 200  # above the numbers that user code gets or guesses
MAX_FORK_ATTEMPTS = 500  # every 10 ms, while killed processes still count towards the limit
MAX_KILL_ROUNDS = 200  # the processes may fork between two rounds
MAX_OOM_SCORE = 1000


def fork_with_retry(reap: Callable[[], Any]) -> int:
    """Fork; at the process limit, `reap` dead children and try again."""
    for _ in range(MAX_FORK_ATTEMPTS):
        try:
            return os.fork()
        except BlockingIOError:
            time.sleep(0.01)
            reap()
    return os.fork()


def move_fd_high(fd: int) -> int:
    """Move `fd` above the numbers that user code gets, and let `exec` close it."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, MIN_RUNTIME_FD)
    os.close(fd)
    return high


def read_oom_score() -> int:
    """Return how readily the kernel's OOM killer chooses this process."""
    try:
        with open("/proc/self/oom_score_adj") as file:
            return int(file.read())
    except OSError:
        return 0


def set_oom_score(score: int) -> None:
    """Set how readily the OOM killer chooses this process."""
    try:
        with OwnProcFiles(), open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(score))
    except OSError:
        pass  # not Linux


def is_child(pid: int) -> bool:
    """Return whether `pid` is a child of this process that runs or has not been reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


def is_dead(pid: int) -> bool:
    """Return whether a child is dead and not reaped yet."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def reap_children(spared_pid: int = 0) -> List[int]:
    """Reap dead children until there is none or `spared_pid` is next; return their pids."""
    reaped: List[int] = []
    while True:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return reaped
        if dead is None or dead.si_pid == spared_pid:
            return reaped
        os.waitpid(dead.si_pid, 0)
        reaped.append(dead.si_pid)


def kill_until_gone(
    list_pids: Callable[[], List[int]], reap: Callable[[], Any], spared: Set[int]
) -> None:
    """Kill the listed processes except `spared`, repeatedly, because they may still fork."""
    for _ in range(MAX_KILL_ROUNDS):
        found = [pid for pid in list_pids() if pid not in spared]
        if not found:
            return
        for pid in found:
            send_signal(pid, signal.SIGKILL)
        reap()


def stop_fork_bomb(max_processes: int, reap: Callable[[], Any], spared: Set[int]) -> None:
    """Kill all processes except `spared` if there are so many that others can hardly start."""
    if len(set(other_pids()) - spared) > max_processes * 3 // 4:
        kill_until_gone(other_pids, reap, spared)


def kill_others(spared: Set[int]) -> None:
    """Kill every process of this namespace except its init, this one and `spared`."""
    if not spared:
        send_signal(-1, signal.SIGKILL)
        return
    send_signal(-1, signal.SIGSTOP)  # so that none forks while they are listed
    for pid in other_pids():
        send_signal(pid, signal.SIGCONT if pid in spared else signal.SIGKILL)


def send_signal(pid: int, number: int) -> None:
    """Send a signal; a process that does not exist is ignored."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def other_pids() -> List[int]:
    """Return every process of this namespace except its init and this one."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if pid not in (1, os.getpid())]


def descendant_pids() -> List[int]:
    """Return every process below this one."""
    if not os.path.isdir("/proc"):
        return []  # not Linux
    children: Dict[int, List[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry))
    found: List[int] = []
    level = children.get(os.getpid(), [])
    while level:
        found += level
        level = [child for pid in level for child in children.get(pid, [])]
    return found


def apply_resource_limits(limits: Dict[str, Any]) -> None:
    """Apply `resource` limits by name, as far as the hard limits allow."""
    import resource

    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))


def describe_interpreter_exit(status: int, kill_reason: str, broken_exit_code: int) -> str:
    """Return one sentence on how an interpreter ended.

    `kill_reason` says why the runtime killed it, if it did. An interpreter that user code has
    damaged exits with `broken_exit_code`.
    """
    if not os.WIFSIGNALED(status):
        code = os.WEXITSTATUS(status)
        why = ": code changed modules that it needs itself" if code == broken_exit_code else ""
        return f"The interpreter exited with code {code}{why}."
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and kill_reason:
        return f"The interpreter was killed: {kill_reason}."
    if number == signal.SIGKILL:
        return "The interpreter was killed (SIGKILL): most likely it ran out of memory."
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return f"The interpreter was ended by {name}."
