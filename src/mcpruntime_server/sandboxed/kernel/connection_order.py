"""Numbers that let a replay tell identical web requests apart that are sent at the same time.

Connections reach the web proxy in another order each time, because threads make them, and threads
of the proxy read them. So each gets a number that follows from the name of the thread that connects
and from how many connections that thread has made in the run. The proxy reads it from the
connection's own address, which is one of 127.0.0.0/8, and adds it to its calls.

Rule: nothing depends on it but which of several identical requests gets which recorded answer. A
connection without a number works, such as one of a program that code starts.
"""

from __future__ import annotations

import os
import socket
import zlib

from ...protocol.wire import MAX_CALL_ORDER

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

LOOPBACK_NETWORK = "127"
FIRST_ORDER = 2  # 127.0.0.0 is no address, and 127.0.0.1 that of connections without a number
ORDERS = MAX_CALL_ORDER - FIRST_ORDER - 1  # 127.255.255.255 is no address


class ConnectionOrder:
    """Binds each socket that connects to the web proxy to the address that has its number."""

    def __init__(self, thread_name: Callable[[], str]) -> None:
        self._thread_name = thread_name
        self._counts: Dict[str, int] = {}  # of connections in this run, by thread
        host, _, port = os.environ["https_proxy"].rpartition("/")[2].partition(":")
        self._proxy = (host, int(port))

    def install(self) -> None:
        """Number the connections of all Python code from now on."""
        connect = socket.socket.connect

        def connect_numbered(sock: socket.socket, address: Any) -> None:
            if address == self._proxy:
                try:
                    sock.bind((self._next_address(), 0))
                except OSError:
                    pass  # it has an address, or the system has only one on this interface
            connect(sock, address)

        socket.socket.connect = connect_numbered  # type: ignore[assignment, method-assign]

    def start_run(self) -> None:
        """Count from 1 again."""
        self._counts.clear()

    def _next_address(self) -> str:
        thread = self._thread_name()
        number = self._counts[thread] = self._counts.get(thread, 0) + 1
        order = FIRST_ORDER + zlib.crc32(f"{thread}:{number}".encode()) % ORDERS
        return f"{LOOPBACK_NETWORK}.{order >> 16}.{order >> 8 & 255}.{order & 255}"


def read_order(address: str) -> int:
    """Return the number of a connection from its address; 0 if it has none."""
    order = int.from_bytes(socket.inet_aton(address)[1:], "big")
    return order if order >= FIRST_ORDER else 0
