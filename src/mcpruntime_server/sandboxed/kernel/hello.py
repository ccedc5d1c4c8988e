"""How a new process introduces itself to the supervisor: who it is, and how large it is.

Rule 1: the Linux kernel says who has sent a hello (SO_PASSCRED), not the process.
Rule 2: the memory of a process is closed to the supervisor, too (`system_calls`). So the process
opens the file in which its memory is measured, and hands it over. It must be its own.
"""

from __future__ import annotations

import os
import select
import socket
import sys

from .forks import HELLO_BYTE, MEMORY_FILE

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import List, Tuple

HELLO_TIMEOUT_S = 5.0  # a process takes milliseconds even on a loaded machine
INT_BYTES = 4
CREDENTIALS_BYTES = socket.CMSG_SPACE(3 * INT_BYTES)  # process, user and group of the sender
MEMORY_REPORT_BYTES = 4096
HAS_MEMORY_FILES = os.path.exists(MEMORY_FILE)


class ProcessMemory:
    """The file in which the memory of a process is measured; -1 for none."""

    def __init__(self, descriptor: int = -1) -> None:
        self._descriptor = descriptor

    def measure(self) -> Tuple[int, int]:
        """Return the anonymous memory in bytes: the proportional share, and all of it.

        (0, 0) if the system does not tell.
        """
        found = {b"Pss_Anon:": 0, b"Anonymous:": 0}
        try:
            for line in os.pread(self._descriptor, MEMORY_REPORT_BYTES, 0).splitlines():
                name, value = line.split(None, 2)[:2]
                if name in found:
                    found[name] = int(value) * 1024
        except (OSError, ValueError):
            return 0, 0
        return found[b"Pss_Anon:"], found[b"Anonymous:"]

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def await_hello(sock: socket.socket) -> Tuple[int, ProcessMemory]:
    """Return who says hello within a timeout, and its memory; the process is 0 if nobody does."""
    select.select([sock], [], [], HELLO_TIMEOUT_S)
    try:
        return receive_hello(sock)
    except BlockingIOError:
        return 0, ProcessMemory()


def receive_hello(sock: socket.socket) -> Tuple[int, ProcessMemory]:
    """Return the process that said hello and its memory; 0 if it is gone or said something else.

    Raises BlockingIOError if it has said nothing.
    """
    ancillary_bytes = CREDENTIALS_BYTES + socket.CMSG_SPACE(INT_BYTES)
    try:
        data, ancillary, flags, _ = sock.recvmsg(
            len(HELLO_BYTE), ancillary_bytes, socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        raise
    except OSError:
        return 0, ProcessMemory()
    pid, descriptors = unpack_ancillary(ancillary)
    is_hello = data == HELLO_BYTE and not flags & socket.MSG_CTRUNC
    if is_hello and not descriptors and not HAS_MEMORY_FILES:
        return pid, ProcessMemory()
    if is_hello and len(descriptors) == 1 and _is_memory_file(descriptors[0], pid):
        return pid, ProcessMemory(descriptors[0])
    close_descriptors(descriptors)
    return 0, ProcessMemory()


def _is_memory_file(descriptor: int, pid: int) -> bool:
    """Return whether a descriptor is the memory file of a process, in the words of the kernel."""
    own_path = MEMORY_FILE.replace("self", str(pid))
    return os.readlink(f"/proc/self/fd/{descriptor}") == own_path


def unpack_ancillary(ancillary: List[Tuple[int, int, bytes]]) -> Tuple[int, List[int]]:
    """Return the process that has sent a message, and the descriptors that came with it."""
    pid = 0
    descriptors: List[int] = []
    for _, kind, content in ancillary:
        if kind == socket.SCM_CREDENTIALS:
            pid = int.from_bytes(content[:INT_BYTES], sys.byteorder)
        elif kind == socket.SCM_RIGHTS:
            starts = range(0, len(content) - INT_BYTES + 1, INT_BYTES)
            descriptors += [
                int.from_bytes(content[at : at + INT_BYTES], sys.byteorder) for at in starts
            ]
    return pid, descriptors


def close_descriptors(descriptors: List[int]) -> None:
    """Close received descriptors that were not asked for."""
    for descriptor in descriptors:
        os.close(descriptor)
