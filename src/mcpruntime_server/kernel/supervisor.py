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

from . import processes, wire
from .checkpoints import BUSY_S, Checkpoints, close_all, descriptors_in
from .output import Outputs
from .workspace import Transfer, Workspace, mark_of_inputs

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # which code can have init pass on to us
AGAIN_S = 0.05  # between two signals for one interrupt
WAKES = 4096  # bytes of the wake-up pipe read at once; what is left wakes again
LAST_WORDS = 8  # reads that empty a dead worker's socket; others may go on writing into it
DEATH_ROUNDS = 100  # milliseconds from a closed socket to a dead process, at most
REASON = 200  # characters of why a run cannot be parked
BOMB_S = 0.05  # no bomb has filled a sandbox sooner, and looking costs more than most short runs
PARKING_S = 5.0  # for a worker to park its copy before another takes its place; as long as for a copy to come up
DESCRIPTORS = socket.CMSG_SPACE(8)  # room for more than the one that comes with `Parked`
CALL = wire.KIND_OF[wire.Call]
DONE = wire.KIND_OF[wire.Done]
PARKING = (wire.KIND_OF[wire.Parked], wire.KIND_OF[wire.Unparkable])
REPLY = wire.KIND_OF[wire.Reply]


class Supervisor:
    """Routes between the host (fds 0 and 1 of this process) and the worker."""

    def __init__(self, setup: wire.Setup, splitter: wire.Splitter, host_in: int, host_out: int) -> None:
        self.setup = setup
        self.host_in, self.host_out = host_in, host_out
        self.splitter = splitter
        self.workspace = Workspace(os.getcwd(), setup.workspace_limit)
        self.files = Transfer(self.workspace, self.tell)
        self.output = Outputs(setup.output_limit, self.tell)
        self.poll = select.poll()
        self.run = 0
        self.run_started = 0.0
        self.interrupt_at = 0.0  # when the worker is signalled again; 0 while it is not to be interrupted
        self.parks = False  # whether the run is to be parked
        self.parking = 0  # the run that is over and of which the worker is about to say whether it is parked
        self.descriptors: List[int] = []  # that came with what the worker said
        self.worker = 0
        self.generation = 0  # how many workers there were before this one
        self.sock: socket.socket
        self.kill_reason = ""
        self.from_worker = wire.Splitter()
        self.to_worker = bytearray()
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        self.copies = Checkpoints(setup.checkpoints, setup.checkpoint_bytes, self.poll, self.tell)
        for fd in (host_in, self.wake_read, *self.output.by_descriptor):
            self.poll.register(fd, select.POLLIN)

    # the worker -----------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Fork an interpreter with an empty namespace."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        worker = processes.fork(self.reap)
        if not worker:
            ours.close()  # else the worker would neither see our end nor be alone with its own
            self._become_worker(theirs)
        theirs.close()
        self.take_worker(worker, ours)

    def take_worker(self, worker: int, sock: socket.socket) -> None:
        """Have `worker`, at the other end of `sock`, be the live interpreter."""
        self.worker = self.copies.worker = worker
        self.kill_reason = ""
        self.sock = sock
        self.sock.setblocking(False)
        self.from_worker = wire.Splitter()
        self.to_worker.clear()
        self.poll.register(sock, select.POLLIN)

    def _become_worker(self, sock: socket.socket) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *IGNORED):
                signal.signal(number, signal.SIG_DFL)
            for fd in (self.host_in, self.host_out, self.wake_read, self.wake_write):
                os.close(fd)
            for fd in self.output.by_descriptor:
                os.close(fd)
            self.copies.close()
            parked_score = (processes.oom_score() + processes.FIRST_TO_DIE) // 2  # parked copies die after the worker
            processes.set_oom_score(processes.FIRST_TO_DIE)
            os.setsid()
            processes.limit(self.setup.limits)
            kept = socket.socket(fileno=processes.high(sock.detach()))
            from .kernel import Worker

            out, err = (pipe.write_end for pipe in self.output.pipes)
            Worker(kept, out, err, self.setup, self.generation, parked_score).serve()
        finally:  # only reached when the kernel itself is broken; its traceback is on the container's stderr
            os._exit(wire.BROKEN)

    def bury_worker(self) -> None:
        """The worker is dead: hear its last words, say so, clear up after it, start the next."""
        for _ in range(LAST_WORDS):
            if not self.read_worker():
                break
        reason = self.remove_worker()
        self.tell(wire.Restarted(reason))
        if self.run:
            wall_ms = round((time.perf_counter() - self.run_started) * 1e3, 3)
            usage = {"wall_ms": wall_ms, "cpu_ms": 0.0, "peak_mb": 0.0}
            error = {"type": "InterpreterDied", "message": reason, "traceback": "", "line": None}
            self.output.drain()
            self._end_run(wire.encode(wire.Done(self.run, "died", None, error, usage)))
        self.start_worker()

    def remove_worker(self) -> str:
        """Collect the worker, which is dead or dying, and what it has left behind; return how it ended, for people."""
        _, status = os.waitpid(self.worker, 0)
        self.poll.unregister(self.sock)
        self.sock.close()
        self._kill_rest()
        self.generation += 1
        self.parked_or_not("the interpreter died")
        return processes.described_end(status, self.kill_reason, wire.BROKEN)

    def reap(self) -> None:
        """Collect dead children; the worker is left to be buried."""
        self.copies.died(processes.reap(self.worker))

    def hang_up(self) -> None:
        """The worker's socket is closed: it is dying (which the loop notices), or user code closed it."""
        self.poll.modify(self.sock, 0)
        for _ in range(DEATH_ROUNDS):
            if processes.is_dead(self.worker):
                return
            time.sleep(0.001)
        self.kill_worker("code closed a descriptor that is the runtime's own")

    def kill_worker(self, reason: str) -> None:
        """Kill the interpreter; the loop notices its death."""
        self.kill_reason = reason
        os.kill(self.worker, signal.SIGKILL)

    def _kill_rest(self) -> None:
        """Kill every process that the dead worker has left behind, but parked copies."""
        self.copies.await_hellos()
        self.worker = self.copies.worker = 0
        if self.setup.contained:
            processes.kill_others(self.copies.pids())
        else:
            processes.kill_all(processes.descendants, self.reap, self.copies.pids())
        self.reap()

    # parked copies --------------------------------------------------------------------------------

    def parked_or_not(self, reason: str) -> None:
        """The worker will not say any more whether it has parked the last run."""
        if self.parking:
            self.tell(wire.Unparkable(self.parking, reason))
            self.parking = 0

    def on_parking(self, kind: int, frame: bytes) -> bool:
        """The worker says whether it has parked its last run; return whether it may."""
        try:
            message = wire.decode(kind, frame[wire.HEADER :])
        except wire.WireError:
            return False
        assert isinstance(message, (wire.Parked, wire.Unparkable))
        if not self.parking or message.run != self.parking:
            return False
        if isinstance(message, wire.Unparkable):
            self.parked_or_not(message.reason[:REASON])
            return True
        if len(self.descriptors) != 1:
            return False
        self.copies.add(self.parking, self.descriptors.pop())
        self.parking = 0
        return True

    def promote(self, run: int) -> None:
        """Make the parked copy of run `run` the worker, or an empty interpreter, and say what files have changed."""
        self.files.save()
        due = time.perf_counter() + PARKING_S
        while self.parking and time.perf_counter() < due and not processes.is_dead(self.worker):
            select.select([self.sock], [], [], AGAIN_S)
            self.read_worker()
        self.kill_worker("another takes its place")
        self.remove_worker()
        ok = run == 0 or self._wake(run)
        if run == 0 or not ok:
            self.start_worker()
        changed, removed = self.workspace.look()
        self.tell(wire.Promoted(run, ok, changed, removed))

    def _wake(self, run: int) -> bool:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        copy = self.copies.order(run, self.generation, theirs)
        theirs.close()
        worker = self.copies.woken(copy) if copy is not None else 0
        if not worker:
            ours.close()
            return False
        self.take_worker(worker, ours)
        return True

    # frames ---------------------------------------------------------------------------------------

    def to_host(self, data: bytes) -> None:
        """Write all of `data` to the host, waiting for it if need be."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.host_out, view) :]

    def tell(self, message: wire.Message) -> None:
        """Say something of our own to the host."""
        self.to_host(wire.encode(message))

    def read_worker(self) -> bool:
        """Pass on what the worker sends; return whether there was anything."""
        try:
            data, ancillary, _, _ = self.sock.recvmsg(1 << 18, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return False
        self.descriptors = [
            fd for _, kind, content in ancillary if kind == socket.SCM_RIGHTS for fd in descriptors_in(content)
        ]
        if data:
            self.pass_on(data)
        else:
            self.hang_up()
        if self.descriptors:  # unasked for
            close_all(self.descriptors)
            self.expel()
        return bool(data)

    def pass_on(self, data: bytes) -> None:
        """Forward the worker's frames that `data` completes."""
        try:
            frames = self.from_worker.feed(data)
        except wire.WireError:
            frames = [(-1, b"")]
        for kind, frame in frames:
            if kind == DONE:
                self._finish(frame)
            elif kind in PARKING and self.on_parking(kind, frame):
                pass
            elif kind != CALL:
                self.expel()
                return
            elif self.run:
                self.output.drain()
                self.to_host(frame)
            else:
                self.refuse(frame)

    def expel(self) -> None:
        """Kill a worker that said what it may not say."""
        self.poll.modify(self.sock, 0)
        self.kill_worker("code wrote to a descriptor that is the runtime's own")

    def refuse(self, frame: bytes) -> None:
        """Answer a call that a background thread makes between two runs."""
        try:
            call = wire.decode(frame[4], frame[wire.HEADER :])
        except wire.WireError:
            return
        assert isinstance(call, wire.Call)
        self.to_worker += wire.encode(wire.Reply(call.id, None, wire.too_late(call.target)))
        self.write_worker()

    def _finish(self, done: bytes) -> None:
        """Send everything that belongs before a run's `Done`, and that; its files follow while the session is idle."""
        if not self.run:
            return  # forged
        if self.setup.process_limit and time.perf_counter() - self.run_started >= BOMB_S:
            processes.end_fork_bomb(self.setup.process_limit, self.reap, {self.worker} | self.copies.pids())
        self.output.drain()
        self.files.announce(self.run)
        if self.parks:
            self.parking = self.run
        self._end_run(done)

    def _end_run(self, done: bytes) -> None:
        self.to_host(done)
        self.run = 0
        self.interrupt_at = 0.0
        self.output.end()

    def read_host(self) -> None:
        """Act on what the host sends; at its end, so does everything here."""
        data = os.read(self.host_in, 1 << 18)
        if not data:
            self.shut_down()
        for kind, frame in self.splitter.feed(data):
            self.on_host(kind, frame)

    def on_host(self, kind: int, frame: bytes) -> None:
        """Handle one frame of the host's; replies pass unread."""
        if kind == REPLY:
            self.to_worker += frame
            self.write_worker()
            return
        message = wire.decode(kind, frame[wire.HEADER :])
        if isinstance(message, wire.Execute):
            self.begin(message, frame)
        elif isinstance(message, wire.Interrupt):
            if message.run == self.run:
                self.interrupt()
        elif isinstance(message, wire.Kill):
            if message.run == self.run:
                self.kill_worker("it did not stop when it was interrupted")
        elif isinstance(message, (wire.Put, wire.Remove)):
            problem = self.files.take(message)
            if problem:
                self.output.complain(problem)
        elif isinstance(message, wire.Promote):
            self.promote(message.run)

    def interrupt(self) -> None:
        """Signal the worker, and again until its run is over; it is struck once.

        One signal can get lost: before the code begins, or in C code that is just about to wait.
        """
        os.kill(self.worker, signal.SIGINT)
        self.interrupt_at = time.perf_counter() + AGAIN_S

    def begin(self, message: wire.Execute, frame: bytes) -> None:
        """Start a run, after what is left to do for the one before."""
        self.files.save()
        self.run = message.run
        self.parks = message.park and self.setup.checkpoints > 0
        self.run_started = time.perf_counter()
        self.output.begin(message.run)
        self.to_worker += frame
        self.write_worker()
        self.copies.measure_in(BUSY_S)

    def write_worker(self) -> None:
        """Send what is queued for the worker as far as it takes it."""
        try:
            del self.to_worker[: self.sock.send(self.to_worker)]
        except BlockingIOError:
            pass
        except OSError:
            self.to_worker.clear()  # it is dead, and will be buried
            return
        self.poll.modify(self.sock, select.POLLIN | select.POLLOUT if self.to_worker else select.POLLIN)

    # the loop -------------------------------------------------------------------------------------

    def serve(self, frames: List[Tuple[int, bytes]]) -> None:
        """Handle `frames`, which came with the first message, then route until the host closes the link."""
        self.start_worker()
        self.tell(wire.Ready(wire.VERSION, sys.version.split()[0], sys.platform, mark_of_inputs()))
        if self.setup.contained and self.setup.checkpoints:
            processes.adopt_orphans()  # only now: it loads a library, and the host waits no more
        for kind, frame in frames:
            self.on_host(kind, frame)
        while True:
            for fd, event in self.poll.poll(self._timeout()):
                if fd == self.host_in:
                    self.read_host()
                elif fd in self.output.by_descriptor:
                    self.output.read(fd)
                elif fd == self.wake_read:
                    self.on_child()
                elif fd in self.copies.by_descriptor:
                    self.copies.on_readable(fd)
                elif fd == self.sock.fileno():
                    if event & select.POLLOUT:
                        self.write_worker()
                    if event & ~select.POLLOUT:
                        self.read_worker()
            self.copies.end_overdue()
            if self.copies.measure_at and time.perf_counter() >= self.copies.measure_at:
                self.copies.measure()
                if self.run:
                    self.copies.measure_in(BUSY_S)
            if self.output.flush_at and time.perf_counter() >= self.output.flush_at:
                self.output.flush()
            if self.interrupt_at and time.perf_counter() >= self.interrupt_at:
                self.interrupt()
            if not self.run:
                self.files.save()

    def _timeout(self) -> Optional[float]:
        due = [at for at in (self.output.flush_at, self.interrupt_at, *self.copies.due()) if at]
        return max((min(due) - time.perf_counter()) * 1e3, 0.0) if due else None

    def on_child(self) -> None:
        """A child has died: the worker, or an orphan that was handed to us."""
        try:
            os.read(self.wake_read, WAKES)
        except BlockingIOError:
            pass
        if processes.is_dead(self.worker):
            self.bury_worker()
        else:
            self.reap()

    def shut_down(self) -> None:
        """The host is gone: so is everything here."""
        self.kill_worker("the host is gone")
        os.waitpid(self.worker, 0)
        self.copies.close()
        self._kill_rest()
        os._exit(0)


def main() -> None:
    """Take over this process's stdin and stdout as the link, read `Setup`, and serve."""
    host_in, host_out = processes.high(os.dup(0)), processes.high(os.dup(1))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what is printed here by mistake must not reach the link
    os.close(null)
    splitter = wire.Splitter()
    frames: List[Tuple[int, bytes]] = []
    while not frames:
        data = os.read(host_in, wire.CHUNK)
        if not data:
            os._exit(0)
        frames = splitter.feed(data)
    kind, frame = frames[0]
    setup = wire.decode(kind, frame[wire.HEADER :])
    if not isinstance(setup, wire.Setup) or setup.version != wire.VERSION:
        sys.exit(f"the host speaks version {getattr(setup, 'version', '?')} of the wire, this kernel {wire.VERSION}")
    if not setup.contained:
        processes.adopt_orphans()
    Supervisor(setup, splitter, host_in, host_out).serve(frames[1:])
