"""The process that owns the link to the host, starts the worker and outlives it. It never runs user code.

One thread, one `poll` loop. It passes whole frames on without reading them, turns what the worker's pipes carry into
`Output`, notices the worker's death, and after each run says which workspace files changed and sends their content.
It holds the parked copies of the worker (`checkpoints`) and makes one of them the worker when the host wants it.
Rule: nothing that comes from the worker is trusted: only what it may say when it may say it is passed on, anything else
ends it.
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
from .checkpoints import MEASURE_BUSY_S, ParkedForks, close_descriptors, unpack_descriptors
from .output import OutputStreams
from .workspace import FileTransfer, Workspace, read_inputs_marker

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

IGNORED_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
)  # which code can have init pass on to us
INTERRUPT_REPEAT_S = 0.05  # between two signals for one interrupt
WAKEUP_READ_BYTES = 4096  # bytes of the wake-up pipe read at once; what is left wakes again
MAX_DRAIN_READS = 8  # reads that empty a dead worker's socket; others may go on writing into it
MAX_DEATH_WAIT_MS = 100  # milliseconds from a closed socket to a dead process, at most
MAX_REASON_CHARS = 200  # characters of why a run cannot be parked
FORK_BOMB_MIN_S = (
    0.05  # no bomb has filled a sandbox sooner, and looking costs more than most short runs
)
PARKING_TIMEOUT_S = 5.0  # for a worker to park its copy before another takes its place; as long as for a copy to come up
ANCILLARY_BYTES = socket.CMSG_SPACE(8)  # room for more than the one that comes with `Parked`
CALL_CODE = wire.TYPE_CODES[wire.Call]
DONE_CODE = wire.TYPE_CODES[wire.RunDone]
PARKING_CODES = (wire.TYPE_CODES[wire.ForkParked], wire.TYPE_CODES[wire.ParkFailed])
REPLY_CODE = wire.TYPE_CODES[wire.Reply]


class Supervisor:
    """Routes between the host (fds 0 and 1 of this process) and the worker."""

    def __init__(
        self, setup: wire.Setup, splitter: wire.FrameSplitter, host_in: int, host_out: int
    ) -> None:
        self.setup = setup
        self.host_in, self.host_out = host_in, host_out
        self.host_frames = splitter
        self.workspace = Workspace(os.getcwd(), setup.max_file_bytes)
        self.transfer = FileTransfer(self.workspace, self.send_to_host)
        self.output = OutputStreams(setup.max_output_bytes, self.send_to_host)
        self.poller = select.poll()
        self.run_number = 0
        self.run_started_at = 0.0
        self.next_interrupt_at = (
            0.0  # when the worker is signalled again; 0 while it is not to be interrupted
        )
        self.is_park_requested = False  # whether the run is to be parked
        self.parking_run = (
            0  # the run that is over and of which the worker is about to say whether it is parked
        )
        self.received_descriptors: List[int] = []  # that came with what the worker said
        self.worker_pid = 0
        self.generation = 0  # how many workers there were before this one
        self.worker_sock: socket.socket
        self.kill_reason = ""
        self.worker_frames = wire.FrameSplitter()
        self.worker_outgoing = bytearray()
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        for number in IGNORED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self.parked_forks = ParkedForks(
            setup.max_checkpoints, setup.max_checkpoint_bytes, self.poller, self.send_to_host
        )
        for fd in (host_in, self.wake_read, *self.output.by_descriptor):
            self.poller.register(fd, select.POLLIN)

    # the worker -----------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Fork an interpreter with an empty namespace."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        worker = processes.fork_with_retry(self.reap_children)
        if not worker:
            ours.close()  # else the worker would neither see our end nor be alone with its own
            self._run_worker(theirs)
        theirs.close()
        self.adopt_worker(worker, ours)

    def adopt_worker(self, worker: int, sock: socket.socket) -> None:
        """Have `worker`, at the other end of `sock`, be the live interpreter."""
        self.worker_pid = self.parked_forks.worker_pid = worker
        self.kill_reason = ""
        self.worker_sock = sock
        self.worker_sock.setblocking(False)
        self.worker_frames = wire.FrameSplitter()
        self.worker_outgoing.clear()
        self.poller.register(sock, select.POLLIN)

    def _run_worker(self, sock: socket.socket) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *IGNORED_SIGNALS):
                signal.signal(number, signal.SIG_DFL)
            for fd in (self.host_in, self.host_out, self.wake_read, self.wake_write):
                os.close(fd)
            for fd in self.output.by_descriptor:
                os.close(fd)
            self.parked_forks.close()
            parked_score = (
                processes.read_oom_score() + processes.MAX_OOM_SCORE
            ) // 2  # parked copies die after the worker
            processes.set_oom_score(processes.MAX_OOM_SCORE)
            os.setsid()
            processes.apply_resource_limits(self.setup.resource_limits)
            kept = socket.socket(fileno=processes.move_fd_high(sock.detach()))
            from .worker import Worker

            out, err = (pipe.write_end for pipe in self.output.pipes)
            Worker(kept, out, err, self.setup, self.generation, parked_score).serve()
        finally:  # only reached when the kernel itself is broken; its traceback is on the container's stderr
            os._exit(wire.BROKEN_EXIT_CODE)

    def replace_dead_worker(self) -> None:
        """The worker is dead: hear its last words, say so, clear up after it, start the next."""
        for _ in range(MAX_DRAIN_READS):
            if not self.read_worker():
                break
        reason = self.collect_worker()
        self.send_to_host(wire.WorkerRestarted(reason))
        if self.run_number:
            wall_ms = round((time.perf_counter() - self.run_started_at) * 1e3, 3)
            usage = {"wall_ms": wall_ms, "cpu_ms": 0.0, "peak_mb": 0.0}
            error = {"type": "InterpreterDied", "message": reason, "traceback": "", "line": None}
            self.output.send_available()
            self._send_run_done(
                wire.encode_message(wire.RunDone(self.run_number, "died", None, error, usage))
            )
        self.start_worker()

    def collect_worker(self) -> str:
        """Collect the worker, which is dead or dying, and what it has left behind; return how it ended, for people."""
        _, status = os.waitpid(self.worker_pid, 0)
        self.poller.unregister(self.worker_sock)
        self.worker_sock.close()
        self._kill_remaining_processes()
        self.generation += 1
        self.report_park_failure("the interpreter died")
        return processes.describe_exit(status, self.kill_reason, wire.BROKEN_EXIT_CODE)

    def reap_children(self) -> None:
        """Collect dead children; the worker is left to be buried."""
        self.parked_forks.forget_dead(processes.reap_children(self.worker_pid))

    def handle_worker_hangup(self) -> None:
        """The worker's socket is closed: it is dying (which the loop notices), or user code closed it."""
        self.poller.modify(self.worker_sock, 0)
        for _ in range(MAX_DEATH_WAIT_MS):
            if processes.is_dead(self.worker_pid):
                return
            time.sleep(0.001)
        self.kill_worker("code closed a descriptor that is the runtime's own")

    def kill_worker(self, reason: str) -> None:
        """Kill the interpreter; the loop notices its death."""
        self.kill_reason = reason
        os.kill(self.worker_pid, signal.SIGKILL)

    def _kill_remaining_processes(self) -> None:
        """Kill every process that the dead worker has left behind, but parked copies."""
        self.parked_forks.await_hellos()
        self.worker_pid = self.parked_forks.worker_pid = 0
        if self.setup.has_own_processes:
            processes.kill_others(self.parked_forks.pids())
        else:
            processes.kill_until_gone(
                processes.descendant_pids, self.reap_children, self.parked_forks.pids()
            )
        self.reap_children()

    # parked copies --------------------------------------------------------------------------------

    def report_park_failure(self, reason: str) -> None:
        """The worker will not say any more whether it has parked the last run."""
        if self.parking_run:
            self.send_to_host(wire.ParkFailed(self.parking_run, reason))
            self.parking_run = 0

    def handle_parking(self, type_code: int, frame: bytes) -> bool:
        """The worker says whether it has parked its last run; return whether it may."""
        try:
            message = wire.decode_message(type_code, frame[wire.HEADER_BYTES :])
        except wire.WireError:
            return False
        assert isinstance(message, (wire.ForkParked, wire.ParkFailed))
        if not self.parking_run or message.run_number != self.parking_run:
            return False
        if isinstance(message, wire.ParkFailed):
            self.report_park_failure(message.reason[:MAX_REASON_CHARS])
            return True
        if len(self.received_descriptors) != 1:
            return False
        self.parked_forks.add_fork(self.parking_run, self.received_descriptors.pop())
        self.parking_run = 0
        return True

    def promote_fork(self, run_number: int) -> None:
        """Make the parked copy of run `run` the worker, or an empty interpreter, and say what files have changed."""
        self.transfer.send_contents()
        due = time.perf_counter() + PARKING_TIMEOUT_S
        while (
            self.parking_run
            and time.perf_counter() < due
            and not processes.is_dead(self.worker_pid)
        ):
            select.select([self.worker_sock], [], [], INTERRUPT_REPEAT_S)
            self.read_worker()
        self.kill_worker("another takes its place")
        self.collect_worker()
        ok = run_number == 0 or self._wake_fork(run_number)
        if run_number == 0 or not ok:
            self.start_worker()
        changed, removed = self.workspace.find_changes()
        self.send_to_host(wire.Promoted(run_number, ok, changed, removed))

    def _wake_fork(self, run_number: int) -> bool:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        copy = self.parked_forks.order_promotion(run_number, self.generation, theirs)
        theirs.close()
        worker = self.parked_forks.await_promoted(copy) if copy is not None else 0
        if not worker:
            ours.close()
            return False
        self.adopt_worker(worker, ours)
        return True

    # frames ---------------------------------------------------------------------------------------

    def write_to_host(self, data: bytes) -> None:
        """Write all of `data` to the host, waiting for it if need be."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.host_out, view) :]

    def send_to_host(self, message: wire.Message) -> None:
        """Say something of our own to the host."""
        self.write_to_host(wire.encode_message(message))

    def read_worker(self) -> bool:
        """Pass on what the worker sends; return whether there was anything."""
        try:
            data, ancillary, _, _ = self.worker_sock.recvmsg(
                1 << 18, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return False
        self.received_descriptors = [
            fd
            for _, kind, content in ancillary
            if kind == socket.SCM_RIGHTS
            for fd in unpack_descriptors(content)
        ]
        if data:
            self.route_worker_data(data)
        else:
            self.handle_worker_hangup()
        if self.received_descriptors:  # unasked for
            close_descriptors(self.received_descriptors)
            self.expel_worker()
        return bool(data)

    def route_worker_data(self, data: bytes) -> None:
        """Forward the worker's frames that `data` completes."""
        try:
            frames = self.worker_frames.feed(data)
        except wire.WireError:
            frames = [(-1, b"")]
        for kind, frame in frames:
            if kind == DONE_CODE:
                self._finish_run(frame)
            elif kind in PARKING_CODES and self.handle_parking(kind, frame):
                pass
            elif kind != CALL_CODE:
                self.expel_worker()
                return
            elif self.run_number:
                self.output.send_available()
                self.write_to_host(frame)
            else:
                self.refuse_call(frame)

    def expel_worker(self) -> None:
        """Kill a worker that said what it may not say."""
        self.poller.modify(self.worker_sock, 0)
        self.kill_worker("code wrote to a descriptor that is the runtime's own")

    def refuse_call(self, frame: bytes) -> None:
        """Answer a call that a background thread makes between two runs."""
        try:
            call = wire.decode_message(frame[4], frame[wire.HEADER_BYTES :])
        except wire.WireError:
            return
        assert isinstance(call, wire.Call)
        self.worker_outgoing += wire.encode_message(
            wire.Reply(call.call_id, None, wire.no_active_run_error(call.target))
        )
        self.flush_to_worker()

    def _finish_run(self, done: bytes) -> None:
        """Send everything that belongs before a run's `Done`, and that; its files follow while the session is idle."""
        if not self.run_number:
            return  # forged
        if (
            self.setup.max_processes
            and time.perf_counter() - self.run_started_at >= FORK_BOMB_MIN_S
        ):
            processes.stop_fork_bomb(
                self.setup.max_processes,
                self.reap_children,
                {self.worker_pid} | self.parked_forks.pids(),
            )
        self.output.send_available()
        self.transfer.announce_changes(self.run_number)
        if self.is_park_requested:
            self.parking_run = self.run_number
        self._send_run_done(done)

    def _send_run_done(self, done: bytes) -> None:
        self.write_to_host(done)
        self.run_number = 0
        self.next_interrupt_at = 0.0
        self.output.finish_run()

    def read_host(self) -> None:
        """Act on what the host sends; at its end, so does everything here."""
        data = os.read(self.host_in, 1 << 18)
        if not data:
            self.shut_down()
        for kind, frame in self.host_frames.feed(data):
            self.handle_host_frame(kind, frame)

    def handle_host_frame(self, type_code: int, frame: bytes) -> None:
        """Handle one frame of the host's; replies pass unread."""
        if type_code == REPLY_CODE:
            self.worker_outgoing += frame
            self.flush_to_worker()
            return
        message = wire.decode_message(type_code, frame[wire.HEADER_BYTES :])
        if isinstance(message, wire.Execute):
            self.start_run(message, frame)
        elif isinstance(message, wire.Interrupt):
            if message.run_number == self.run_number:
                self.interrupt_worker()
        elif isinstance(message, wire.Kill):
            if message.run_number == self.run_number:
                self.kill_worker("it did not stop when it was interrupted")
        elif isinstance(message, (wire.WriteFile, wire.RemoveFile)):
            problem = self.transfer.apply_message(message)
            if problem:
                self.output.add_warning(problem)
        elif isinstance(message, wire.Promote):
            self.promote_fork(message.run_number)

    def interrupt_worker(self) -> None:
        """Signal the worker, and again until its run is over; it is struck once.

        One signal can get lost: before the code begins, or in C code that is just about to wait.
        """
        os.kill(self.worker_pid, signal.SIGINT)
        self.next_interrupt_at = time.perf_counter() + INTERRUPT_REPEAT_S

    def start_run(self, message: wire.Execute, frame: bytes) -> None:
        """Start a run, after what is left to do for the one before."""
        self.transfer.send_contents()
        self.run_number = message.run_number
        self.is_park_requested = message.park and self.setup.max_checkpoints > 0
        self.run_started_at = time.perf_counter()
        self.output.start_run(message.run_number)
        self.worker_outgoing += frame
        self.flush_to_worker()
        self.parked_forks.schedule_measurement(MEASURE_BUSY_S)

    def flush_to_worker(self) -> None:
        """Send what is queued for the worker as far as it takes it."""
        try:
            del self.worker_outgoing[: self.worker_sock.send(self.worker_outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self.worker_outgoing.clear()  # it is dead, and will be buried
            return
        self.poller.modify(
            self.worker_sock,
            select.POLLIN | select.POLLOUT if self.worker_outgoing else select.POLLIN,
        )

    # the loop -------------------------------------------------------------------------------------

    def serve(self, frames: List[Tuple[int, bytes]]) -> None:
        """Handle `frames`, which came with the first message, then route until the host closes the link."""
        self.start_worker()
        self.send_to_host(
            wire.Ready(
                wire.PROTOCOL_VERSION, sys.version.split()[0], sys.platform, read_inputs_marker()
            )
        )
        if self.setup.has_own_processes and self.setup.max_checkpoints:
            processes.become_subreaper()  # only now: it loads a library, and the host waits no more
        for kind, frame in frames:
            self.handle_host_frame(kind, frame)
        while True:
            for fd, event in self.poller.poll(self._poll_timeout_ms()):
                if fd == self.host_in:
                    self.read_host()
                elif fd in self.output.by_descriptor:
                    self.output.handle_readable(fd)
                elif fd == self.wake_read:
                    self.handle_child_exit()
                elif fd in self.parked_forks.by_descriptor:
                    self.parked_forks.handle_hello(fd)
                elif fd == self.worker_sock.fileno():
                    if event & select.POLLOUT:
                        self.flush_to_worker()
                    if event & ~select.POLLOUT:
                        self.read_worker()
            self.parked_forks.drop_overdue()
            if self.parked_forks.measure_at and time.perf_counter() >= self.parked_forks.measure_at:
                self.parked_forks.measure_memory()
                if self.run_number:
                    self.parked_forks.schedule_measurement(MEASURE_BUSY_S)
            if self.output.flush_at and time.perf_counter() >= self.output.flush_at:
                self.output.send_buffered()
            if self.next_interrupt_at and time.perf_counter() >= self.next_interrupt_at:
                self.interrupt_worker()
            if not self.run_number:
                self.transfer.send_contents()

    def _poll_timeout_ms(self) -> Optional[float]:
        due = [
            at
            for at in (
                self.output.flush_at,
                self.next_interrupt_at,
                *self.parked_forks.list_deadlines(),
            )
            if at
        ]
        return max((min(due) - time.perf_counter()) * 1e3, 0.0) if due else None

    def handle_child_exit(self) -> None:
        """A child has died: the worker, or an orphan that was handed to us."""
        try:
            os.read(self.wake_read, WAKEUP_READ_BYTES)
        except BlockingIOError:
            pass
        if processes.is_dead(self.worker_pid):
            self.replace_dead_worker()
        else:
            self.reap_children()

    def shut_down(self) -> None:
        """The host is gone: so is everything here."""
        self.kill_worker("the host is gone")
        os.waitpid(self.worker_pid, 0)
        self.parked_forks.close()
        self._kill_remaining_processes()
        os._exit(0)


def main() -> None:
    """Take over this process's stdin and stdout as the link, read `Setup`, and serve."""
    host_in, host_out = processes.move_fd_high(os.dup(0)), processes.move_fd_high(os.dup(1))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what is printed here by mistake must not reach the link
    os.close(null)
    splitter = wire.FrameSplitter()
    frames: List[Tuple[int, bytes]] = []
    while not frames:
        data = os.read(host_in, wire.CHUNK_BYTES)
        if not data:
            os._exit(0)
        frames = splitter.feed(data)
    kind, frame = frames[0]
    setup = wire.decode_message(kind, frame[wire.HEADER_BYTES :])
    if not isinstance(setup, wire.Setup) or setup.version != wire.PROTOCOL_VERSION:
        sys.exit(
            f"the host speaks version {getattr(setup, 'version', '?')} of the wire, this kernel {wire.PROTOCOL_VERSION}"
        )
    if not setup.has_own_processes:
        processes.become_subreaper()
    Supervisor(setup, splitter, host_in, host_out).serve(frames[1:])
