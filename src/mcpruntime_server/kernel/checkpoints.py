"""The parked copies as the supervisor holds them: their control sockets, their deaths, their bounds.

Rule 1: who a copy is, the kernel says (SO_PASSCRED), and only a child of this process can be one.
Rule 2: a copy answers within a bound or is killed; nothing that one does or leaves undone holds up the others.
Rule 3: what they cost is the anonymous memory that exists only because of them: the proportional memory of all, the
worker included, beyond what the worker would have alone. The oldest goes first.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

from . import processes, wire
from .forks import HELLO, ORDER

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Set, Tuple

HELLO_S = 5.0  # from a parked or woken copy to its word; a fork takes milliseconds even on a loaded machine
INT = 4  # bytes
ANCILLARY = socket.CMSG_SPACE(3 * INT)  # process, user and group of who speaks
COMING = 4  # copies at most that have not said hello yet; a worker makes one at a time
IDLE_S = 0.05  # after a run, before its memory is measured: a run that follows at once is not to wait for that
BUSY_S = 0.2  # between two measurements during a run
SHARE = 20  # a measurement may take one part in so many of the time


class Copy:
    """One parked copy of the worker; `pid` is 0 until it has said hello."""

    def __init__(self, run: int, control: socket.socket) -> None:
        self.run = run
        self.pid = 0
        self.control = control
        self.due = time.perf_counter() + HELLO_S


class Checkpoints:
    """The copies that are parked, oldest first, and those that have not said hello yet, by their descriptor."""

    def __init__(self, most: int, limit: int, poll: select.poll, tell: Callable[[wire.Message], None]) -> None:
        self.most = most
        self.limit = limit
        self.worker = 0  # the process that is no copy
        self.parked: Dict[int, Copy] = {}  # by run
        self.by_descriptor: Dict[int, Copy] = {}
        self.measure_at = 0.0  # when memory is to be measured; 0 while there is no need
        self._not_before = 0.0
        self._measured: Dict[int, Tuple[int, int]] = {}  # process to (proportional, whole) anonymous memory
        self._poll = poll
        self._tell = tell

    def pids(self) -> Set[int]:
        """Return the processes that are parked copies."""
        return {copy.pid for copy in self.parked.values()}

    def _coming(self) -> List[Copy]:
        return [copy for copy in self.by_descriptor.values() if not copy.pid]

    def _is_new(self, pid: int) -> bool:
        return pid > 0 and pid != self.worker and pid not in self.pids() and processes.is_child(pid)

    # coming and going -----------------------------------------------------------------------------

    def add(self, run: int, descriptor: int) -> None:
        """Take the control socket of a copy of run `run`'s end, if it is one."""
        try:
            control = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            control = None
        if control is None or control.family != socket.AF_UNIX:
            self._tell(wire.Unparkable(run, "the copy did not come up"))
            return
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        control.setblocking(False)
        coming = self._coming()
        if len(coming) >= COMING:
            self.drop(coming[0], "the copy did not come up")
        self.by_descriptor[descriptor] = Copy(run, control)
        self._poll.register(descriptor, select.POLLIN)

    def on_readable(self, descriptor: int) -> None:
        """A copy says hello, once; anything else is its end."""
        copy = self.by_descriptor[descriptor]
        try:
            pid = _who_speaks(copy.control)
        except BlockingIOError:
            return  # the descriptor was another one's when it became readable
        if copy.pid or not self._is_new(pid):
            self.drop(copy, "the copy did not come up")
            return
        copy.pid = pid
        self.parked[copy.run] = copy
        self._tell(wire.Parked(copy.run))
        while len(self.parked) > self.most:
            self.drop_oldest()
        self.measure_in(IDLE_S)

    def drop(self, copy: Copy, reason: str = "") -> None:
        """Kill a copy, and say that it is gone, or for one that never stood, why."""
        self._poll.unregister(copy.control)
        del self.by_descriptor[copy.control.fileno()]
        copy.control.close()
        if copy.pid:
            processes.send(copy.pid, signal.SIGKILL)
            self._measured.pop(copy.pid, None)
        if self.parked.get(copy.run) is copy:
            del self.parked[copy.run]
            self._tell(wire.Dropped(copy.run))
        elif not copy.pid:
            self._tell(wire.Unparkable(copy.run, reason))

    def drop_oldest(self) -> None:
        """Make room."""
        self.drop(next(iter(self.parked.values())))

    def died(self, pids: List[int]) -> None:
        """Forget the copies that were among the processes which have been collected."""
        for copy in [copy for copy in self.parked.values() if copy.pid in pids]:
            copy.pid = 0  # the number may be another process's soon
            self.drop(copy)

    def close(self) -> None:
        """Let go of all copies, which ends them unless another process holds their sockets as well."""
        for copy in self.by_descriptor.values():
            copy.control.close()
        self.by_descriptor.clear()
        self.parked.clear()

    def await_hellos(self) -> None:
        """Wait until each copy has said hello or its time is over."""
        while True:
            coming = {copy.control.fileno(): copy for copy in self._coming()}
            if not coming:
                return
            left = min(copy.due for copy in coming.values()) - time.perf_counter()
            for descriptor in select.select(list(coming), [], [], max(left, 0.0))[0]:
                self.on_readable(descriptor)
            self.end_overdue()

    def end_overdue(self) -> None:
        """Give up the copies that have not said hello in time."""
        now = time.perf_counter()
        for copy in self._coming():
            if copy.due <= now:
                self.drop(copy, "the copy did not come up in time")

    def due(self) -> List[float]:
        """Return when something is to be done here."""
        return [copy.due for copy in self._coming()] + [self.measure_at] * bool(self.measure_at)

    # waking ---------------------------------------------------------------------------------------

    def order(self, run: int, generation: int, worker_end: socket.socket) -> Optional[Copy]:
        """Tell the copy of run `run` to copy itself as worker number `generation`; None if there is no such copy."""
        copy = self.parked.get(run)
        if copy is None:
            return None
        rights = worker_end.fileno().to_bytes(4, sys.byteorder)
        data = generation.to_bytes(ORDER, "big")
        processes.send(copy.pid, signal.SIGCONT)  # code may have stopped it
        try:
            if copy.control.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]) == len(data):
                return copy
        except OSError:
            pass  # gone, or it does not read
        self.drop(copy)
        return None

    def woken(self, copy: Copy) -> int:
        """Wait for the new worker that a copy was told to become; return its process, or 0 if there is none."""
        select.select([copy.control], [], [], HELLO_S)
        try:
            pid = _who_speaks(copy.control)
        except BlockingIOError:
            pid = 0
        if self._is_new(pid):
            return pid
        self.drop(copy)
        return 0

    # memory ---------------------------------------------------------------------------------------

    def measure_in(self, seconds: float) -> None:
        """Have memory be measured in so many seconds, if it is not to be anyway, and not too often."""
        if not self.measure_at and self.parked:
            self.measure_at = max(time.perf_counter() + seconds, self._not_before)

    def measure(self) -> None:
        """Measure one process that has not been; when all have been, drop copies until they fit."""
        begun = time.perf_counter()
        pids = [self.worker, *self.pids()]
        left = [pid for pid in pids if pid not in self._measured]
        if left:
            self._measured[left[0]] = _anonymous_memory(left[0])
        self._not_before = max(self._not_before, begun) + (time.perf_counter() - begun) * SHARE
        if len(left) > 1:
            return
        extra = sum(self._measured[pid][0] for pid in pids) - self._measured[self.worker][1]
        self._measured.clear()
        self.measure_at = 0.0
        if extra > self.limit and self.parked:
            self.drop_oldest()
            self._not_before = 0.0
            self.measure_in(0.0)


def _who_speaks(control: socket.socket) -> int:
    """Return the process that said hello, as the kernel knows it; 0 if it is gone or said something else.

    Raises BlockingIOError where nothing was said.
    """
    try:
        data, ancillary, flags, _ = control.recvmsg(len(HELLO), ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError:
        return 0
    pid = 0
    for _, kind, content in ancillary:
        if kind == socket.SCM_CREDENTIALS:
            pid = int.from_bytes(content[:INT], sys.byteorder)
        elif kind == socket.SCM_RIGHTS:
            close_all(descriptors_in(content))
    return pid if data == HELLO and not flags & socket.MSG_CTRUNC else 0


def descriptors_in(content: bytes) -> List[int]:
    """Return the descriptors that came as ancillary data."""
    return [int.from_bytes(content[at : at + INT], sys.byteorder) for at in range(0, len(content) - INT + 1, INT)]


def close_all(descriptors: List[int]) -> None:
    """Close descriptors that nobody asked for."""
    for descriptor in descriptors:
        os.close(descriptor)


def _anonymous_memory(pid: int) -> Tuple[int, int]:
    """Return the anonymous memory of a process in bytes: its proportional part, and all; (0, 0) where none tells."""
    found = {b"Pss_Anon:": 0, b"Anonymous:": 0}
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                name, value = line.split(None, 2)[:2]
                if name in found:
                    found[name] = int(value) * 1024
    except (OSError, ValueError):
        return 0, 0
    return found[b"Pss_Anon:"], found[b"Anonymous:"]
