"""The worker's end of its socket to the supervisor; calls to the host from any thread or task.

Rule 1: SIGINT is held back while a frame is sent or received. Half a frame on the socket would make
all later ones unreadable. An interrupt is let through only while this process waits.
Rule 2: reads are exact (header, then body). A byte read ahead would be duplicated by `fork`.
Rule 3: there is no reader thread, because threads do not survive a fork. A thread that waits for a
reply reads for all others, too (it holds `_read_lock`). When it has its own reply, it wakes another
one to read.
Rule 4: replies are delivered one at a time, in the order of their arrival. The next one is read
only after the receiver of the last one has taken it and waits again or has finished, so that a
replay can repeat the order. An event loop of ours (`event_loop`) decides itself when it acts on the
replies to its tasks; for an event loop of another class the rule is all there is.
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
from .determinism import ThreadNames
from .thread_order import ThreadOrder

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, List, Optional

    from ...protocol.payloads import JsonObject
    from .determinism import RecordedClocks

REPLY_CONSUMED_TIMEOUT_S = 1.0  # for a thread to take its reply; only a dead one does not
MAX_BUSY_ROUNDS = 32  # of an event loop that always has work, before the next reply is read
MAIN_THREAD_ID = threading.main_thread().ident
FOREIGN_CALL_MESSAGE = (
    "A forked process cannot call tools: call them in the main process, or use threads."
)
STEP_FILE_PREFIX = "<step "  # of the file names of executed code


class InterruptHandler:
    """Turns SIGINT into a KeyboardInterrupt in user code, or in a wait for the host."""

    def __init__(self) -> None:
        self.is_armed = False  # user code is running and has not been interrupted yet
        self.hold_depth = 0  # of nested `HoldInterrupts`
        self.is_window_open = False  # inside `AllowInterrupts`
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
        """Raise KeyboardInterrupt, once in a run."""
        self.is_window_open = self.is_pending = False
        if self.is_armed:
            self.is_armed = False  # the supervisor repeats the signal, but clean-up code must run
            raise KeyboardInterrupt

    def disarm(self) -> None:
        """Ignore interrupts: user code has finished."""
        self.is_armed = self.is_window_open = self.is_pending = False
        self.hold_depth = 0


class HoldInterrupts:
    """A context in which interrupts wait. Only the main thread receives any.

    It remembers the depth on entry and restores it on exit, so that an interrupt between two
    instructions cannot change it.
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
    """A context inside `HoldInterrupts` in which a wait may be interrupted."""

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
    """A call that waits for its reply, in a thread or in a task.

    `wake_lock` is released to wake the thread, which releases `consumed_lock` when it has the
    reply. `future` is resolved to wake the task. `number` is that of a call that a replayable event
    loop has opened.
    """

    __slots__ = ("consumed_lock", "future", "number", "reply", "target", "wake_lock")

    def __init__(self, target: str = "", future: Any = None) -> None:
        self.target = target
        self.future = future
        self.number = 0
        self.reply: Optional[wire.Reply] = None
        self.wake_lock = threading.Lock()
        self.consumed_lock = threading.Lock()
        if future is None:
            self.wake_lock.acquire()
            self.consumed_lock.acquire()

    def wake(self) -> None:
        """Let the thread or task look at `reply`."""
        try:
            if self.future is not None:
                loop = self.future.get_loop()
                if self.number:
                    loop.deliver_reply(self.number, _resolve_future, self.future, self.reply)
                elif loop is sys.modules["asyncio"]._get_running_loop():
                    _resolve_future(self.future, self.reply)
                else:
                    loop.call_soon_threadsafe(_resolve_future, self.future, self.reply)
            else:
                self.wake_lock.release()
        except RuntimeError:
            pass  # it is awake already, or its event loop is closed


def _resolve_future(future: Any, reply: Any) -> None:
    if not future.done():
        future.set_result(reply)


class CallIds:
    """Numbers the calls of a worker, from any thread.

    Ids of different generations differ, so that a late reply to a dead worker is ignored.
    """

    def __init__(self, generation: int) -> None:
        self._lock = threading.Lock()
        self._last_id = generation << 32

    def next_id(self) -> int:
        """Return the id of the next call."""
        with self._lock:
            self._last_id += 1
            return self._last_id

    def start_generation(self, generation: int) -> None:
        """Continue with the ids of worker `generation`, in a fork of the process."""
        self._last_id = generation << 32


class WorkerChannel:
    """Exchanges frames with the supervisor and makes calls to the host."""

    def __init__(
        self,
        sock: socket.socket,
        interrupts: InterruptHandler,
        generation: int,
        clocks: RecordedClocks,
    ) -> None:
        self.run_number = 0
        self.filename = ""  # of the code that is being executed
        self.foreign_call_message = FOREIGN_CALL_MESSAGE
        self.sock = sock
        self._interrupts = interrupts
        self._recorded_clocks = clocks
        self._pid = os.getpid()
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._call_ids = CallIds(generation)
        self._call_order = ThreadOrder(ThreadNames.current_name)
        self._pending_calls: Dict[int, PendingCall] = {}
        self._command_queue: Deque[wire.Message] = deque()
        self._command_waiter: Optional[PendingCall] = None  # the main thread between two runs
        self._waiting_loops: Dict[Any, int] = {}  # not replayable -> number of replies it awaits
        self._busy_rounds = 0  # of such a loop since it read a message

    def start_run(self, run_number: int, filename: str) -> None:
        """Send the calls of another run from now on, whose code has this name."""
        self.run_number, self.filename = run_number, filename
        self._call_order.start_run()

    @property
    def is_foreign_process(self) -> bool:
        """Whether this is a process that user code has forked from the worker."""
        return os.getpid() != self._pid

    def reinitialize(self, generation: int) -> None:
        """Continue in a fork of the process; the pending calls of the original fail here."""
        self._pid = os.getpid()
        self._call_ids.start_generation(generation)
        for loop in self._waiting_loops:
            loop.add_reader(self.sock, self._on_readable, loop)
        pending_calls, self._pending_calls = self._pending_calls, {}
        for call_id, pending in pending_calls.items():
            pending.reply = wire.Reply(call_id, None, wire.no_active_run_error(pending.target))
            pending.wake()

    # frames ---------------------------------------------------------------------------------------

    def send(self, message: wire.Message) -> None:
        """Send `message`; raises `wire.WireError` if it is not JSON or too large."""
        data = wire.encode_message(message)
        with HoldInterrupts(self._interrupts), self._write_lock:
            self.sock.sendall(data)

    def _read_message(self, own_call: Optional[PendingCall] = None) -> None:
        """Read one message and deliver it; `own_call` is the reader's own."""
        header = self._receive_exactly(wire.HEADER_BYTES)
        body = self._receive_exactly(wire.parse_frame_size(header) - 1)
        message = wire.decode_message(header[4], body)
        if not isinstance(message, wire.Reply):
            self._command_queue.append(message)
            if self._command_waiter is not None:
                self._command_waiter.wake()
            return
        pending = self._pending_calls.pop(message.call_id, None)
        if pending is not None:  # else its run was interrupted and no longer waits
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
        """Return the next command; meanwhile deliver replies to background threads."""
        with HoldInterrupts(self._interrupts):
            self._command_waiter = waiter = PendingCall()
            self._wait_until(waiter, lambda: bool(self._command_queue))
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
        """Wake a thread other than that of `own_call` to read; to wake one too many is harmless."""
        for pending in [*self._pending_calls.values(), self._command_waiter]:
            if pending is not None and pending is not own_call and pending.future is None:
                pending.wake()
                return

    # calls ----------------------------------------------------------------------------------------

    def call_host(self, target: str, args: JsonObject, data: bytes = b"") -> Any:
        """Call `target` and return its value; raises `HostError`. Safe in any thread."""
        with HoldInterrupts(self._interrupts):
            pending = PendingCall(target)
            call_id = self._send_call(target, args, pending, data)
            try:
                self._wait_until(pending, lambda: pending.reply is not None)
            finally:
                self._pending_calls.pop(call_id, None)
                pending.consumed_lock.release()
        return _reply_value(pending.reply)

    async def call_host_async(self, target: str, args: JsonObject) -> Any:
        """Call `target` without blocking the event loop; raises `HostError`."""
        import asyncio

        loop: Any = asyncio.get_running_loop()
        pending = PendingCall(target, loop.create_future())
        call_id = 0
        try:
            with HoldInterrupts(self._interrupts):
                if hasattr(loop, "open_call"):
                    pending.number = loop.open_call()
                call_id = self._send_call(target, args, pending)
                if not pending.number:
                    self._watch_for_loop(loop)
            return _reply_value(await pending.future)
        finally:
            with HoldInterrupts(self._interrupts):
                if call_id:
                    if pending.reply is None:
                        self._abandon_call(call_id)
                    self._pending_calls.pop(call_id, None)
                    if not pending.number:
                        self._stop_watching(loop)
                if pending.number and not loop.close_call(pending.number):
                    self._wake_next_reader()

    def _abandon_call(self, call_id: int) -> None:
        """Tell the host that the code no longer waits for a reply; a replay repeats that."""
        if self.is_foreign_process:
            return
        args = {"call": call_id}
        self.send(wire.Call(self._call_ids.next_id(), self.run_number, wire.ABANDON_TARGET, args))

    def _watch_for_loop(self, loop: Any) -> None:
        """Let an event loop that is not replayable read replies while one of its tasks waits."""
        self._waiting_loops[loop] = self._waiting_loops.get(loop, 0) + 1
        if self._waiting_loops[loop] == 1:
            loop.add_reader(self.sock, self._on_readable, loop)

    def _stop_watching(self, loop: Any) -> None:
        """Undo one `_watch_for_loop`."""
        self._waiting_loops[loop] -= 1
        if not self._waiting_loops[loop]:
            del self._waiting_loops[loop]
            loop.remove_reader(self.sock)
            self._wake_next_reader()

    def _send_call(
        self, target: str, args: JsonObject, pending: PendingCall, data: bytes = b""
    ) -> int:
        if self.is_foreign_process:
            raise RuntimeError(self.foreign_call_message)
        call_id = self._call_ids.next_id()
        line = _calling_line(self.filename)
        readings = self._recorded_clocks.take_readings() or None
        order = self._call_order.next_number_beside_main(wire.MAX_CALL_ORDER)
        self._pending_calls[call_id] = pending
        try:
            self.send(
                wire.Call(call_id, self.run_number, target, args, line, readings, data, order)
            )
        except wire.WireError as exc:
            del self._pending_calls[call_id]
            message = f"{target}: the arguments cannot be sent: {exc}"
            raise HostError("invalid_arguments", message, None) from None
        return call_id

    def _on_readable(self, loop: Any) -> None:
        """Read the next message if `loop` has finished its work for the last one."""
        self._busy_rounds += 1
        if getattr(loop, "_ready", None) and self._busy_rounds < MAX_BUSY_ROUNDS:
            return  # the loop will call this again
        self._busy_rounds = 0
        self.read_available()

    def read_available(self) -> None:
        """Read the next message, if there is one and no thread is reading."""
        with HoldInterrupts(self._interrupts):
            if not self._read_lock.acquire(blocking=False):
                return  # a thread is reading
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
    """Return the line of this run's code that makes the call, perhaps through other functions."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == filename:
            return frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None
