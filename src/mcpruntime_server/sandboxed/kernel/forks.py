"""Forks of the worker: parked in the state at the end of a run, and promoted later.

The worker forks an intermediate process, which forks the parked one and exits. So the parked fork
is not a child of the worker; the supervisor adopts it. The worker does not wait for the
intermediate process, but reaps it before user code can see it. A parked fork runs nothing: it waits
on its control socket, whose other end the supervisor holds, and exits when that closes. To promote
it means that it forks itself in the same way, so a checkpoint never changes.

Rule 1: what cannot exist in two processes (threads, children, pipes, locks) prevents parking.
Rule 2: a fork of the runtime runs no user code: signals are blocked, fork hooks are skipped.
Rule 3: what this module needs of `os` is bound before user code can change it.
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
from itertools import islice
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
    kill,
    listdir,
    lseek,
    open,
    pipe,
    read,
    readlink,
    setsid,
    waitid,
    waitpid,
    write,
)
from select import select
from signal import (
    SIG_IGN,
    SIG_SETMASK,
    SIGCHLD,
    SIGKILL,
    getsignal,
    pthread_sigmask,
    set_wakeup_fd,
    signal,
)
from time import perf_counter, sleep

from ...protocol import wire
from .processes import MAX_OOM_SCORE, set_oom_score

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

HELLO_BYTE = b"\n"  # a process sends it when it is ready, with its MEMORY_FILE
MEMORY_FILE = "/proc/self/smaps_rollup"  # only the process itself may open it, see `system_calls`
ORDER_BYTES = 8  # the order to promote: the number of the new worker; its socket comes with it
ALL_SIGNALS = [number for number in range(1, 65) if number not in (32, 33)]  # 32, 33: the C library
KEPT_OPEN_FLAGS = O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC
ORPHAN_POLL_S = 0.0001
LENGTH_BYTES = 4  # before each record of an observer
MAX_RECORD_BYTES = 1 << 20

# obstacles ----------------------------------------------------------------------------------------


def find_park_obstacle(runtime_descriptors: Set[int], workspace: str) -> Tuple[str, Dict[int, int]]:
    """Return why this process cannot be parked ("": it can), and the offsets of its open files."""
    offsets: Dict[int, int] = {}
    if len(listdir("/proc/self/task")) > 1:
        return "threads are running", offsets
    if reap_intermediate() and _has_children():
        return "child processes are running, or have not been waited for", offsets
    targets = _list_descriptors()
    ours = {targets.get(fd) for fd in runtime_descriptors}
    for fd, target in targets.items():
        if fd in runtime_descriptors or (target in ours and not target.startswith("anon_inode")):
            continue
        reason = _descriptor_obstacle(fd, target)
        if reason:
            return f"{reason} (descriptor {fd})", offsets
        offsets[fd] = lseek(fd, 0, SEEK_CUR)
    if _has_shared_memory(workspace):
        return "memory is shared with other processes", offsets
    return "", offsets


def _has_children() -> bool:
    try:
        waitid(P_ALL, 0, WEXITED | WNOHANG | WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _list_descriptors() -> Dict[int, str]:
    """Return what each open descriptor refers to, in the words of /proc."""
    found = {}
    for name in listdir("/proc/self/fd"):
        try:
            found[int(name)] = readlink("/proc/self/fd/" + name)
        except OSError:
            pass  # the descriptor that `listdir` used
    return found


def _descriptor_obstacle(fd: int, target: str) -> str:
    """Return why a descriptor of user code cannot be in two processes, or "".

    A second holder would keep a pipe from reaching its end of file and a lock from being released.
    """
    if not target.startswith("/"):
        kind, _, detail = target.partition(":")
        name = detail.strip("[]") if kind == "anon_inode" else kind
        return f"a {name} is open"
    if target.startswith("/memfd:"):
        return "shared memory is open"
    try:
        lseek(fd, 0, SEEK_CUR)
    except OSError:
        return "a pipe or device is open"
    return "a file is locked" if b"\nlock:" in _read_file(f"/proc/self/fdinfo/{fd}") else ""


def _has_shared_memory(workspace: str) -> bool:
    """Return whether writable memory is shared, except that of workspace files."""
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
        chunks: List[bytes] = []
        while True:
            chunk = read(fd, 1 << 16)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
    finally:
        close(fd)


# parking and promotion ----------------------------------------------------------------------------


class _ForkState:
    """Whether the runtime is forking, and the intermediate process that has not been reaped yet."""

    is_forking = False
    intermediate_pid = 0


def install_guards() -> None:
    """Hide the runtime's forks from fork hooks and from functions that wait for a child.

    Among the hooks is that of `random`, which would seed itself again in the fork.
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
    """Reap the intermediate process; return whether it is gone, which WNOHANG does not wait for."""
    if _ForkState.intermediate_pid:
        try:
            if waitpid(_ForkState.intermediate_pid, options)[0] == 0:
                return False
        except ChildProcessError:
            pass  # user code ignores SIGCHLD, so the system has reaped it
        _ForkState.intermediate_pid = 0
    return True


def park_fork(sock: Any, run_number: int, oom_score: int) -> int:
    """Park a fork of this process and tell the supervisor over `sock`.

    Raises OSError if that fails.

    Returns 0 in this process. It also returns in each process that is promoted from the fork, with
    the number of that worker; there `sock` is connected to the supervisor again.
    """
    theirs, ours = socketpair()
    theirs.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)  # the Linux kernel names the sender
    collects = gc.isenabled()
    gc.disable()  # a parked fork must not run finalisers of user code
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
    """Fork so that the supervisor becomes the parent; return whether this is the fork."""
    _ForkState.is_forking = True
    try:
        _ForkState.intermediate_pid = fork()
        if _ForkState.intermediate_pid:
            return False
        try:
            intermediate = getpid()
            if fork():
                _exit(0)
        except BaseException:  # noqa: BLE001 - the intermediate process must not continue
            _exit(1)
        while getppid() == intermediate:
            sleep(ORPHAN_POLL_S)
        return True
    finally:
        _ForkState.is_forking = False


def _drop_sigchld() -> None:
    """Discard the SIGCHLD of the intermediate process before a handler of user code gets it."""
    handler = getsignal(SIGCHLD)
    if callable(handler):
        reap_intermediate()
        signal(SIGCHLD, SIG_IGN)  # discards the pending signal
        signal(SIGCHLD, handler)


def _serve_parked_fork(control: socket, control_number: int, oom_score: int) -> int:
    """Be a parked fork; returns only in the processes that are promoted from it.

    The control socket becomes descriptor `control_number`.
    """
    try:
        setsid()
        set_oom_score(oom_score)
        dup2(control.fileno(), control_number, False)
        control.close()
        control = socket(AF_UNIX, SOCK_STREAM, 0, control_number)
        say_hello(control)
        while True:
            generation, fd = _receive_order(control)
            if _fork_detached():
                break
            reap_intermediate()
            close(fd)
        setsid()
        set_oom_score(MAX_OOM_SCORE)
        say_hello(control)
        control.detach()
        dup2(fd, control_number, False)
        close(fd)
        return generation
    except BaseException:  # noqa: BLE001 - a parked fork that fails must not continue as the worker
        _exit(wire.BROKEN_EXIT_CODE)


def say_hello(control: Any) -> None:
    """Tell the supervisor that this process is ready, and let it measure the memory."""
    try:
        memory_file = open(MEMORY_FILE, os.O_RDONLY | O_CLOEXEC)
    except OSError:  # no such file: the supervisor has none either
        control.sendall(HELLO_BYTE)
        return
    rights = memory_file.to_bytes(4, sys.byteorder)
    control.sendmsg([HELLO_BYTE], [(SOL_SOCKET, SCM_RIGHTS, rights)])
    close(memory_file)


def _receive_order(control: socket) -> Tuple[int, int]:
    """Wait for the order to promote; return the number of the new worker and its socket."""
    data, ancillary, _, _ = control.recvmsg(ORDER_BYTES, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
    if len(data) < ORDER_BYTES or not ancillary:
        _exit(0)
    return int.from_bytes(data, "big"), int.from_bytes(ancillary[0][2][:4], sys.byteorder)


# observers ----------------------------------------------------------------------------------------


def observe_in_fork(
    observe: Callable[[Callable[[bytes], None]], None], timeout_s: float, max_records: int
) -> Iterator[bytes]:
    """Yield at most so many records that `observe` writes in a fork of this process.

    They end when it ends, or has written none for `timeout_s`; then it is killed. Whatever it does,
    this process is as before. Raises OSError if it cannot be forked.
    """
    read_end, write_end = pipe()
    collects = gc.isenabled()
    gc.disable()
    mask = pthread_sigmask(SIG_SETMASK, ALL_SIGNALS)
    pid = 0
    try:
        _ForkState.is_forking = True
        try:
            pid = fork()
        finally:
            _ForkState.is_forking = False
        if not pid:
            _be_observer(observe, write_end)
        close(write_end)
        write_end = -1
        yield from islice(_read_records(read_end, timeout_s), max_records)
    finally:
        if pid:
            _end_child(pid)
        for fd in (read_end, write_end):
            if fd >= 0:
                close(fd)
        _drop_sigchld()
        pthread_sigmask(SIG_SETMASK, mask)
        if collects:
            gc.enable()


def _be_observer(observe: Callable[[Callable[[bytes], None]], None], write_end: int) -> None:
    """Run `observe` in this fork, which has no output and no finalisers; never returns."""

    def write_record(data: bytes) -> None:
        view = memoryview(len(data).to_bytes(LENGTH_BYTES, "big") + data)
        while view:
            view = view[write(write_end, view) :]

    try:
        null = open(os.devnull, os.O_RDWR)
        for fd in (1, 2):
            dup2(null, fd)
        observe(write_record)
    finally:
        _exit(0)


def _read_records(fd: int, timeout_s: float) -> Iterator[bytes]:
    """Yield what an observer writes; it is not trusted."""
    buffer = bytearray()
    deadline = perf_counter() + timeout_s
    while True:
        left_s = deadline - perf_counter()
        if left_s <= 0 or not select([fd], [], [], left_s)[0]:
            return
        data = read(fd, 1 << 16)
        if not data:
            return
        buffer += data
        while len(buffer) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(buffer[:LENGTH_BYTES], "big")
            if end > MAX_RECORD_BYTES:
                return
            if len(buffer) < end:
                break
            yield bytes(buffer[LENGTH_BYTES:end])
            del buffer[:end]
            deadline = perf_counter() + timeout_s


def _end_child(pid: int) -> None:
    """Kill a child and reap it."""
    try:
        kill(pid, SIGKILL)
        waitpid(pid, 0)
    except OSError:
        pass  # user code ignores SIGCHLD, or waits for every child


# after a promotion --------------------------------------------------------------------------------


def reopen_files(offsets: Dict[int, int]) -> None:
    """Open each file again at its offset, so that reading it in one process moves no other."""
    for fd, offset in offsets.items():
        try:
            own = open(f"/proc/self/fd/{fd}", (fcntl(fd, F_GETFL) & KEPT_OPEN_FLAGS) | O_CLOEXEC)
            dup2(own, fd, get_inheritable(fd))
            close(own)
        except OSError:
            pass  # permission is gone: it keeps the shared offset
        try:
            lseek(fd, offset, SEEK_SET)
        except OSError:
            pass


def event_loop_descriptors(loop: Any) -> Set[int]:
    """Return the descriptors that an event loop uses internally."""
    try:
        return {loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()}
    except AttributeError:
        return set()  # no loop, or one of another implementation


def renew_event_loop(loop: Any) -> None:
    """Give an event loop a new selector and wake-up pipe; all forks share the present ones."""
    if not event_loop_descriptors(loop) or loop.is_closed():
        return
    old_wakeup_fd = loop._csock.fileno()
    if hasattr(loop, "renew_selector"):
        loop.renew_selector()
    else:
        selector, loop._selector = loop._selector, type(loop._selector)()
        selector.close()
        loop._ssock.close()
        loop._csock.close()
        loop._internal_fds -= 1
        loop._make_self_pipe()
    wakeup_fd = set_wakeup_fd(-1)
    set_wakeup_fd(loop._csock.fileno() if wakeup_fd == old_wakeup_fd else wakeup_fd)
