"""The live interpreter as the supervisor sees it: a process, and the socket that leads to it."""

from __future__ import annotations

import os
import select
import signal
import socket

from ...protocol import wire
from .hello import CREDENTIALS_BYTES, INT_BYTES, close_descriptors, unpack_ancillary

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

READ_BYTES = 256 * 1024
# `ForkParked` comes with one descriptor
ANCILLARY_BYTES = CREDENTIALS_BYTES + socket.CMSG_SPACE(2 * INT_BYTES)


class WorkerProcess:
    """Sends frames to the worker `pid` and receives bytes from it, without ever waiting for it.

    Other processes may have inherited the worker's end of the socket. What they write is dropped.
    """

    def __init__(self, pid: int, sock: socket.socket, poller: select.poll) -> None:
        self.pid = pid
        self.sock = sock
        self.frames = wire.FrameSplitter()
        self.kill_reason = ""  # why the runtime killed it
        self._outgoing = bytearray()
        self._is_full = False  # the socket, so that it is polled until it takes more
        self._poller = poller
        sock.setblocking(False)
        poller.register(sock, select.POLLIN)

    @property
    def queued_bytes(self) -> int:
        """The size of what it has not read yet."""
        return len(self._outgoing)

    def send(self, frame: bytes) -> None:
        """Send a frame, or queue what the socket does not take."""
        self._outgoing += frame
        if len(self._outgoing) == len(frame):  # else the socket is full
            self.flush()

    def flush(self) -> None:
        """Send what is queued, as far as the socket takes it."""
        try:
            del self._outgoing[: self.sock.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()  # the worker is dead, which the poll loop will notice
            return
        is_full = bool(self._outgoing)
        if is_full != self._is_full:
            self._is_full = is_full
            self._poller.modify(self.sock, select.POLLIN | select.POLLOUT * is_full)

    def receive(self) -> Tuple[Optional[bytes], List[int]]:
        """Return the next bytes and descriptors; raises OSError without any.

        The bytes are b"" at the end, and None if another process has written them.
        """
        data, ancillary, _, _ = self.sock.recvmsg(
            READ_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        sender, descriptors = unpack_ancillary(ancillary)
        if data and sender != self.pid and not self._has_thread(sender):
            close_descriptors(descriptors)
            return None, []
        return data, descriptors

    def _has_thread(self, sender: int) -> bool:
        """Return whether a sender is a thread of the worker: gVisor names that, not the process."""
        return os.path.exists(f"/proc/{self.pid}/task/{sender}")

    def ignore(self) -> None:
        """Stop polling the socket."""
        self._poller.modify(self.sock, 0)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in its code."""
        os.kill(self.pid, signal.SIGINT)

    def kill(self, reason: str) -> None:
        """Kill it; the poll loop notices its death."""
        self.kill_reason = reason
        os.kill(self.pid, signal.SIGKILL)

    def collect(self) -> int:
        """Wait until it is dead, close its socket, and return its exit status."""
        _, status = os.waitpid(self.pid, 0)
        self._poller.unregister(self.sock)
        self.sock.close()
        return status
