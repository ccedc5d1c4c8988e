"""Copies of the worker: parked beside it as it was at the end of a run, and woken to be the worker themselves.

Worker -> intermediate -> parked copy: the intermediate ends at once, so that the copy is no child of the worker's; the
worker does not wait for it, but collects it before any code of the user's could. A parked copy runs nothing. It waits
on its control socket, whose other end the supervisor holds; each time it is woken it copies itself in the same way, and
so stays what it is. The end of its socket is its own end.
Rule 1: what cannot be in two processes at once (threads, children, pipes, locks) keeps a worker from being parked.
Rule 2: no code of the user's runs because of a fork of ours: signals are held, hooks are passed over.
Rule 3: what is needed of `os` is bound before user code can change it.
"""

from __future__ import annotations

import gc
import os
import sys
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SO_PASSCRED,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
    socketpair,
)
from fcntl import F_GETFL, fcntl
from os import (
    O_ACCMODE,
    O_APPEND,
    O_CLOEXEC,
    O_NONBLOCK,
    O_SYNC,
    P_ALL,
    SEEK_CUR,
    SEEK_SET,
    WEXITED,
    WNOHANG,
    WNOWAIT,
    _exit,
    close,
    dup2,
    fork,
    get_inheritable,
    getpid,
    getppid,
    listdir,
    lseek,
    open,
    read,
    readlink,
    setsid,
    waitid,
    waitpid,
)
from signal import SIG_IGN, SIG_SETMASK, SIGCHLD, getsignal, pthread_sigmask, set_wakeup_fd, signal
from time import sleep

from ...protocol import wire
from .processes import MAX_OOM_SCORE, set_oom_score

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Set, Tuple

HELLO_BYTE = b"\n"  # what a copy says when it stands; the supervisor takes its process number from the socket, not from it
ORDER_BYTES = (
    8  # bytes of the order to wake: the number of the new worker; its socket comes with it
)
ALL_SIGNALS = [
    number for number in range(1, 65) if number not in (32, 33)
]  # those two are the C library's own
KEPT_OPEN_FLAGS = (
    O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC
)  # what a descriptor opened anew keeps of its flags
ORPHAN_POLL_S = 0.0001  # between two looks whether the intermediate is gone

# what can be parked -------------------------------------------------------------------------------


def find_park_obstacle(runtime_descriptors: Set[int], workspace: str) -> Tuple[str, Dict[int, int]]:
    """Return what keeps this process from being parked ("": nothing), and where it is in its open files.

    `own` are the descriptors that are the runtime's.
    """
    places: Dict[int, int] = {}
    if len(listdir("/proc/self/task")) > 1:
        return "threads are running", places
    if reap_intermediate() and _has_children():
        return "child processes are running, or have not been waited for", places
    targets = _list_descriptors()
    ours = {targets.get(fd) for fd in runtime_descriptors}
    for fd, target in targets.items():
        if fd in runtime_descriptors or (target in ours and not target.startswith("anon_inode")):
            continue
        reason = _descriptor_obstacle(fd, target)
        if reason:
            return f"{reason} (descriptor {fd})", places
        places[fd] = lseek(fd, 0, SEEK_CUR)
    return "memory is shared with other processes" if _has_shared_memory(workspace) else "", places


def _has_children() -> bool:
    try:
        waitid(P_ALL, 0, WEXITED | WNOHANG | WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _list_descriptors() -> Dict[int, str]:
    """Return what each open descriptor refers to, as the system names it."""
    found = {}
    for name in listdir("/proc/self/fd"):
        try:
            found[int(name)] = readlink("/proc/self/fd/" + name)
        except OSError:
            pass  # the one that listed them
    return found


def _descriptor_obstacle(fd: int, target: str) -> str:
    """Return why a descriptor of the code's cannot be in two processes, or nothing.

    A copy would keep the other end of a pipe from its end of file, and a lock from being free.
    """
    if not target.startswith("/"):
        kind, _, detail = target.partition(":")
        return f"a {detail.strip('[]') if kind == 'anon_inode' else kind} is open"
    if target.startswith("/memfd:"):
        return "shared memory is open"
    try:
        lseek(fd, 0, SEEK_CUR)
    except OSError:
        return "a pipe or device is open"
    return "a file is locked" if b"\nlock:" in _read_file(f"/proc/self/fdinfo/{fd}") else ""


def _has_shared_memory(workspace: str) -> bool:
    """Return whether memory that can be written is shared, other than workspace files, which are restored."""
    if "mmap" not in sys.modules:
        return False
    allowed = workspace.encode() + b"/"
    mappings = (line.split(None, 5) for line in _read_file("/proc/self/maps").splitlines())
    return any(
        mapping[1][1:4:2] == b"ws" and not mapping[-1].startswith(allowed) for mapping in mappings
    )


def _read_file(path: str) -> bytes:
    fd = open(path, os.O_RDONLY | O_CLOEXEC)
    try:
        pieces: List[bytes] = []
        while True:
            piece = read(fd, 1 << 16)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
    finally:
        close(fd)


# parking and waking -------------------------------------------------------------------------------


class _ForkState:
    """What is under way: a fork of ours, and the end of an intermediate, by its process number."""

    is_forking = False
    intermediate_pid = 0


def install_guards() -> None:
    """Keep what is done here from code of the user's: hooks that it registers for forks, and waiting for any child.

    `random` for one registers itself, and would be seeded anew in a copy.
    """
    register = os.register_at_fork

    def register_at_fork(**hooks: Any) -> None:
        register(
            **{
                name: _skip_runtime_forks(hook) if callable(hook) else hook
                for name, hook in hooks.items()
            }
        )

    os.register_at_fork = register_at_fork
    for name in ("wait", "wait3", "wait4", "waitid", "waitpid"):
        setattr(os, name, _reap_first(getattr(os, name)))


def _skip_runtime_forks(hook: Callable[[], Any]) -> Callable[[], None]:
    def call() -> None:
        if not _ForkState.is_forking:
            hook()

    return call


def _reap_first(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        reap_intermediate()
        return function(*args, **kwargs)

    call.__name__ = call.__qualname__ = function.__name__
    call.__doc__ = function.__doc__
    return call


def reap_intermediate(options: int = 0) -> bool:
    """Collect the intermediate; with WNOHANG, return whether that is done."""
    if _ForkState.intermediate_pid:
        try:
            if waitpid(_ForkState.intermediate_pid, options)[0] == 0:
                return False
        except ChildProcessError:
            pass  # the code ignores SIGCHLD, and the system has collected it
        _ForkState.intermediate_pid = 0
    return True


def park_fork(sock: Any, run_number: int, oom_score: int) -> int:
    """Park a copy of this process and tell the supervisor, which `sock` leads to; raises OSError where none can be.

    Returns 0 in this process. In each process that the copy is later woken as, which has `sock` lead to the
    supervisor anew, it returns that worker's number.
    """
    theirs, ours = socketpair()
    theirs.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)  # so that the kernel says who speaks
    collects = gc.isenabled()
    gc.disable()  # no finaliser of the code's is to run in a parked copy
    mask = pthread_sigmask(SIG_SETMASK, ALL_SIGNALS)
    try:
        if _fork_detached():
            theirs.close()
            return _serve_parked_fork(ours, sock.fileno(), oom_score)
        _announce_fork(sock, run_number, theirs)
        return 0
    finally:
        theirs.close()
        ours.close()
        _drop_sigchld()
        pthread_sigmask(SIG_SETMASK, mask)
        if collects:
            gc.enable()


def _announce_fork(sock: Any, run_number: int, theirs: socket) -> None:
    frame = wire.encode_message(wire.ForkParked(run_number))
    rights = theirs.fileno().to_bytes(4, sys.byteorder)
    sent = sock.sendmsg([frame], [(SOL_SOCKET, SCM_RIGHTS, rights)])
    sock.sendall(frame[sent:])


def _fork_detached() -> bool:
    """Copy this process so that the copy is the supervisor's child; return whether this is the copy."""
    _ForkState.is_forking = True
    try:
        _ForkState.intermediate_pid = fork()
        if _ForkState.intermediate_pid:
            return False
        try:
            intermediate = getpid()
            if fork():
                _exit(0)
        except BaseException:  # noqa: BLE001 - this process must go no further
            _exit(1)
        while getppid() == intermediate:
            sleep(ORPHAN_POLL_S)
        return True
    finally:
        _ForkState.is_forking = False


def _drop_sigchld() -> None:
    """Keep a handler of the code's from hearing of a child that was ours."""
    handler = getsignal(SIGCHLD)
    if callable(handler):
        reap_intermediate()
        signal(SIGCHLD, SIG_IGN)  # drops the signal that waits
        signal(SIGCHLD, handler)


def _serve_parked_fork(control: socket, control_number: int, oom_score: int) -> int:
    """Be a parked copy, with the control socket as descriptor `number`; returns in the copies of it that are woken."""
    try:
        setsid()
        set_oom_score(oom_score)
        dup2(control.fileno(), control_number, False)
        control.close()
        control = socket(AF_UNIX, SOCK_STREAM, 0, control_number)
        control.sendall(HELLO_BYTE)
        while True:
            generation, fd = _receive_order(control)
            if _fork_detached():
                break
            reap_intermediate()
            close(fd)
        setsid()
        set_oom_score(MAX_OOM_SCORE)
        control.sendall(HELLO_BYTE)
        control.detach()
        dup2(fd, control_number, False)
        close(fd)
        return generation
    except BaseException:  # noqa: BLE001 - a copy that fails must not go on as the worker
        _exit(wire.BROKEN_EXIT_CODE)


def _receive_order(control: socket) -> Tuple[int, int]:
    """Wait for the order to wake; return the number of the new worker and the socket that it is to have."""
    data, ancillary, _, _ = control.recvmsg(ORDER_BYTES, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
    if len(data) < ORDER_BYTES or not ancillary:
        _exit(0)
    return int.from_bytes(data, "big"), int.from_bytes(ancillary[0][2][:4], sys.byteorder)


# being the worker again ---------------------------------------------------------------------------


def reopen_files(offsets: Dict[int, int]) -> None:
    """Open each file anew where it was, so that reading on in one copy moves no other."""
    for fd, place in offsets.items():
        try:
            own = open(f"/proc/self/fd/{fd}", (fcntl(fd, F_GETFL) & KEPT_OPEN_FLAGS) | O_CLOEXEC)
            dup2(own, fd, get_inheritable(fd))
            close(own)
        except OSError:
            pass  # it may not be opened any more: what it shares has to do
        try:
            lseek(fd, place, SEEK_SET)
        except OSError:
            pass


def event_loop_descriptors(loop: Any) -> Set[int]:
    """Return the descriptors that an event loop needs for itself."""
    try:
        return {loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()}
    except AttributeError:
        return set()  # none, or of another make


def renew_event_loop(loop: Any) -> None:
    """Give an event loop a selector and a pipe to itself of its own: those that it has are shared by all copies."""
    if not event_loop_descriptors(loop) or loop.is_closed():
        return
    heard = loop._csock.fileno()
    selector, loop._selector = loop._selector, type(loop._selector)()
    selector.close()
    loop._ssock.close()
    loop._csock.close()
    loop._internal_fds -= 1
    loop._make_self_pipe()
    wakeup = set_wakeup_fd(-1)
    set_wakeup_fd(loop._csock.fileno() if wakeup == heard else wakeup)
