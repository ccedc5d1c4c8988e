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

from ...protocol import wire
from . import processes
from .forks import HELLO_BYTE, ORDER_BYTES

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Set, Tuple

HELLO_TIMEOUT_S = 5.0  # from a parked or woken copy to its word; a fork takes milliseconds even on a loaded machine
INT_BYTES = 4  # bytes
ANCILLARY_BYTES = socket.CMSG_SPACE(3 * INT_BYTES)  # process, user and group of who speaks
MAX_STARTING_FORKS = 4  # copies at most that have not said hello yet; a worker makes one at a time
MEASURE_IDLE_S = 0.05  # after a run, before its memory is measured: a run that follows at once is not to wait for that
MEASURE_BUSY_S = 0.2  # between two measurements during a run
MEASURE_SHARE = 20  # a measurement may take one part in so many of the time


class ParkedFork:
    """One parked copy of the worker; `pid` is 0 until it has said hello."""

    def __init__(self, run: int, control: socket.socket) -> None:
        self.run_number = run
        self.pid = 0
        self.control_sock = control
        self.hello_deadline = time.perf_counter() + HELLO_TIMEOUT_S


class ParkedForks:
    """The copies that are parked, oldest first, and those that have not said hello yet, by their descriptor."""

    def __init__(
        self,
        max_forks: int,
        max_bytes: int,
        poller: select.poll,
        send_to_host: Callable[[wire.Message], None],
    ) -> None:
        self.max_forks = max_forks
        self.max_bytes = max_bytes
        self.worker_pid = 0  # the process that is no copy
        self.by_run: Dict[int, ParkedFork] = {}  # by run
        self.by_descriptor: Dict[int, ParkedFork] = {}
        self.measure_at = 0.0  # when memory is to be measured; 0 while there is no need
        self._measure_not_before = 0.0
        self._measurements: Dict[
            int, Tuple[int, int]
        ] = {}  # process to (proportional, whole) anonymous memory
        self._poller = poller
        self._send_to_host = send_to_host

    def pids(self) -> Set[int]:
        """Return the processes that are parked copies."""
        return {copy.pid for copy in self.by_run.values()}

    def _starting_forks(self) -> List[ParkedFork]:
        return [copy for copy in self.by_descriptor.values() if not copy.pid]

    def _is_new_child(self, pid: int) -> bool:
        return (
            pid > 0
            and pid != self.worker_pid
            and pid not in self.pids()
            and processes.is_child(pid)
        )

    # coming and going -----------------------------------------------------------------------------

    def add_fork(self, run_number: int, descriptor: int) -> None:
        """Take the control socket of a copy of run `run`'s end, if it is one."""
        try:
            control = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            control = None
        if control is None or control.family != socket.AF_UNIX:
            self._send_to_host(wire.ParkFailed(run_number, "the copy did not come up"))
            return
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        control.setblocking(False)
        coming = self._starting_forks()
        if len(coming) >= MAX_STARTING_FORKS:
            self.drop_fork(coming[0], "the copy did not come up")
        self.by_descriptor[descriptor] = ParkedFork(run_number, control)
        self._poller.register(descriptor, select.POLLIN)

    def handle_hello(self, descriptor: int) -> None:
        """A copy says hello, once; anything else is its end."""
        copy = self.by_descriptor[descriptor]
        try:
            pid = _receive_hello(copy.control_sock)
        except BlockingIOError:
            return  # the descriptor was another one's when it became readable
        if copy.pid or not self._is_new_child(pid):
            self.drop_fork(copy, "the copy did not come up")
            return
        copy.pid = pid
        self.by_run[copy.run_number] = copy
        self._send_to_host(wire.ForkParked(copy.run_number))
        while len(self.by_run) > self.max_forks:
            self.drop_oldest()
        self.schedule_measurement(MEASURE_IDLE_S)

    def drop_fork(self, copy: ParkedFork, reason: str = "") -> None:
        """Kill a copy, and say that it is gone, or for one that never stood, why."""
        self._poller.unregister(copy.control_sock)
        del self.by_descriptor[copy.control_sock.fileno()]
        copy.control_sock.close()
        if copy.pid:
            processes.send_signal(copy.pid, signal.SIGKILL)
            self._measurements.pop(copy.pid, None)
        if self.by_run.get(copy.run_number) is copy:
            del self.by_run[copy.run_number]
            self._send_to_host(wire.ForkDropped(copy.run_number))
        elif not copy.pid:
            self._send_to_host(wire.ParkFailed(copy.run_number, reason))

    def drop_oldest(self) -> None:
        """Make room."""
        self.drop_fork(next(iter(self.by_run.values())))

    def forget_dead(self, pids: List[int]) -> None:
        """Forget the copies that were among the processes which have been collected."""
        for copy in [copy for copy in self.by_run.values() if copy.pid in pids]:
            copy.pid = 0  # the number may be another process's soon
            self.drop_fork(copy)

    def close(self) -> None:
        """Let go of all copies, which ends them unless another process holds their sockets as well."""
        for copy in self.by_descriptor.values():
            copy.control_sock.close()
        self.by_descriptor.clear()
        self.by_run.clear()

    def await_hellos(self) -> None:
        """Wait until each copy has said hello or its time is over."""
        while True:
            coming = {copy.control_sock.fileno(): copy for copy in self._starting_forks()}
            if not coming:
                return
            left = min(copy.hello_deadline for copy in coming.values()) - time.perf_counter()
            for descriptor in select.select(list(coming), [], [], max(left, 0.0))[0]:
                self.handle_hello(descriptor)
            self.drop_overdue()

    def drop_overdue(self) -> None:
        """Give up the copies that have not said hello in time."""
        now = time.perf_counter()
        for copy in self._starting_forks():
            if copy.hello_deadline <= now:
                self.drop_fork(copy, "the copy did not come up in time")

    def list_deadlines(self) -> List[float]:
        """Return when something is to be done here."""
        return [copy.hello_deadline for copy in self._starting_forks()] + [self.measure_at] * bool(
            self.measure_at
        )

    # waking ---------------------------------------------------------------------------------------

    def order_promotion(
        self, run_number: int, generation: int, worker_end: socket.socket
    ) -> Optional[ParkedFork]:
        """Tell the copy of run `run` to copy itself as worker number `generation`; None if there is no such copy."""
        copy = self.by_run.get(run_number)
        if copy is None:
            return None
        rights = worker_end.fileno().to_bytes(4, sys.byteorder)
        data = generation.to_bytes(ORDER_BYTES, "big")
        processes.send_signal(copy.pid, signal.SIGCONT)  # code may have stopped it
        try:
            if copy.control_sock.sendmsg(
                [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            ) == len(data):
                return copy
        except OSError:
            pass  # gone, or it does not read
        self.drop_fork(copy)
        return None

    def await_promoted(self, copy: ParkedFork) -> int:
        """Wait for the new worker that a copy was told to become; return its process, or 0 if there is none."""
        select.select([copy.control_sock], [], [], HELLO_TIMEOUT_S)
        try:
            pid = _receive_hello(copy.control_sock)
        except BlockingIOError:
            pid = 0
        if self._is_new_child(pid):
            return pid
        self.drop_fork(copy)
        return 0

    # memory ---------------------------------------------------------------------------------------

    def schedule_measurement(self, seconds: float) -> None:
        """Have memory be measured in so many seconds, if it is not to be anyway, and not too often."""
        if not self.measure_at and self.by_run:
            self.measure_at = max(time.perf_counter() + seconds, self._measure_not_before)

    def measure_memory(self) -> None:
        """Measure one process that has not been; when all have been, drop copies until they fit."""
        begun = time.perf_counter()
        pids = [self.worker_pid, *self.pids()]
        left = [pid for pid in pids if pid not in self._measurements]
        if left:
            self._measurements[left[0]] = _anonymous_memory(left[0])
        self._measure_not_before = (
            max(self._measure_not_before, begun) + (time.perf_counter() - begun) * MEASURE_SHARE
        )
        if len(left) > 1:
            return
        extra = (
            sum(self._measurements[pid][0] for pid in pids) - self._measurements[self.worker_pid][1]
        )
        self._measurements.clear()
        self.measure_at = 0.0
        if extra > self.max_bytes and self.by_run:
            self.drop_oldest()
            self._measure_not_before = 0.0
            self.schedule_measurement(0.0)


def _receive_hello(control: socket.socket) -> int:
    """Return the process that said hello, as the kernel knows it; 0 if it is gone or said something else.

    Raises BlockingIOError where nothing was said.
    """
    try:
        data, ancillary, flags, _ = control.recvmsg(
            len(HELLO_BYTE), ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        raise
    except OSError:
        return 0
    pid = 0
    for _, kind, content in ancillary:
        if kind == socket.SCM_CREDENTIALS:
            pid = int.from_bytes(content[:INT_BYTES], sys.byteorder)
        elif kind == socket.SCM_RIGHTS:
            close_descriptors(unpack_descriptors(content))
    return pid if data == HELLO_BYTE and not flags & socket.MSG_CTRUNC else 0


def unpack_descriptors(content: bytes) -> List[int]:
    """Return the descriptors that came as ancillary data."""
    return [
        int.from_bytes(content[at : at + INT_BYTES], sys.byteorder)
        for at in range(0, len(content) - INT_BYTES + 1, INT_BYTES)
    ]


def close_descriptors(descriptors: List[int]) -> None:
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
