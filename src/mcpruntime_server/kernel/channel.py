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

from . import wire
from .guest import HostError

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, List, Optional

    from .observe import Clocks

TAKEN_S = 1.0  # for a thread to take its answer, which it does as soon as it is let run; what kills it is rare
QUIET_ROUNDS = 32  # of an event loop that is never quiet, before the next answer is read all the same
MAIN_THREAD = threading.main_thread().ident
USER_FILE = "<step "  # what the names of executed code start with


class Interrupts:
    """SIGINT as a KeyboardInterrupt that only ever strikes user code, or the kernel where it waits for the host."""

    def __init__(self) -> None:
        self.armed = False  # user code runs, and has not been struck yet
        self.held = 0  # how many `Hold` are entered
        self.open = False  # inside a `LetIn`
        self.pending = False
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, signum: int, frame: Any) -> None:
        if not self.armed:
            return
        if self.held and not self.open:
            self.pending = True
        else:
            self.strike()

    def strike(self) -> None:
        """Raise KeyboardInterrupt; what it passes through in the kernel is not struck a second time."""
        self.open = self.pending = False
        if self.armed:
            self.armed = False  # the supervisor signals until the run is over; its clean-up is to be left alone
            raise KeyboardInterrupt

    def disarm(self) -> None:
        """User code is over: from here an interrupt has nothing to stop."""
        self.armed = self.open = self.pending = False
        self.held = 0


class Hold:
    """A region in which interrupts wait; only the main thread receives any, so elsewhere this is nothing.

    Entering remembers the level and leaving restores it, so that no interrupt between two instructions can shift it.
    """

    __slots__ = ("_interrupts", "_level")

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._level = -1

    def __enter__(self) -> None:
        if threading.get_ident() == MAIN_THREAD:
            self._level = self._interrupts.held
            self._interrupts.held = self._level + 1

    def __exit__(self, *exc_info: object) -> None:
        if self._level >= 0:
            self._interrupts.held = self._level
            if self._interrupts.pending and not self._level:
                self._interrupts.strike()


class LetIn:
    """A window inside a `Hold` in which a wait may be interrupted."""

    __slots__ = ("_interrupts",)

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        if threading.get_ident() == MAIN_THREAD:
            self._interrupts.open = True
            if self._interrupts.pending:
                self._interrupts.strike()

    def __exit__(self, *exc_info: object) -> None:
        if threading.get_ident() == MAIN_THREAD:
            self._interrupts.open = False


class Pending:
    """A call that waits for its reply: `lock` wakes a thread, which then opens `taken`; `future` wakes a task."""

    __slots__ = ("future", "lock", "reply", "taken", "target")

    def __init__(self, target: str = "", future: Any = None) -> None:
        self.target = target
        self.future = future
        self.reply: Optional[wire.Reply] = None
        self.lock = threading.Lock()
        self.taken = threading.Lock()
        if future is None:
            self.lock.acquire()
            self.taken.acquire()

    def wake(self) -> None:
        try:
            if self.future is not None:
                loop = self.future.get_loop()
                if loop is sys.modules["asyncio"]._get_running_loop():
                    _resolve(self.future, self.reply)
                else:
                    loop.call_soon_threadsafe(_resolve, self.future, self.reply)
            else:
                self.lock.release()
        except RuntimeError:
            pass  # awake already, or its event loop is closed


def _resolve(future: Any, reply: Any) -> None:
    if not future.done():
        future.set_result(reply)


class Channel:
    """Sends frames to and receives frames from the supervisor; makes calls to the host."""

    def __init__(self, sock: socket.socket, interrupts: Interrupts, generation: int, clocks: Clocks) -> None:
        self.run = 0
        self.code = ""  # the name of what is being executed
        self.sock = sock
        self._interrupts = interrupts
        self._clocks = clocks
        self._pid = os.getpid()
        self._writer = threading.Lock()
        self._reader = threading.Lock()
        self._ids = threading.Lock()
        self._last_call = generation << 32  # so that no late reply to a dead interpreter answers a call of this one
        self._pending: Dict[int, Pending] = {}
        self._commands: Deque[wire.Message] = deque()
        self._idle: Optional[Pending] = None  # the main thread, waiting for its next command
        self._loops: Dict[Any, int] = {}  # event loops that wait for replies, and how many
        self._rounds = 0  # of an event loop, since it read a message

    def revive(self, generation: int) -> None:
        """Go on as the channel of a copy of this process: the calls under way were the other's, and fail here."""
        self._pid = os.getpid()
        self._last_call = generation << 32
        for loop in self._loops:
            loop.add_reader(self.sock, self._on_readable, loop)
        pending, self._pending = self._pending, {}
        for number, each in pending.items():
            each.reply = wire.Reply(number, None, wire.too_late(each.target))
            each.wake()

    # frames ---------------------------------------------------------------------------------------

    def send(self, message: wire.Message) -> None:
        """Send `message` whole; raises `wire.WireError` if it is not JSON or too large."""
        data = wire.encode(message)
        with Hold(self._interrupts), self._writer:
            self.sock.sendall(data)

    def _read_one(self, mine: Optional[Pending] = None) -> None:
        """Read one message and pass it to whoever waits for it; `mine` is the reader's own."""
        header = self._exactly(wire.HEADER)
        message = wire.decode(header[4], self._exactly(wire.frame_size(header[:4]) - 1))
        if not isinstance(message, wire.Reply):
            self._commands.append(message)
            if self._idle is not None:
                self._idle.wake()
            return
        pending = self._pending.pop(message.call, None)
        if pending is not None:  # else its run was interrupted and nobody waits any more
            pending.reply = message
            pending.wake()
            if pending is not mine and pending.future is None:
                pending.taken.acquire(timeout=TAKEN_S)

    def _exactly(self, size: int) -> bytes:
        chunks: List[bytes] = []
        while size:
            chunk = self.sock.recv(min(size, 1 << 20))
            if not chunk:
                os._exit(0)  # the supervisor is gone
            chunks.append(chunk)
            size -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    # waiting --------------------------------------------------------------------------------------

    def command(self) -> wire.Message:
        """Wait for the next message that is not a reply; replies to background threads are delivered meanwhile."""
        with Hold(self._interrupts):
            self._idle = idle = Pending()
            self._wait(idle, lambda: bool(self._commands))
            self._idle = None
            return self._commands.popleft()

    def _wait(self, mine: Pending, ready: Any) -> None:
        try:
            while not ready():
                if self._reader.acquire(blocking=False):
                    try:
                        while not ready():
                            with LetIn(self._interrupts):
                                select([self.sock], [], [])
                            self._read_one(mine)
                    finally:
                        self._reader.release()
                else:
                    with LetIn(self._interrupts):
                        mine.lock.acquire()
        finally:
            self._hand_over(mine)

    def _hand_over(self, mine: Optional[Pending] = None) -> None:
        """Wake a waiter other than `mine`, so that it becomes the reader; waking one too many is harmless."""
        for pending in [*self._pending.values(), self._idle]:
            if pending is not None and pending is not mine and pending.future is None:
                pending.wake()
                return

    # calls ----------------------------------------------------------------------------------------

    def call(self, target: str, args: Dict[str, Any]) -> Any:
        """Ask the host for `target` and wait for its answer; raises `HostError`. Safe from any thread."""
        with Hold(self._interrupts):
            pending = Pending(target)
            number = self._start(target, args, pending)
            try:
                self._wait(pending, lambda: pending.reply is not None)
            finally:
                self._pending.pop(number, None)
                pending.taken.release()
        return _value(pending.reply)

    async def acall(self, target: str, args: Dict[str, Any]) -> Any:
        """Ask the host for `target` without blocking the event loop; raises `HostError`."""
        import asyncio

        loop = asyncio.get_running_loop()
        pending = Pending(target, loop.create_future())
        number = 0
        try:
            with Hold(self._interrupts):
                number = self._start(target, args, pending)
                self._loops[loop] = self._loops.get(loop, 0) + 1
                if self._loops[loop] == 1:
                    loop.add_reader(self.sock, self._on_readable, loop)
            return _value(await pending.future)
        finally:
            with Hold(self._interrupts):
                if number:
                    if pending.reply is None:
                        self._abandon(number)
                    self._forget(number, loop)

    def _abandon(self, call: int) -> None:
        """Tell the host that the code waits no more for the reply to `call`, so that a replay can repeat that."""
        if os.getpid() != self._pid:
            return  # a copy that code made with `fork`
        with self._ids:
            self._last_call += 1
            number = self._last_call
        self.send(wire.Call(number, self.run, wire.ABANDON, {"call": call}))

    def _forget(self, number: int, loop: Any) -> None:
        """Wait no longer for the reply to call `number` on `loop`."""
        self._pending.pop(number, None)
        self._loops[loop] -= 1
        if not self._loops[loop]:
            del self._loops[loop]
            loop.remove_reader(self.sock)
            self._hand_over()

    def _start(self, target: str, args: Dict[str, Any], pending: Pending) -> int:
        if os.getpid() != self._pid:
            raise RuntimeError("A forked process cannot call tools: call them in the main process, or use threads.")
        with self._ids:
            self._last_call += 1
            number = self._last_call
        self._pending[number] = pending
        try:
            self.send(wire.Call(number, self.run, target, args, _line_of(self.code), self._clocks.take() or None))
        except wire.WireError as exc:
            del self._pending[number]
            raise HostError("invalid_arguments", f"{target}: the arguments are not JSON data: {exc}", None) from None
        return number

    def _on_readable(self, loop: Any) -> None:
        """Read the next message, when `loop` has nothing left to do about the last one."""
        self._rounds += 1
        if getattr(loop, "_ready", None) and self._rounds < QUIET_ROUNDS:
            return  # it will call again
        self._rounds = 0
        with Hold(self._interrupts):
            if not self._reader.acquire(blocking=False):
                return  # a thread reads already
            try:
                if select([self.sock], [], [], 0)[0]:
                    self._read_one()
            finally:
                self._reader.release()
            self._hand_over()


def _value(reply: Optional[wire.Reply]) -> Any:
    assert reply is not None
    if reply.error is not None:
        error = reply.error
        raise HostError(str(error.get("kind")), str(error.get("message")), error.get("data"))
    return reply.value


def _line_of(code: str) -> Optional[int]:
    """Return the line of the executed code from which a call comes: functions of other steps have other lines."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == code:
            return frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None
