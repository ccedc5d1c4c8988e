"""Web requests of Python code in order: their numbers, and the connections that are kept for them.

Requests reach the web proxy in another order each time, because threads make them, and threads of
the proxy read them. So each has a number, which the proxy adds to its calls.

Rule 1: a library without an event loop numbers each request, in a header that ends at the proxy
(`web_libraries`). The number follows from the name of the thread and from how many requests it has
made in the run, whichever connection it uses: so threads may share connections.
Rule 2: other connections have a number, which follows from how many the thread or job has made, and
serve one request each. The proxy reads it from their address, which is one of 127.0.0.0/8. Which of
its connections an event loop takes for a request depends on when TLS was ready, which a replay does
not repeat; and it would notice only in the next run that an idle one was closed.
Rule 3: nothing depends on a number but which of several identical requests gets which recorded
answer. A connection without a number works, such as one of a program that code starts.
Rule 4: no copy of the interpreter shares a connection that is kept. Idle ones are closed at the end
of each run, before it is parked. A fork loses all of them.
"""

from __future__ import annotations

import os
import socket
import threading

from ...protocol.wire import MAX_CALL_ORDER
from .thread_order import ThreadOrder

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Tuple

    Address = Tuple[str, int]

LOOPBACK_NETWORK = "127"
FIRST_ORDER = 2  # 127.0.0.0 is no address, and 127.0.0.1 that of connections without a number
ORDERS = MAX_CALL_ORDER - FIRST_ORDER - 1  # 127.255.255.255 is no address
ORDER_HEADER = "x-sandbox-request"  # of a request, up to the proxy
RELEASE_REQUEST = b"RELEASE * HTTP/1.1\r\n\r\n"  # closes all idle connections and names them
RELEASE_TIMEOUT_S = 5.0  # on a loaded machine; else it takes less than a millisecond
READ_BYTES = 65536
MAX_KNOWN = 256  # connections, before those that code has closed are forgotten


class ConnectionOrder:
    """Numbers requests, and binds each socket that connects to the proxy to a numbered address."""

    def __init__(self, thread_name: Callable[[], str]) -> None:
        self._connections = ThreadOrder(thread_name)
        self._requests = ThreadOrder(thread_name)
        self._known: Dict[Address, int] = {}  # descriptors, by the address of our end
        self._connect = socket.socket.connect
        self.proxy = find_proxy()

    def install(self) -> None:
        """Number the connections of all Python code from now on."""
        connect = self._connect

        def connect_numbered(sock: socket.socket, address: Any) -> None:
            if address == self.proxy:
                self._bind(sock)
            connect(sock, address)

        socket.socket.connect = connect_numbered  # type: ignore[assignment, method-assign]
        os.register_at_fork(after_in_child=self._drop_all)

    def start_run(self) -> None:
        """Count from 1 again."""
        self._connections.start_run()
        self._requests.start_run()

    def next_request(self) -> int:
        """Return the number of a request that the calling thread is about to send."""
        return FIRST_ORDER + self._requests.next_number(ORDERS)

    def release(self) -> None:
        """Close the idle connections; those that read an answer are not kept after it."""
        if not self._known:
            return
        try:
            with socket.socket() as sock:
                sock.settimeout(RELEASE_TIMEOUT_S)
                self._connect(sock, self.proxy)
                sock.sendall(RELEASE_REQUEST)
                text = b""
                while data := sock.recv(READ_BYTES):
                    text += data
        except OSError:
            return  # the proxy is gone, and its connections are closed
        if threading.active_count() == 1:  # else another one may open a file in between
            addresses = (line.split() for line in text.decode().splitlines())
            self._drop((host, int(port)) for host, port in addresses)
        self._forget_closed()

    def _bind(self, sock: socket.socket) -> None:
        order = FIRST_ORDER + self._connections.next_number(ORDERS)
        try:
            sock.bind((f"{LOOPBACK_NETWORK}.{order >> 16}.{order >> 8 & 255}.{order & 255}", 0))
        except OSError:
            return  # it has an address, or the system has only one on this interface
        if len(self._known) >= MAX_KNOWN:
            self._forget_closed()
        self._known[sock.getsockname()] = sock.fileno()

    def _drop_all(self) -> None:
        """Lose all connections: this is a fork, and the original may use them."""
        for address, fd in self._known.items():
            if is_own_end(fd, address, may_have_unread=True):
                refer_to_nothing(fd)
        self._known.clear()

    def _drop(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            fd = self._known.pop(address, -1)
            if is_own_end(fd, address, may_have_unread=False):
                refer_to_nothing(fd)

    def _forget_closed(self) -> None:
        for address, fd in list(self._known.items()):
            if not is_own_end(fd, address, may_have_unread=True):
                self._known.pop(address, None)


def find_proxy() -> Address:
    """Return the address of the web proxy of this sandbox."""
    host, _, port = os.environ["https_proxy"].rpartition("/")[2].partition(":")
    return host, int(port)


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


def read_order(address: str) -> int:
    """Return the number of a connection from its address; 0 if it has none."""
    order = int.from_bytes(socket.inet_aton(address)[1:], "big")
    return order if order >= FIRST_ORDER else 0


def parse_order(text: str) -> int:
    """Return the number of a request from its header; 0 if it has none."""
    order = int(text) if text.isdecimal() and len(text) < len(str(MAX_CALL_ORDER)) + 1 else 0
    return order if FIRST_ORDER <= order < MAX_CALL_ORDER else 0
