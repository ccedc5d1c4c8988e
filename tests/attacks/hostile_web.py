"""A web server whose answers are too long, too slow or no HTTP, in a process of its own.

`python -m tests.attacks.hostile_web` prints its port, and serves until its stdin is closed.
"""

from __future__ import annotations

import gzip
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import repeat
from socketserver import StreamRequestHandler, ThreadingTCPServer

from anyio.streams.text import TextReceiveStream

from tests.helpers.child_processes import start_process

STATUS = b"HTTP/1.1 200 OK\r\n"
HEAD = STATUS + b"Connection: close\r\n"
DRIP_S = 0.1
HOLD_S = 60.0


def send_forever(first: bytes, part: bytes, pause_s: float = 0.0) -> Iterator[bytes]:
    """Yield `first`, and a part again and again."""
    yield first
    for each in repeat(part):
        time.sleep(pause_s)
        yield each


def make_noise() -> Iterator[bytes]:
    """Yield an answer without end whose parts are all different."""
    yield HEAD + b"\r\n"
    while True:
        yield random.randbytes(65_536)


def hold() -> Iterator[bytes]:
    """Yield nothing for a minute."""
    time.sleep(HOLD_S)
    yield b""


def redirect() -> Iterator[bytes]:
    """Yield a redirect to the same address."""
    yield b"HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def expand() -> Iterator[bytes]:
    """Yield an answer that expands to 200 MB."""
    body = gzip.compress(b"\0" * 200_000_000, 1)
    yield HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body


ANSWERS: dict[str, Callable[[], Iterator[bytes]]] = {
    "/endless": lambda: send_forever(HEAD + b"\r\n", b"x" * 65_536),
    "/noise": make_noise,
    "/chunks": lambda: send_forever(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000
    ),
    "/headers": lambda: send_forever(STATUS, b"X: y\r\n" * 10_000),
    "/line": lambda: send_forever(STATUS[:-2], b"x" * 65_536),
    "/hints": lambda: send_forever(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1_000),
    "/drip": lambda: send_forever(HEAD + b"Content-Length: 100000\r\n\r\n", b"x", DRIP_S),
    "/drip-head": lambda: send_forever(STATUS + b"X: ", b"x", DRIP_S),
    "/held": hold,
    "/loop": redirect,
    "/bomb": expand,
    "/ok": lambda: iter([HEAD + b"Content-Length: 2\r\n\r\nok"]),
}


class Handler(StreamRequestHandler):
    """Answers one request of a connection."""

    def handle(self) -> None:
        """Send what the path of the request is answered with, as long as somebody reads."""
        with suppress(OSError, IndexError):
            path = self.rfile.readline().split()[1].decode().partition("?")[0]
            while self.rfile.readline().strip():
                pass
            for part in ANSWERS[path]():
                self.wfile.write(part)


class Server(ThreadingTCPServer):
    """Serves each connection in a thread."""

    daemon_threads = True
    request_queue_size = 256


@asynccontextmanager
async def run_hostile_web() -> AsyncIterator[str]:
    """Run the server in a process; yield its address."""
    async with start_process([sys.executable, "-m", __name__], stderr=None) as process:
        assert process.stdout is not None
        port = await TextReceiveStream(process.stdout).receive()
        yield f"http://127.0.0.1:{port.strip()}"


if __name__ == "__main__":
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
