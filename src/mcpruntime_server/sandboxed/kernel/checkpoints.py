"""Checkpoints as the supervisor keeps them: when a state is parked, and the parked forks.

Rule 1: the Linux kernel says which process a fork is (SO_PASSCRED), and only a child of the
supervisor can be one.
Rule 2: a fork answers within a timeout or is killed; nothing that it does holds up the others.
Rule 3: forks are bounded in number and in memory; the oldest goes first. Their memory is the
anonymous memory that exists only because of them: the proportional memory of all forks and the
worker together, minus what the worker would have alone. The sandbox's memory limit is raised by
their share.
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
from .forks import ORDER_BYTES
from .hello import HELLO_TIMEOUT_S, ProcessMemory, await_hello, receive_hello

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Set, Tuple

INT_BYTES = 4
MAX_STARTING_FORKS = 4  # that have not said hello; a worker makes one at a time
MEASURE_IDLE_S = 0.05  # after a run, so that a run that follows at once does not wait
MEASURE_BUSY_S = 0.2  # between two measurements during a run
MEASURE_SHARE = 20  # measuring takes at most one part in so many of the time
PARK_IDLE_S = 0.025  # after a run: a client that sends one step after the other is faster
PARK_COST_S = 0.005  # assumed until it has been measured
MAX_COST_PER_RUN_S = 0.0001  # of parking, averaged over the runs of a burst
MAX_COST_SHARE = 0.05  # of parking, in the time that runs take
MAX_UNPARKED_RUNS = 64  # to be executed again at most


class ParkSchedule:
    """Decides when the end state of a run is parked.

    Parking takes milliseconds, longer than a small step. So a state is parked when the sandbox is
    idle for a moment, which always happens after the last step of a burst. Within a burst a state
    is parked only when the work since the last parked state is worth it: it would take long to
    execute again, or it cannot be repeated exactly because it was interrupted. The cost of parking
    is measured each time.
    """

    def __init__(self) -> None:
        self.due_run = 0  # a finished run that is neither parked nor given up yet
        self.due_at = 0.0
        self.ordered_run = 0  # the run whose state the worker was ordered to park
        self._ordered_at = 0.0
        self._cost_s = PARK_COST_S
        self._unparked_runs = 0  # since the last parked state
        self._unparked_s = 0.0  # that they took

    def finish_run(self, run_number: int, duration_s: float, *, was_interrupted: bool) -> bool:
        """Note the end of a run; return whether it is worth parking at once."""
        self.due_run = run_number
        self.due_at = time.perf_counter() + PARK_IDLE_S
        self._unparked_runs += 1
        self._unparked_s += duration_s
        return (
            was_interrupted
            or self._unparked_s * MAX_COST_SHARE >= self._cost_s
            or self._unparked_runs * MAX_COST_PER_RUN_S >= self._cost_s
            or self._unparked_runs >= MAX_UNPARKED_RUNS
        )

    def is_due(self) -> bool:
        """Return whether the pause after the last run has been long enough to park its state."""
        return 0.0 < self.due_at <= time.perf_counter()

    def start_run(self) -> int:
        """Note the start of a run; return the run whose state is given up because of that, or 0."""
        skipped_run, self.due_run, self.due_at = self.due_run, 0, 0.0
        return skipped_run

    def order(self) -> int:
        """Return the run whose state the worker is to park now, or 0."""
        self.due_at = 0.0
        if self.ordered_run:
            return 0  # user code forged the end of a run
        self.ordered_run, self.due_run = self.due_run, 0
        self._ordered_at = time.perf_counter()
        self._unparked_runs, self._unparked_s = 0, 0.0
        return self.ordered_run

    def finish_parking(self) -> None:
        """Note that the worker has parked the state, or could not."""
        self.ordered_run = 0
        self._cost_s = time.perf_counter() - self._ordered_at

    def cancel(self) -> List[int]:
        """Give up what is due or ordered, because the worker is gone; return those runs."""
        runs = [run for run in (self.ordered_run, self.due_run) if run]
        self.ordered_run = self.due_run = 0
        self.due_at = 0.0
        return runs


class ParkedFork:
    """One parked fork of the worker; `pid` is 0 until it has said hello."""

    def __init__(self, run_number: int, control_sock: socket.socket) -> None:
        self.run_number = run_number
        self.pid = 0
        self.memory = ProcessMemory()
        self.control_sock = control_sock
        self.hello_deadline = time.perf_counter() + HELLO_TIMEOUT_S


class ParkedForks:
    """The parked forks, oldest first, and those that have not said hello yet."""

    def __init__(
        self,
        max_forks: int,
        max_bytes: int,
        poller: select.poll,
        send_to_host: Callable[[wire.Message], None],
    ) -> None:
        self.max_forks = max_forks
        self.max_bytes = max_bytes
        self.worker_pid = 0
        self.worker_memory = ProcessMemory()
        self.by_run: Dict[int, ParkedFork] = {}  # those that have said hello
        self.by_descriptor: Dict[int, ParkedFork] = {}  # all
        self.measure_at = 0.0  # when memory is measured next; 0: there is no need
        self._measure_not_before = 0.0
        self._measurements: Dict[int, Tuple[int, int]] = {}  # by process, see `ProcessMemory`
        self._poller = poller
        self._send_to_host = send_to_host

    def set_worker(self, pid: int, memory: ProcessMemory) -> None:
        """Note which process is the worker now; 0 for none."""
        self.worker_memory.close()
        self.worker_pid, self.worker_memory = pid, memory
        self._measurements.pop(pid, None)

    def pids(self) -> Set[int]:
        """Return the processes of the parked forks."""
        return {fork.pid for fork in self.by_run.values()}

    def _starting_forks(self) -> List[ParkedFork]:
        return [fork for fork in self.by_descriptor.values() if not fork.pid]

    def _is_new_child(self, pid: int) -> bool:
        return (
            pid > 0
            and pid != self.worker_pid
            and pid not in self.pids()
            and processes.is_child(pid)
        )

    # start and end --------------------------------------------------------------------------------

    def add_fork(self, run_number: int, descriptor: int) -> None:
        """Take the control socket of a new fork, which will say hello."""
        try:
            control = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            control = None
        if control is None or control.family != socket.AF_UNIX:
            self._send_to_host(wire.ParkFailed(run_number, "the fork did not start"))
            return
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        control.setblocking(False)
        starting = self._starting_forks()
        if len(starting) >= MAX_STARTING_FORKS:
            self.drop_fork(starting[0], "the fork did not start")
        self.by_descriptor[descriptor] = ParkedFork(run_number, control)
        self._poller.register(descriptor, select.POLLIN)

    def handle_hello(self, descriptor: int) -> None:
        """A fork says hello, once; anything else that it sends ends it."""
        fork = self.by_descriptor[descriptor]
        try:
            pid, memory = receive_hello(fork.control_sock)
        except BlockingIOError:
            return  # the descriptor belonged to another fork when it became readable
        if fork.pid or not self._is_new_child(pid):
            memory.close()
            self.drop_fork(fork, "the fork did not start")
            return
        fork.pid, fork.memory = pid, memory
        self.by_run[fork.run_number] = fork
        self._send_to_host(wire.ForkParked(fork.run_number))
        while len(self.by_run) > self.max_forks:
            self.drop_oldest()
        self.schedule_measurement(MEASURE_IDLE_S)

    def drop_fork(self, fork: ParkedFork, reason: str = "") -> None:
        """Kill a fork and tell the host; `reason` is for one that never said hello."""
        self._poller.unregister(fork.control_sock)
        del self.by_descriptor[fork.control_sock.fileno()]
        fork.control_sock.close()
        fork.memory.close()
        if fork.pid:
            processes.send_signal(fork.pid, signal.SIGKILL)
            self._measurements.pop(fork.pid, None)
        if self.by_run.get(fork.run_number) is fork:
            del self.by_run[fork.run_number]
            self._send_to_host(wire.ForkDropped(fork.run_number))
        elif not fork.pid:
            self._send_to_host(wire.ParkFailed(fork.run_number, reason))

    def drop_oldest(self) -> None:
        """Drop the oldest parked fork."""
        self.drop_fork(next(iter(self.by_run.values())))

    def forget_dead(self, pids: List[int]) -> None:
        """Drop the forks among processes that have died and have been collected."""
        for fork in [fork for fork in self.by_run.values() if fork.pid in pids]:
            fork.pid = 0  # another process may get this number
            self.drop_fork(fork)

    def close(self) -> None:
        """Close all descriptors; a fork ends when no other process holds its control socket."""
        self.worker_memory.close()
        for fork in self.by_descriptor.values():
            fork.control_sock.close()
            fork.memory.close()
        self.by_descriptor.clear()
        self.by_run.clear()

    def await_hellos(self) -> None:
        """Wait until each fork has said hello or has been dropped."""
        while True:
            starting = {fork.control_sock.fileno(): fork for fork in self._starting_forks()}
            if not starting:
                return
            deadline = min(fork.hello_deadline for fork in starting.values())
            left_s = max(deadline - time.perf_counter(), 0.0)
            for descriptor in select.select(list(starting), [], [], left_s)[0]:
                self.handle_hello(descriptor)
            self.drop_overdue()

    def drop_overdue(self) -> None:
        """Drop the forks that have not said hello in time."""
        now = time.perf_counter()
        for fork in self._starting_forks():
            if fork.hello_deadline <= now:
                self.drop_fork(fork, "the fork did not start in time")

    def list_deadlines(self) -> List[float]:
        """Return the times when `drop_overdue` or `measure_memory` must be called."""
        deadlines = [fork.hello_deadline for fork in self._starting_forks()]
        if self.measure_at:
            deadlines.append(self.measure_at)
        return deadlines

    # promotion ------------------------------------------------------------------------------------

    def order_promotion(
        self, run_number: int, generation: int, worker_end: socket.socket
    ) -> Optional[ParkedFork]:
        """Tell the fork of a run, if it exists, to fork itself as worker `generation`."""
        fork = self.by_run.get(run_number)
        if fork is None:
            return None
        rights = worker_end.fileno().to_bytes(INT_BYTES, sys.byteorder)
        order = generation.to_bytes(ORDER_BYTES, "big")
        processes.send_signal(fork.pid, signal.SIGCONT)  # user code may have stopped it
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            if fork.control_sock.sendmsg([order], ancillary) == len(order):
                return fork
        except OSError:
            pass  # it is gone, or it does not read
        self.drop_fork(fork)
        return None

    def await_promoted(self, fork: ParkedFork) -> Tuple[int, ProcessMemory]:
        """Wait for the worker that a fork was ordered to make; return its process, or 0."""
        pid, memory = await_hello(fork.control_sock)
        if self._is_new_child(pid):
            return pid, memory
        memory.close()
        self.drop_fork(fork)
        return 0, ProcessMemory()

    # memory ---------------------------------------------------------------------------------------

    def schedule_measurement(self, delay_s: float) -> None:
        """Measure memory after `delay_s`, unless that is scheduled already; not too often."""
        if not self.measure_at and self.by_run:
            self.measure_at = max(time.perf_counter() + delay_s, self._measure_not_before)

    def measure_memory(self) -> None:
        """Measure one more process; after the last one, drop a fork if they take too much."""
        started = time.perf_counter()
        memories = {fork.pid: fork.memory for fork in self.by_run.values()}
        memories[self.worker_pid] = self.worker_memory
        unmeasured = [pid for pid in memories if pid not in self._measurements]
        if unmeasured:
            self._measurements[unmeasured[0]] = memories[unmeasured[0]].measure()
        pause_s = (time.perf_counter() - started) * MEASURE_SHARE
        self._measure_not_before = max(self._measure_not_before, started) + pause_s
        if len(unmeasured) > 1:
            return
        proportional = sum(self._measurements[pid][0] for pid in memories)
        extra_bytes = proportional - self._measurements[self.worker_pid][1]
        self._measurements.clear()
        self.measure_at = 0.0
        if extra_bytes > self.max_bytes and self.by_run:
            self.drop_oldest()
            self._measure_not_before = 0.0
            self.schedule_measurement(0.0)
