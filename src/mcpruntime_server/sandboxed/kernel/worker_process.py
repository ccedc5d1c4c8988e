"""The live interpreter as the supervisor sees it: a process, and the socket that leads to it."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys

from ...protocol import wire

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import List, Tuple

READ_BYTES = 256 * 1024
FD_BYTES = 4
ANCILLARY_BYTES = socket.CMSG_SPACE(2 * FD_BYTES)  # `ForkParked` comes with one descriptor


class WorkerProcess:
    """Sends frames to the worker `pid` and receives bytes from it, without ever waiting for it."""

    def __init__(self, pid: int, sock: socket.socket, poller: select.poll) -> None:
        self.pid = pid
        self.sock = sock
        self.frames = wire.FrameSplitter()
        self.kill_reason = ""  # why the runtime killed it
        self._outgoing = bytearray()
        self._poller = poller
        sock.setblocking(False)
        poller.register(sock, select.POLLIN)

    def send(self, frame: bytes) -> None:
        """Send a frame, or queue what the socket does not take."""
        self._outgoing += frame
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
        events = select.POLLIN | select.POLLOUT if self._outgoing else select.POLLIN
        self._poller.modify(self.sock, events)

    def receive(self) -> Tuple[bytes, List[int]]:
        """Return the next bytes (b"" at the end) and descriptors; raises OSError without any."""
        data, ancillary, _, _ = self.sock.recvmsg(
            READ_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        descriptors: List[int] = []
        for _, kind, content in ancillary:
            if kind == socket.SCM_RIGHTS:
                descriptors += unpack_descriptors(content)
        return data, descriptors

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


def unpack_descriptors(content: bytes) -> List[int]:
    """Return the descriptors in the ancillary data of one message."""
    starts = range(0, len(content) - FD_BYTES + 1, FD_BYTES)
    return [int.from_bytes(content[at : at + FD_BYTES], sys.byteorder) for at in starts]


def close_descriptors(descriptors: List[int]) -> None:
    """Close received descriptors that were not asked for."""
    for descriptor in descriptors:
        os.close(descriptor)
