"""Keeps the processes of the runtime from signals and limits that user code sends them.

All processes of a sandbox have one user id, so the Linux kernel would let code stop and kill the
parked forks, and with them what other sessions can go back to. A filter in the worker, which its
children and forks inherit and cannot remove, passes each call that may change another process to
the supervisor (a seccomp listener). The supervisor lets it continue unless its target is one of the
runtime's processes. Arguments in memory are ignored: a caller could change them later.

Rule: a call that names its target by a descriptor is forbidden, here or in `seccomp.json`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import sys

from .hello import CREDENTIALS_BYTES, INT_BYTES, close_descriptors, unpack_ancillary
from .system_calls import call_libc

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Callable, List, Optional, Set, Tuple

# what may happen to a call
ALLOW = 0x7FFF0000
ASK = 0x7FC00000  # the supervisor
FORBID = 0x00050000 | errno.EPERM


class GuardedCall:
    """A system call that may change another process, with its number by kind of processor.

    `targets` are the positions of the arguments that are process ids. If `zero_is_self`, the
    supervisor is not asked about 0. With `user_wide` as its first argument, the call changes all
    processes of a user.
    """

    def __init__(
        self,
        numbers: Tuple[int, int],
        targets: Tuple[int, ...] = (0,),
        *,
        zero_is_self: bool = False,
        user_wide: Optional[int] = None,
    ) -> None:
        self.numbers = numbers
        self.targets = targets
        self.zero_is_self = zero_is_self
        self.user_wide = user_wide


GUARDED_CALLS = (  # numbers on x86_64 and aarch64
    GuardedCall((62, 129)),  # kill
    GuardedCall((200, 130)),  # tkill
    GuardedCall((234, 131), (0, 1)),  # tgkill
    GuardedCall((129, 138)),  # rt_sigqueueinfo
    GuardedCall((297, 240), (0, 1)),  # rt_tgsigqueueinfo
    GuardedCall((141, 140), (1,), user_wide=2),  # setpriority
    GuardedCall((251, 30), (1,), user_wide=3),  # ioprio_set
    GuardedCall((302, 261), zero_is_self=True),  # prlimit64
    GuardedCall((142, 118), zero_is_self=True),  # sched_setparam
    GuardedCall((144, 119), zero_is_self=True),  # sched_setscheduler
    GuardedCall((203, 122), zero_is_self=True),  # sched_setaffinity
    GuardedCall((314, 274), zero_is_self=True),  # sched_setattr
)
# Who gets the signals of a descriptor: F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP.
FORBIDDEN_COMMANDS = (
    ((72, 25), (8, 10, 15)),  # fcntl
    ((16, 29), (0x8901, 0x8902)),  # ioctl
)

# column of the numbers, the machine as a filter sees it, and the number of `seccomp`
MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
LISTENER_BYTE = b"\n"  # comes with the listener; NO_LISTENER_BYTE without
NO_LISTENER_BYTE = b"-"
LISTENER_TIMEOUT_S = 5.0  # a process takes milliseconds even on a loaded machine

# a listener's requests and answers
RECEIVE = 0xC0502100
ANSWER = 0xC0182101
REQUEST = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, number, machine, instruction, arguments
REPLY = struct.Struct("=QqiI")  # id, value, error, flags
CONTINUE = 1

# instructions of the filter
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16


def _instruct(code: int, value: int, skip_if: int = 0, skip_unless: int = 0) -> bytes:
    return struct.pack("=HBBI", code, skip_if, skip_unless, value)


def _on(number: int, *then: bytes) -> bytes:
    """Return instructions that are executed for one call, and leave with a verdict."""
    return _instruct(JUMP_IF_EQUAL, number, 0, len(then)) + b"".join(then)


def _load_argument(position: int) -> bytes:
    return _instruct(LOAD, ARGUMENTS_AT + 8 * position)  # the lower half: these are all integers


def build_filter(machine: str) -> bytes:
    """Return the filter program for a kind of processor."""
    column, audit_number, seccomp_number = MACHINES[machine]
    program = [
        _instruct(LOAD, MACHINE_AT),
        _instruct(JUMP_IF_EQUAL, audit_number, 1, 0),
        _instruct(RETURN, FORBID),
        _instruct(LOAD, NUMBER_AT),
    ]
    program.append(_on(seccomp_number, _instruct(RETURN, FORBID)))  # nobody else needs it
    for call in GUARDED_CALLS:
        verdict = [_instruct(RETURN, ASK)]
        if call.zero_is_self:
            is_zero = _instruct(JUMP_IF_EQUAL, 0, 0, 1)
            verdict = [_load_argument(0), is_zero, _instruct(RETURN, ALLOW), *verdict]
        program.append(_on(call.numbers[column], *verdict))
    for numbers, commands in FORBIDDEN_COMMANDS:
        verdict = [_load_argument(1)]
        for command in commands:
            verdict += [_instruct(JUMP_IF_EQUAL, command, 0, 1), _instruct(RETURN, FORBID)]
        program.append(_on(numbers[column], *verdict, _instruct(RETURN, ALLOW)))
    return b"".join([*program, _instruct(RETURN, ALLOW)])


# in the worker ------------------------------------------------------------------------------------


def guard_worker(sock: socket.socket) -> None:
    """Install the filter in this process, and hand the listener to the supervisor."""
    listener = _install_filter()
    if listener < 0:
        sock.sendall(NO_LISTENER_BYTE)
        return
    rights = listener.to_bytes(INT_BYTES, sys.byteorder)
    sock.sendmsg([LISTENER_BYTE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(listener)


def _install_filter() -> int:
    """Return the listener of the filter, or -1 if the system has no such filters."""
    from array import array

    machine = os.uname().machine
    if machine not in MACHINES:
        return -1
    program = array("B", build_filter(machine))
    address, size = program.buffer_info()
    described = struct.pack("=H6xQ", size // len(_instruct(LOAD, 0)), address)
    number = MACHINES[machine][2]
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER
    return call_libc("syscall", number, SECCOMP_SET_MODE_FILTER, flags, described)


# in the supervisor --------------------------------------------------------------------------------


class ProcessGuard:
    """Answers the listeners of all workers; `list_protected` returns the runtime's processes."""

    def __init__(self, list_protected: Callable[[], Set[int]], poller: select.poll) -> None:
        self.listeners: Set[int] = set()
        self._list_protected = list_protected
        self._poller = poller
        column = MACHINES.get(os.uname().machine, (0,))[0]
        self._calls = {call.numbers[column]: call for call in GUARDED_CALLS}

    def receive_listener(self, sock: socket.socket) -> None:
        """Take the listener of a worker that starts."""
        if not select.select([sock], [], [], LISTENER_TIMEOUT_S)[0]:
            return
        ancillary_bytes = CREDENTIALS_BYTES + socket.CMSG_SPACE(INT_BYTES)
        try:
            data, ancillary, _, _ = sock.recvmsg(
                len(LISTENER_BYTE), ancillary_bytes, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return  # it is dead, which the poll loop will notice
        _, descriptors = unpack_ancillary(ancillary)
        if data != LISTENER_BYTE or len(descriptors) != 1:
            close_descriptors(descriptors)
            return
        self.listeners.add(descriptors[0])
        self._poller.register(descriptors[0], select.POLLIN)

    def close(self) -> None:
        """Close the listeners in a child of the supervisor."""
        for listener in self.listeners:
            os.close(listener)
        self.listeners.clear()

    def handle_event(self, listener: int, events: int) -> None:
        """Answer a request, or close the listener when no process needs it."""
        if not events & select.POLLIN:
            self._poller.unregister(listener)
            self.listeners.remove(listener)
            os.close(listener)
            return
        request = bytearray(REQUEST.size)
        try:
            fcntl.ioctl(listener, RECEIVE, request, True)
            request_id, _, _, number, _, _, *arguments = REQUEST.unpack(request)
            if self._is_allowed(number, arguments):
                reply = REPLY.pack(request_id, 0, 0, CONTINUE)
            else:
                reply = REPLY.pack(request_id, 0, -errno.EPERM, 0)
            fcntl.ioctl(listener, ANSWER, bytearray(reply), True)
        except OSError:
            pass  # the process that asked is dead, or was interrupted

    def _is_allowed(self, number: int, arguments: List[int]) -> bool:
        call = self._calls[number]
        if _to_signed(arguments[0]) == call.user_wide:
            return False
        targets = {abs(_to_signed(arguments[position])) for position in call.targets}
        return not targets & self._list_protected()  # a group has the number of its first process


def _to_signed(argument: int) -> int:
    """Return an argument as the kernel reads it: as a signed number of 32 bits."""
    lower = argument & 0xFFFFFFFF
    return lower - (1 << 32) if lower >> 31 else lower
