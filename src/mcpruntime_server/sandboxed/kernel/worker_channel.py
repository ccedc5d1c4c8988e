"""The worker's end of its socket to the supervisor: whole frames, whatever is interrupted, from any thread or task.

Rule 1: SIGINT is held while a frame moves, else half a frame would stay on the socket and make all later ones
unreadable. It is let in only while this process waits.
Rule 2: reads are exact (header, then body). A byte read ahead would be duplicated by `fork`.
Rule 3: there is no reader thread, because threads do not survive a fork. Whoever waits for an answer reads for
everybody (holds `_reader`); when it has its own answer, it hands the reading to another waiter.
Rule 4: answers reach the code one at a time, in the order in which they came: the next one is read when what the last
one was for has taken it and goes no further by itself. Else a replay could not repeat who came first.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections import deque
from select import select

from ...protocol import wire
from ..library.tools import HostError

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, List, Optional

    from .determinism import RecordedClocks

REPLY_CONSUMED_TIMEOUT_S = 1.0  # for a thread to take its answer, which it does as soon as it is let run; what kills it is rare
MAX_BUSY_ROUNDS = (
    32  # of an event loop that is never quiet, before the next answer is read all the same
)
MAIN_THREAD_ID = threading.main_thread().ident
STEP_FILE_PREFIX = "<step "  # what the names of executed code start with


class InterruptHandler:
    """SIGINT as a KeyboardInterrupt that only ever strikes user code, or the kernel where it waits for the host."""

    def __init__(self) -> None:
        self.is_armed = False  # user code runs, and has not been struck yet
        self.hold_depth = 0  # how many `Hold` are entered
        self.is_window_open = False  # inside a `LetIn`
        self.is_pending = False
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, signum: int, frame: Any) -> None:
        if not self.is_armed:
            return
        if self.hold_depth and not self.is_window_open:
            self.is_pending = True
        else:
            self.raise_interrupt()

    def raise_interrupt(self) -> None:
        """Raise KeyboardInterrupt; what it passes through in the kernel is not struck a second time."""
        self.is_window_open = self.is_pending = False
        if self.is_armed:
            self.is_armed = False  # the supervisor signals until the run is over; its clean-up is to be left alone
            raise KeyboardInterrupt

    def disarm(self) -> None:
        """User code is over: from here an interrupt has nothing to stop."""
        self.is_armed = self.is_window_open = self.is_pending = False
        self.hold_depth = 0


class HoldInterrupts:
    """A region in which interrupts wait; only the main thread receives any, so elsewhere this is nothing.

    Entering remembers the level and leaving restores it, so that no interrupt between two instructions can shift it.
    """

    __slots__ = ("_interrupts", "_outer_depth")

    def __init__(self, interrupts: InterruptHandler) -> None:
        self._interrupts = interrupts
        self._outer_depth = -1

    def __enter__(self) -> None:
        if threading.get_ident() == MAIN_THREAD_ID:
            self._outer_depth = self._interrupts.hold_depth
            self._interrupts.hold_depth = self._outer_depth + 1

    def __exit__(self, *exc_info: object) -> None:
        if self._outer_depth >= 0:
            self._interrupts.hold_depth = self._outer_depth
            if self._interrupts.is_pending and not self._outer_depth:
                self._interrupts.raise_interrupt()


class AllowInterrupts:
    """A window inside a `Hold` in which a wait may be interrupted."""

    __slots__ = ("_interrupts",)

    def __init__(self, interrupts: InterruptHandler) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        if threading.get_ident() == MAIN_THREAD_ID:
            self._interrupts.is_window_open = True
            if self._interrupts.is_pending:
                self._interrupts.raise_interrupt()

    def __exit__(self, *exc_info: object) -> None:
        if threading.get_ident() == MAIN_THREAD_ID:
            self._interrupts.is_window_open = False


class PendingCall:
    """A call that waits for its reply: `lock` wakes a thread, which then opens `taken`; `future` wakes a task."""

    __slots__ = ("consumed_lock", "future", "reply", "target", "wake_lock")

    def __init__(self, target: str = "", future: Any = None) -> None:
        self.target = target
        self.future = future
        self.reply: Optional[wire.Reply] = None
        self.wake_lock = threading.Lock()
        self.consumed_lock = threading.Lock()
        if future is None:
            self.wake_lock.acquire()
            self.consumed_lock.acquire()

    def wake(self) -> None:
        try:
            if self.future is not None:
                loop = self.future.get_loop()
                if loop is sys.modules["asyncio"]._get_running_loop():
                    _resolve_future(self.future, self.reply)
                else:
                    loop.call_soon_threadsafe(_resolve_future, self.future, self.reply)
            else:
                self.wake_lock.release()
        except RuntimeError:
            pass  # awake already, or its event loop is closed


def _resolve_future(future: Any, reply: Any) -> None:
    if not future.done():
        future.set_result(reply)


class WorkerChannel:
    """Sends frames to and receives frames from the supervisor; makes calls to the host."""

    def __init__(
        self,
        sock: socket.socket,
        interrupts: InterruptHandler,
        generation: int,
        clocks: RecordedClocks,
    ) -> None:
        self.run_number = 0
        self.filename = ""  # the name of what is being executed
        self.sock = sock
        self._interrupts = interrupts
        self._recorded_clocks = clocks
        self._pid = os.getpid()
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._id_lock = threading.Lock()
        self._last_call_id = (
            generation << 32
        )  # so that no late reply to a dead interpreter answers a call of this one
        self._pending_calls: Dict[int, PendingCall] = {}
        self._command_queue: Deque[wire.Message] = deque()
        self._command_waiter: Optional[PendingCall] = (
            None  # the main thread, waiting for its next command
        )
        self._waiting_loops: Dict[Any, int] = {}  # event loops that wait for replies, and how many
        self._busy_rounds = 0  # of an event loop, since it read a message

    def reinitialize(self, generation: int) -> None:
        """Go on as the channel of a copy of this process: the calls under way were the other's, and fail here."""
        self._pid = os.getpid()
        self._last_call_id = generation << 32
        for loop in self._waiting_loops:
            loop.add_reader(self.sock, self._on_readable, loop)
        pending, self._pending_calls = self._pending_calls, {}
        for number, each in pending.items():
            each.reply = wire.Reply(number, None, wire.no_active_run_error(each.target))
            each.wake()

    # frames ---------------------------------------------------------------------------------------

    def send(self, message: wire.Message) -> None:
        """Send `message` whole; raises `wire.WireError` if it is not JSON or too large."""
        data = wire.encode_message(message)
        with HoldInterrupts(self._interrupts), self._write_lock:
            self.sock.sendall(data)

    def _read_message(self, own_call: Optional[PendingCall] = None) -> None:
        """Read one message and pass it to whoever waits for it; `mine` is the reader's own."""
        header = self._receive_exactly(wire.HEADER_BYTES)
        message = wire.decode_message(
            header[4], self._receive_exactly(wire.parse_frame_size(header[:4]) - 1)
        )
        if not isinstance(message, wire.Reply):
            self._command_queue.append(message)
            if self._command_waiter is not None:
                self._command_waiter.wake()
            return
        pending = self._pending_calls.pop(message.call_id, None)
        if pending is not None:  # else its run was interrupted and nobody waits any more
            pending.reply = message
            pending.wake()
            if pending is not own_call and pending.future is None:
                pending.consumed_lock.acquire(timeout=REPLY_CONSUMED_TIMEOUT_S)

    def _receive_exactly(self, size: int) -> bytes:
        chunks: List[bytes] = []
        while size:
            chunk = self.sock.recv(min(size, 1 << 20))
            if not chunk:
                os._exit(0)  # the supervisor is gone
            chunks.append(chunk)
            size -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    # waiting --------------------------------------------------------------------------------------

    def receive_command(self) -> wire.Message:
        """Wait for the next message that is not a reply; replies to background threads are delivered meanwhile."""
        with HoldInterrupts(self._interrupts):
            self._command_waiter = idle = PendingCall()
            self._wait_until(idle, lambda: bool(self._command_queue))
            self._command_waiter = None
            return self._command_queue.popleft()

    def _wait_until(self, own_call: PendingCall, is_ready: Any) -> None:
        try:
            while not is_ready():
                if self._read_lock.acquire(blocking=False):
                    try:
                        while not is_ready():
                            with AllowInterrupts(self._interrupts):
                                select([self.sock], [], [])
                            self._read_message(own_call)
                    finally:
                        self._read_lock.release()
                else:
                    with AllowInterrupts(self._interrupts):
                        own_call.wake_lock.acquire()
        finally:
            self._wake_next_reader(own_call)

    def _wake_next_reader(self, own_call: Optional[PendingCall] = None) -> None:
        """Wake a waiter other than `mine`, so that it becomes the reader; waking one too many is harmless."""
        for pending in [*self._pending_calls.values(), self._command_waiter]:
            if pending is not None and pending is not own_call and pending.future is None:
                pending.wake()
                return

    # calls ----------------------------------------------------------------------------------------

    def call_host(self, target: str, args: Dict[str, Any]) -> Any:
        """Ask the host for `target` and wait for its answer; raises `HostError`. Safe from any thread."""
        with HoldInterrupts(self._interrupts):
            pending = PendingCall(target)
            number = self._send_call(target, args, pending)
            try:
                self._wait_until(pending, lambda: pending.reply is not None)
            finally:
                self._pending_calls.pop(number, None)
                pending.consumed_lock.release()
        return _reply_value(pending.reply)

    async def call_host_async(self, target: str, args: Dict[str, Any]) -> Any:
        """Ask the host for `target` without blocking the event loop; raises `HostError`."""
        import asyncio

        loop = asyncio.get_running_loop()
        pending = PendingCall(target, loop.create_future())
        number = 0
        try:
            with HoldInterrupts(self._interrupts):
                number = self._send_call(target, args, pending)
                self._waiting_loops[loop] = self._waiting_loops.get(loop, 0) + 1
                if self._waiting_loops[loop] == 1:
                    loop.add_reader(self.sock, self._on_readable, loop)
            return _reply_value(await pending.future)
        finally:
            with HoldInterrupts(self._interrupts):
                if number:
                    if pending.reply is None:
                        self._abandon_call(number)
                    self._forget_call(number, loop)

    def _abandon_call(self, call_id: int) -> None:
        """Tell the host that the code waits no more for the reply to `call`, so that a replay can repeat that."""
        if os.getpid() != self._pid:
            return  # a copy that code made with `fork`
        with self._id_lock:
            self._last_call_id += 1
            number = self._last_call_id
        self.send(wire.Call(number, self.run_number, wire.ABANDON_TARGET, {"call": call_id}))

    def _forget_call(self, call_id: int, loop: Any) -> None:
        """Wait no longer for the reply to call `number` on `loop`."""
        self._pending_calls.pop(call_id, None)
        self._waiting_loops[loop] -= 1
        if not self._waiting_loops[loop]:
            del self._waiting_loops[loop]
            loop.remove_reader(self.sock)
            self._wake_next_reader()

    def _send_call(self, target: str, args: Dict[str, Any], pending: PendingCall) -> int:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "A forked process cannot call tools: call them in the main process, or use threads."
            )
        with self._id_lock:
            self._last_call_id += 1
            number = self._last_call_id
        self._pending_calls[number] = pending
        try:
            self.send(
                wire.Call(
                    number,
                    self.run_number,
                    target,
                    args,
                    _calling_line(self.filename),
                    self._recorded_clocks.take_readings() or None,
                )
            )
        except wire.WireError as exc:
            del self._pending_calls[number]
            raise HostError(
                "invalid_arguments", f"{target}: the arguments are not JSON data: {exc}", None
            ) from None
        return number

    def _on_readable(self, loop: Any) -> None:
        """Read the next message, when `loop` has nothing left to do about the last one."""
        self._busy_rounds += 1
        if getattr(loop, "_ready", None) and self._busy_rounds < MAX_BUSY_ROUNDS:
            return  # it will call again
        self._busy_rounds = 0
        with HoldInterrupts(self._interrupts):
            if not self._read_lock.acquire(blocking=False):
                return  # a thread reads already
            try:
                if select([self.sock], [], [], 0)[0]:
                    self._read_message()
            finally:
                self._read_lock.release()
            self._wake_next_reader()


def _reply_value(reply: Optional[wire.Reply]) -> Any:
    assert reply is not None
    if reply.error is not None:
        error = reply.error
        raise HostError(str(error.get("kind")), str(error.get("message")), error.get("data"))
    return reply.value


def _calling_line(filename: str) -> Optional[int]:
    """Return the line of the executed code from which a call comes: functions of other steps have other lines."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == filename:
            return frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None
