"""The process that owns the link to the host and outlives the worker. It never runs user code.

It is the init of its container: no signal from in there stops or ends it. It starts the worker,
whose fds 1 and 2 are pipes that the supervisor reads (`output`), so that output of child processes
arrives like any other: in order, bounded, never lost. The supervisor forwards whole frames without
reading them, notices the worker's death, starts the next one, and reports after each run which
workspace files changed (`workspace`); no shared file system is needed. It keeps the parked forks of
the worker and promotes one of them when the host asks for it (`checkpoints`).

Rule 1: one thread, one `poll` loop.
Rule 2: nothing that the worker sends is trusted. Only what it may send at this moment is forwarded;
anything else ends the worker. What it claims about itself decides nothing on the host.
Rule 3: each message to and from the host passes through the `LinkState`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

from ...protocol import wire
from ...protocol.link_states import SANDBOX, LinkState
from . import processes, system_calls
from .checkpoints import MEASURE_BUSY_S, ParkedForks, ParkSchedule
from .forks import say_hello
from .hello import ProcessMemory, await_hello, close_descriptors
from .output import OutputStreams
from .process_guard import ProcessGuard, guard_worker
from .web_proxy_process import WebProxyProcess, is_reply_to_proxy
from .worker_process import WorkerProcess
from .workspace import FileTransfer, Workspace, read_inputs_marker

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import List, NoReturn, Optional, Set, Tuple, Type

# Anybody outside may send these, and user code where the supervisor is not init.
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
INIT_PID = 1
INTERRUPT_REPEAT_S = 0.05
WAKEUP_READ_BYTES = 4096  # what is left in the wake-up pipe wakes the loop again
MAX_DRAIN_READS = 8  # of a dead worker's socket; its children may write into it for ever
MAX_DEATH_WAIT_MS = 100  # from a closed socket to a dead process
MAX_REASON_CHARS = 200
FORK_BOMB_MIN_S = 0.05  # no fork bomb fills a sandbox sooner, and looking for one takes time
PARKING_TIMEOUT_S = 5.0  # for a worker to fork before it is replaced
PARKING_POLL_S = 0.05
HOLD_S = 0.01  # for a frame that can wait for the next one
MAX_QUEUED_BYTES = 64 * 1024 * 1024  # for the worker; code that reads its answers queues less
CALL_CODE = wire.TYPE_CODES[wire.Call]
DONE_CODE = wire.TYPE_CODES[wire.RunDone]
HIT_CODE = wire.TYPE_CODES[wire.ProbeHit]
PARKING_CODES = (wire.TYPE_CODES[wire.ForkParked], wire.TYPE_CODES[wire.ParkFailed])
REPLY_CODE = wire.TYPE_CODES[wire.Reply]
CERTIFICATE_CODE = wire.TYPE_CODES[wire.Certificate]


class HostConnection:
    """The supervisor's end of the link.

    It receives while it waits to send: the host reads no more calls while the replies to earlier
    ones have not been read.
    """

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end = read_end
        self.write_end = write_end
        self.protocol = LinkState(SANDBOX)
        self.flush_at = 0.0  # when held frames are due; 0: none are held
        self._held = b""
        self._splitter = wire.FrameSplitter()
        self._received: List[Tuple[int, bytes]] = []  # and not taken yet
        self._has_ended = False
        os.set_blocking(write_end, False)

    def move_to(self, path: str) -> None:
        """Continue on a socket of the host's, if this process can connect to it."""
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(path)
            except OSError:
                return
            for end in (self.read_end, self.write_end):
                os.dup2(sock.fileno(), end, inheritable=False)
        os.set_blocking(self.write_end, False)

    def receive(self) -> None:
        """Receive the next frames; raises EOFError at the end of the link."""
        if not self._receive_available():
            raise EOFError

    def receive_first(self) -> Optional[Tuple[int, bytes]]:
        """Receive frames and take the first one, if there is any; raises EOFError."""
        self.receive()
        return self._received.pop(0) if self._received else None

    def take_frames(self) -> List[Tuple[int, bytes]]:
        """Return (type code, frame) of each frame that was received since the last call."""
        frames, self._received = self._received, []
        return frames

    def send(self, message: wire.Message) -> None:
        """Send a message of the supervisor's own."""
        self.protocol.send(message)
        self._write(wire.encode_message(message))

    def send_soon(self, message: wire.Message) -> None:
        """Send a message along with the next one, or after HOLD_S, to wake the host only once."""
        self.protocol.send(message)
        self._held += wire.encode_message(message)
        self.flush_at = self.flush_at or time.perf_counter() + HOLD_S

    def flush(self) -> None:
        """Send what is held."""
        self._write(b"")

    def forward(self, message_type: Type[wire.Message], frame: bytes) -> None:
        """Send a frame of the worker's, unread."""
        self.protocol.send_unread(message_type)
        self._write(frame)

    def _write(self, data: bytes) -> None:
        view = memoryview(self._held + data)
        self._held, self.flush_at = b"", 0.0
        while view:
            try:
                view = view[os.write(self.write_end, view) :]
            except BlockingIOError:
                self._wait_until_writable()

    def _wait_until_writable(self) -> None:
        watched = [] if self._has_ended else [self.read_end]
        if select.select(watched, [self.write_end], [])[0]:
            self._receive_available()

    def _receive_available(self) -> bool:
        """Receive frames; return whether the link still exists."""
        try:
            data = os.read(self.read_end, wire.CHUNK_BYTES)
        except BlockingIOError:  # both ends may be one socket
            return True
        self._has_ended = not data
        self._received += self._splitter.feed(data)
        return bool(data)


class ActiveRun:
    """The run that the worker executes, as the supervisor sees it."""

    def __init__(self, message: wire.Execute) -> None:
        self.number = message.run_number
        self.is_park_requested = message.park
        self.is_probed = (message.inspection or {}).get("kind") == "probe"
        self.started_at = time.perf_counter()
        self.next_interrupt_at = 0.0  # 0: it is not to be interrupted

    def measure_duration(self) -> float:
        """Return for how many seconds it has been executed."""
        return time.perf_counter() - self.started_at


class Supervisor:
    """Routes between the host and the worker."""

    def __init__(self, setup: wire.Setup, host: HostConnection) -> None:
        self.setup = setup
        self.host = host
        self.workspace = Workspace(os.getcwd(), setup.max_file_bytes)
        self.transfer = FileTransfer(self.workspace, host.send)
        self.output = OutputStreams(setup.max_output_bytes, host.send)
        self.poller = select.poll()
        self.parked_forks = ParkedForks(
            setup.max_checkpoints, setup.max_checkpoint_bytes, self.poller, host.send
        )
        self.guard = ProcessGuard(self.list_protected, self.poller)
        self.schedule = ParkSchedule()
        self.web_proxy = WebProxyProcess(setup.web, self.poller) if setup.web else None
        self.worker: WorkerProcess
        self.generation = 0  # the number of workers before this one
        self.active_run: Optional[ActiveRun] = None
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        for number in IGNORED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for fd in (host.read_end, self.wake_read, *self.output.by_descriptor):
            self.poller.register(fd, select.POLLIN)

    # the worker -----------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Fork an interpreter with an empty namespace."""
        ours, theirs = connect_worker()
        pid = processes.fork_with_retry(self.reap_children)
        if not pid:
            ours.close()  # else the worker would never see that the supervisor is gone
            self._run_worker(theirs)
        theirs.close()
        _, memory = await_hello(ours)
        if self.setup.has_own_processes:
            self.guard.receive_listener(ours)
        self.adopt_worker(pid, ours, memory)

    def list_protected(self) -> Set[int]:
        """Return the processes that user code may not change; -1, all, has the number of init."""
        return {INIT_PID, os.getpid(), *self.list_spared()}

    def list_spared(self) -> Set[int]:
        """Return the processes that outlive a worker; user code may not change them."""
        spared = self.parked_forks.pids()
        if self.web_proxy is not None and self.web_proxy.pid:
            spared.add(self.web_proxy.pid)
        return spared

    def adopt_worker(self, pid: int, sock: socket.socket, memory: ProcessMemory) -> None:
        """Make the process at the other end of `sock` the live interpreter."""
        self.worker = WorkerProcess(pid, sock, self.poller)
        self.parked_forks.set_worker(pid, memory)

    def _run_worker(self, sock: socket.socket) -> None:
        """Become the worker, in a child process; never returns."""
        try:
            say_hello(sock)
            if self.setup.has_own_processes:
                guard_worker(sock)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *IGNORED_SIGNALS):
                signal.signal(number, signal.SIG_DFL)
            self._close_descriptors()
            if self.web_proxy is not None:
                for fd in self.web_proxy.descriptors:
                    os.close(fd)
                os.environ.update(self.web_proxy.environment)
            # The OOM killer takes the worker first, then parked forks, then the supervisor.
            parked_score = (processes.read_oom_score() + processes.MAX_OOM_SCORE) // 2
            processes.set_oom_score(processes.MAX_OOM_SCORE)
            os.setsid()
            processes.apply_resource_limits(self.setup.resource_limits)
            kept = socket.socket(fileno=processes.move_fd_high(sock.detach()))
            from .worker import Worker

            out, err = (pipe.write_end for pipe in self.output.pipes)
            Worker(kept, out, err, self.setup, self.generation, parked_score).serve()
        finally:  # reached only by a bug; its traceback goes to the container's stderr
            os._exit(wire.BROKEN_EXIT_CODE)

    def _close_descriptors(self) -> None:
        """Close what belongs to the supervisor alone, in a child process."""
        for fd in (self.host.read_end, self.host.write_end, self.wake_read, self.wake_write):
            os.close(fd)
        for fd in self.output.by_descriptor:
            os.close(fd)
        self.parked_forks.close()
        self.guard.close()

    def replace_dead_worker(self) -> None:
        """Forward the last frames of the dead worker, report its death, and start the next one."""
        for _ in range(MAX_DRAIN_READS):
            if not self.read_worker():
                break
        reason = self.collect_worker()
        self.host.send(wire.WorkerRestarted(reason))
        if self.active_run is not None:
            self._report_dead_run(self.active_run, reason)
        self.start_worker()

    def _report_dead_run(self, run: ActiveRun, reason: str) -> None:
        wall_ms = round(run.measure_duration() * 1e3, 3)
        usage = {"wall_ms": wall_ms, "cpu_ms": 0.0, "peak_mb": 0.0}
        error = {"type": "InterpreterDied", "message": reason, "traceback": "", "line": None}
        self.output.send_available(is_last=True)
        self.host.send(wire.RunDone(run.number, "died", None, error, usage))
        self._end_run()
        if run.is_park_requested:
            self.host.send(wire.ParkFailed(run.number, "the interpreter died"))

    def collect_worker(self) -> str:
        """Collect the dead or dying worker and all that it left behind; return how it ended."""
        status = self.worker.collect()
        self._kill_remaining_processes()
        self.generation += 1
        for run_number in self.schedule.cancel():
            self.host.send(wire.ParkFailed(run_number, "the interpreter died"))
        return processes.describe_interpreter_exit(
            status, self.worker.kill_reason, wire.BROKEN_EXIT_CODE
        )

    def reap_children(self) -> None:
        """Collect dead children except the worker, which `replace_dead_worker` collects."""
        reaped = processes.reap_children(self.parked_forks.worker_pid)
        self.parked_forks.forget_dead(reaped)
        if self.web_proxy is not None and self.web_proxy.pid in reaped:
            self.web_proxy.forget_process()

    def handle_worker_hangup(self) -> None:
        """The worker's socket is closed: either it is dying, or user code closed the socket."""
        self.worker.ignore()
        for _ in range(MAX_DEATH_WAIT_MS):
            if processes.is_dead(self.worker.pid):
                return  # the poll loop notices
            time.sleep(0.001)
        self.worker.kill("code closed a descriptor that belongs to the runtime")

    def _kill_remaining_processes(self) -> None:
        """Kill every process that the dead worker left behind, except parked forks."""
        self.parked_forks.await_hellos()
        self.parked_forks.set_worker(0, ProcessMemory())
        spared = self.list_spared()
        if self.setup.has_own_processes:
            processes.kill_others(spared)
        else:
            processes.kill_until_gone(processes.descendant_pids, self.reap_children, spared)
        self.reap_children()

    # frames of the worker -------------------------------------------------------------------------

    def read_worker(self) -> bool:
        """Route what the worker sends; return whether there was anything."""
        try:
            data, descriptors = self.worker.receive()
        except OSError:
            return False
        if data:
            self._route_worker_data(data, descriptors)
        elif data is not None:
            self.handle_worker_hangup()
        if descriptors:  # left over, so they were not asked for
            close_descriptors(descriptors)
            self.expel_worker()
        return data != b""

    def _route_worker_data(self, data: bytes, descriptors: List[int]) -> None:
        try:
            frames = self.worker.frames.feed(data)
        except wire.WireError:
            self.expel_worker()
            return
        for type_code, frame in frames:
            if type_code == CALL_CODE:
                self._handle_call(frame)
            elif type_code == DONE_CODE:
                self._finish_run(frame)
            elif type_code == HIT_CODE:
                self._handle_probe_hit(frame)
            elif type_code not in PARKING_CODES or not self._handle_parking(frame, descriptors):
                self.expel_worker()
                return

    def expel_worker(self) -> None:
        """Kill a worker that sent what it must not send."""
        self.worker.ignore()
        self.worker.kill("code wrote to a descriptor that belongs to the runtime")

    def _handle_call(self, frame: bytes) -> None:
        if self.active_run is not None:
            self.output.send_available()
            self.host.forward(wire.Call, frame)
            return
        reply = refuse_call(frame)  # a background thread calls between two runs
        if reply:
            self.worker.send(reply)

    # the web proxy --------------------------------------------------------------------------------

    def start_web_proxy(self) -> None:
        """Start the web proxy: code has connected to it."""
        assert self.web_proxy is not None
        signals = (signal.SIGCHLD, *IGNORED_SIGNALS)

        def release() -> None:
            signal.set_wakeup_fd(-1)
            for number in signals:
                signal.signal(number, signal.SIG_IGN)
            self._close_descriptors()
            self.worker.sock.close()

        self.web_proxy.start(connect_worker, release, self.reap_children)

    def _handle_proxy_event(self, proxy: WebProxyProcess, fd: int, events: int) -> bool:
        """Handle an event if it is one of the proxy's; return whether it was."""
        if fd == proxy.listener.fileno():
            self.start_web_proxy()
        elif not proxy.owns_descriptor(fd):
            return False
        else:
            if events & select.POLLOUT:
                proxy.flush()
            if events & ~select.POLLOUT:
                self._route_proxy_frames(proxy)
        return True

    def _route_proxy_frames(self, proxy: WebProxyProcess) -> None:
        for type_code, frame in proxy.read_frames():
            if self.active_run is not None:
                self.host.forward(wire.MESSAGE_TYPES[type_code], frame)
            elif type_code == CALL_CODE:
                proxy.send(refuse_call(frame))
            else:
                request = wire.decode_message(type_code, frame[wire.HEADER_BYTES :])
                assert isinstance(request, wire.CertificateRequest)
                proxy.send(wire.encode_message(wire.Certificate(request.host, "")))

    def _handle_probe_hit(self, frame: bytes) -> None:
        run = self.active_run
        if run is not None and run.is_probed:  # else a background thread is late
            self.output.send_available()
            self.host.forward(wire.ProbeHit, frame)

    def _finish_run(self, done: bytes) -> None:
        """Send `RunDone` and what belongs before it; file content follows while idle."""
        run = self.active_run
        if run is None:
            return  # forged
        duration_s = run.measure_duration()
        if self.setup.max_processes and duration_s >= FORK_BOMB_MIN_S:
            spared = {self.worker.pid} | self.list_spared()
            processes.stop_fork_bomb(self.setup.max_processes, self.reap_children, spared)
        self.output.send_available(is_last=True)
        self.transfer.announce_changes(run.number)
        self.host.forward(wire.RunDone, done)
        if run.is_park_requested:
            self._schedule_parking(run, duration_s)
        self._end_run()

    def _end_run(self) -> None:
        self.active_run = None
        self.output.finish_run()

    # parking --------------------------------------------------------------------------------------

    def _schedule_parking(self, run: ActiveRun, duration_s: float) -> None:
        was_interrupted = run.next_interrupt_at > 0.0
        if self.schedule.finish_run(run.number, duration_s, was_interrupted=was_interrupted):
            self.order_parking()

    def order_parking(self) -> None:
        """Tell the worker to park the state that is due."""
        run_number = self.schedule.order()
        if run_number:
            self.worker.send(wire.encode_message(wire.Park(run_number)))

    def _handle_parking(self, frame: bytes, descriptors: List[int]) -> bool:
        """Take the worker's answer to `Park`; return whether it may send it."""
        try:
            message = wire.decode_message(frame[4], frame[wire.HEADER_BYTES :])
        except wire.WireError:
            return False
        assert isinstance(message, (wire.ForkParked, wire.ParkFailed))
        run_number = message.run_number
        if not run_number or run_number != self.schedule.ordered_run:
            return False
        if isinstance(message, wire.ParkFailed):
            self.host.send(wire.ParkFailed(run_number, message.reason[:MAX_REASON_CHARS]))
        elif len(descriptors) == 1:
            self.parked_forks.add_fork(run_number, descriptors.pop())
        else:
            return False
        self.schedule.finish_parking()
        return True

    def promote_fork(self, run_number: int) -> None:
        """Replace the worker by the parked fork of a run, or by an empty interpreter (0)."""
        self.order_parking()
        deadline = time.perf_counter() + PARKING_TIMEOUT_S
        while self.schedule.ordered_run and time.perf_counter() < deadline:
            if processes.is_dead(self.worker.pid):
                break
            select.select([self.worker.sock], [], [], PARKING_POLL_S)
            self.read_worker()
        self.worker.kill("another one replaces it")
        self.collect_worker()
        ok = run_number == 0 or self._wake_fork(run_number)
        if run_number == 0 or not ok:
            self.start_worker()
        changed, removed = self.workspace.find_changes()
        self.host.send(wire.Promoted(run_number, ok, changed, removed))

    def _wake_fork(self, run_number: int) -> bool:
        ours, theirs = connect_worker()
        fork = self.parked_forks.order_promotion(run_number, self.generation, theirs)
        theirs.close()
        pid, memory = 0, ProcessMemory()
        if fork is not None:
            pid, memory = self.parked_forks.await_promoted(fork)
        if not pid:
            ours.close()
            return False
        self.adopt_worker(pid, ours, memory)
        return True

    # messages of the host -------------------------------------------------------------------------

    def read_host(self) -> None:
        """Handle what the host sends; when it closes the link, everything here ends."""
        try:
            self.host.receive()
        except EOFError:
            self.shut_down()
        self.handle_host_frames()

    def handle_host_frames(self) -> None:
        """Handle all frames of the host, those included that arrive meanwhile."""
        while frames := self.host.take_frames():
            for type_code, frame in frames:
                self.handle_host_frame(type_code, frame)

    def handle_host_frame(self, type_code: int, frame: bytes) -> None:
        """Handle one frame of the host; replies are forwarded unread."""
        if type_code == REPLY_CODE:
            self.host.protocol.receive_unread(wire.Reply)
            if self.web_proxy is not None and is_reply_to_proxy(frame):
                self.web_proxy.send(frame)
                return
            self.worker.send(frame)
            if self.worker.queued_bytes > MAX_QUEUED_BYTES:
                self.worker.kill("its code did not read the answers to its calls")
            return
        if type_code == CERTIFICATE_CODE and self.web_proxy is not None:
            self.host.protocol.receive_unread(wire.Certificate)
            self.web_proxy.send(frame)
            return
        message = wire.decode_message(type_code, frame[wire.HEADER_BYTES :])
        if isinstance(message, (wire.Execute, wire.Promote)):
            self.transfer.send_contents()
        self.host.protocol.receive(message)
        if isinstance(message, wire.Execute):
            self.start_run(message, frame)
        elif isinstance(message, wire.Promote):
            self.promote_fork(message.run_number)
        elif isinstance(message, (wire.WriteFile, wire.RemoveFile)):
            problem = self.transfer.apply_message(message)
            if problem:
                self.output.add_warning(problem)
        elif isinstance(message, (wire.Interrupt, wire.Kill)):
            run = self.active_run
            if run is None or message.run_number != run.number:
                return  # it has ended meanwhile
            if isinstance(message, wire.Interrupt):
                self.interrupt_worker(run)
            else:
                self.worker.kill("it did not stop when it was interrupted")

    def start_run(self, message: wire.Execute, frame: bytes) -> None:
        """Hand a run to the worker."""
        if message.keep_previous or self.schedule.is_due():
            self.order_parking()  # the worker does that first
        skipped_run = self.schedule.start_run()
        if skipped_run:
            self.host.send_soon(wire.ParkFailed(skipped_run, "the next run followed at once"))
        self.active_run = ActiveRun(message)
        self.output.start_run(message.run_number)
        self.worker.send(frame)
        self.parked_forks.schedule_measurement(MEASURE_BUSY_S)

    def interrupt_worker(self, run: ActiveRun) -> None:
        """Signal the worker, and again until `run` ends; its code is interrupted once.

        One signal can get lost: before the code starts, or in C code that is about to wait.
        """
        self.worker.interrupt()
        run.next_interrupt_at = time.perf_counter() + INTERRUPT_REPEAT_S

    # the loop -------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Route until the link closes."""
        self.start_worker()
        python_version = sys.version.split()[0]
        ready = wire.Ready(
            wire.PROTOCOL_VERSION, python_version, sys.platform, read_inputs_marker()
        )
        self.host.send(ready)
        while True:
            self.handle_host_frames()  # those that arrived with `Setup`, or while this end sent
            for fd, events in self.poller.poll(self._poll_timeout_ms()):
                self._handle_event(fd, events)
            self._run_timers()
            if self.active_run is None:
                self.transfer.send_contents()

    def _handle_event(self, fd: int, events: int) -> None:
        if fd == self.host.read_end:
            self.read_host()
        elif fd in self.output.by_descriptor:
            self.output.handle_readable(fd)
        elif fd == self.wake_read:
            self.handle_child_exit()
        elif fd in self.guard.listeners:
            self.guard.handle_event(fd, events)
        elif self.web_proxy and self._handle_proxy_event(self.web_proxy, fd, events):
            pass
        elif fd in self.parked_forks.by_descriptor:
            self.parked_forks.handle_hello(fd)
        elif fd == self.worker.sock.fileno():
            if events & select.POLLOUT:
                self.worker.flush()
            if events & ~select.POLLOUT:
                self.read_worker()

    def _run_timers(self) -> None:
        now = time.perf_counter()
        self.parked_forks.drop_overdue()
        if self.parked_forks.measure_at and now >= self.parked_forks.measure_at:
            self.parked_forks.measure_memory()
            if self.active_run is not None:
                self.parked_forks.schedule_measurement(MEASURE_BUSY_S)
        if self.output.flush_at and now >= self.output.flush_at:
            self.output.send_buffered()
        run = self.active_run
        if run is not None and run.next_interrupt_at and now >= run.next_interrupt_at:
            self.interrupt_worker(run)
        if self.schedule.is_due():
            self.order_parking()
        if self.host.flush_at and now >= self.host.flush_at:
            self.host.flush()

    def _poll_timeout_ms(self) -> Optional[float]:
        timers = (
            self.output.flush_at,
            self.host.flush_at,
            self.schedule.due_at,
            0.0 if self.active_run is None else self.active_run.next_interrupt_at,
        )
        deadlines = [at for at in timers if at] + self.parked_forks.list_deadlines()
        if not deadlines:
            return None
        return max((min(deadlines) - time.perf_counter()) * 1e3, 0.0)

    def handle_child_exit(self) -> None:
        """A child has died: the worker, a parked fork, or an orphan that was adopted."""
        try:
            os.read(self.wake_read, WAKEUP_READ_BYTES)
        except BlockingIOError:
            pass
        if processes.is_dead(self.worker.pid):
            self.replace_dead_worker()
        else:
            self.reap_children()

    def shut_down(self) -> NoReturn:
        """End everything, because the host is gone."""
        self.worker.kill("the host is gone")
        os.waitpid(self.worker.pid, 0)
        self.parked_forks.close()
        if self.web_proxy is not None:
            self.web_proxy.remove_files()
            self.web_proxy = None
        self._kill_remaining_processes()
        os._exit(0)


def refuse_call(frame: bytes) -> bytes:
    """Return the frame that answers a call while no run is active; b"" if it is not a call."""
    try:
        call = wire.decode_message(CALL_CODE, frame[wire.HEADER_BYTES :])
    except wire.WireError:
        return b""
    assert isinstance(call, wire.Call)
    error = wire.no_active_run_error(call.target)
    return wire.encode_message(wire.Reply(call.call_id, None, error))


def connect_worker() -> Tuple[socket.socket, socket.socket]:
    """Return the supervisor's and the worker's end of a new socket; the first learns who writes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs


def main() -> None:
    """Take over this process's stdin and stdout as the link, read `Setup`, and serve."""
    host = HostConnection(processes.move_fd_high(os.dup(0)), processes.move_fd_high(os.dup(1)))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what is printed here by mistake must not reach the link
    os.close(null)
    setup_frame: Optional[Tuple[int, bytes]] = None
    while setup_frame is None:
        try:
            setup_frame = host.receive_first()
        except EOFError:
            os._exit(0)
    type_code, frame = setup_frame
    setup = wire.decode_message(type_code, frame[wire.HEADER_BYTES :])
    version = getattr(setup, "version", "?")
    if not isinstance(setup, wire.Setup) or version != wire.PROTOCOL_VERSION:
        sys.exit(
            f"The host speaks protocol version {version}, this kernel {wire.PROTOCOL_VERSION}."
        )
    host.protocol.receive(setup)
    host.move_to(f"{wire.INPUTS_FOLDER}/{wire.LINK_FILE}")
    if os.getpid() != INIT_PID:
        system_calls.become_subreaper()
    if setup.has_own_processes:
        system_calls.close_memory()
    Supervisor(setup, host).serve()
