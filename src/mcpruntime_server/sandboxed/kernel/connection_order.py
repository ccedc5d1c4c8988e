"""Connections of Python code to the web proxy: their numbers, and which of them are kept.

Connections reach the web proxy in another order each time, because threads make them, and threads
of the proxy read them. So each gets a number that follows from the name of the thread that connects
and from how many connections that thread has made in the run. The proxy reads it from the
connection's own address, which is one of 127.0.0.0/8, and adds it to its calls.

Rule 1: nothing depends on a number but which of several identical requests gets which recorded
answer. A connection without a number works, such as one of a program that code starts.
Rule 2: a connection serves further requests only if nobody else could use it meanwhile: it was made
while there was one thread and no event loop. So a replay sends each request by the same one.
Rule 3: no copy of the interpreter shares a connection that is kept. Idle ones are closed before a
thread starts and at the end of each run, before it is parked. A fork loses all of them.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import threading

from ...protocol.wire import MAX_CALL_ORDER
from .thread_order import ThreadOrder

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Tuple

    Address = Tuple[str, int]

LOOPBACK_NETWORK = "127"
FIRST_ORDER = 2  # 127.0.0.0 is no address, and 127.0.0.1 that of connections without a number
ORDERS = (MAX_CALL_ORDER - FIRST_ORDER - 1) // 2  # 127.255.255.255 is no address; 1 bit: is it kept
RELEASE_REQUEST = b"RELEASE * HTTP/1.1\r\n\r\n"  # closes all idle connections and names them
RELEASE_TIMEOUT_S = 5.0  # on a loaded machine; else it takes less than a millisecond
READ_BYTES = 65536


class ConnectionOrder:
    """Binds each socket that connects to the web proxy to the address that has its number."""

    def __init__(self, thread_name: Callable[[], str]) -> None:
        self._order = ThreadOrder(thread_name)
        self._kept: Dict[Address, int] = {}  # descriptors, by the address of our end
        self._connect = socket.socket.connect
        host, _, port = os.environ["https_proxy"].rpartition("/")[2].partition(":")
        self._proxy = (host, int(port))

    def install(self) -> None:
        """Number the connections of all Python code from now on."""
        connect, start = self._connect, threading.Thread.start

        def connect_numbered(sock: socket.socket, address: Any) -> None:
            if address != self._proxy:
                connect(sock, address)
                return
            is_kept = is_alone()
            try:
                sock.bind((self._next_address(is_kept), 0))
            except OSError:
                is_kept = False  # it has an address, or the system has only one on this interface
            connect(sock, address)
            if is_kept:
                self._kept[sock.getsockname()] = sock.fileno()

        @functools.wraps(start)
        def start_without_kept(thread: threading.Thread) -> None:
            self.release()
            start(thread)

        socket.socket.connect = connect_numbered  # type: ignore[assignment, method-assign]
        threading.Thread.start = start_without_kept  # type: ignore
        os.register_at_fork(after_in_child=self._drop_all)

    def start_run(self) -> None:
        """Count from 1 again."""
        self._order.start_run()

    def release(self) -> None:
        """Close the idle connections; those that read an answer are not kept after it."""
        if not self._kept:
            return
        try:
            with socket.socket() as sock:
                sock.settimeout(RELEASE_TIMEOUT_S)
                self._connect(sock, self._proxy)
                sock.sendall(RELEASE_REQUEST)
                text = b""
                while data := sock.recv(READ_BYTES):
                    text += data
        except OSError:
            return  # the proxy is gone, and its connections are closed
        addresses = (line.split() for line in text.decode().splitlines())
        self._drop((host, int(port)) for host, port in addresses)

    def _drop_all(self) -> None:
        """Lose all connections: this is a fork, and the original may use them."""
        for address, fd in self._kept.items():
            if is_own_end(fd, address, may_have_unread=True):
                refer_to_nothing(fd)
        self._kept.clear()

    def _drop(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            fd = self._kept.pop(address, -1)
            if is_own_end(fd, address, may_have_unread=False):
                refer_to_nothing(fd)

    def _next_address(self, is_kept: bool) -> str:
        order = FIRST_ORDER + 2 * self._order.next_number(ORDERS) + is_kept
        return f"{LOOPBACK_NETWORK}.{order >> 16}.{order >> 8 & 255}.{order & 255}"


def is_own_end(fd: int, address: Address, *, may_have_unread: bool) -> bool:
    """Return whether a descriptor still is our end of a connection; code may have closed it."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.getsockname() != address:
                return False
            if may_have_unread:
                return True
            return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False


def refer_to_nothing(fd: int) -> None:
    """Let a descriptor refer to /dev/null, which libraries take for a lost connection."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


def is_alone() -> bool:
    """Return whether the calling thread is the only one, and runs no event loop."""
    loops = sys.modules.get("_asyncio") or sys.modules.get("asyncio")
    return threading.active_count() == 1 and (loops is None or loops._get_running_loop() is None)


def read_order(address: str) -> int:
    """Return the number of a connection from its address; 0 if it has none."""
    order = int.from_bytes(socket.inet_aton(address)[1:], "big")
    return order if order >= FIRST_ORDER else 0


def may_be_kept(order: int) -> bool:
    """Return whether a connection with this number may serve further requests."""
    return order >= FIRST_ORDER and bool(order & 1)


def next_order(order: int) -> int:
    """Return the number of the request that follows on a connection that is kept."""
    place = (order - FIRST_ORDER) // 2 + 1
    return FIRST_ORDER + 2 * (place % ORDERS) + (order & 1)
