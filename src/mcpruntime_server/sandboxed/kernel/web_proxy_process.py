"""The process of the web proxy as the supervisor sees it: started on the first connection.

Rule: what it sends is trusted as little as what the worker sends. It may call the routes for web
requests, and nothing else.
"""

from __future__ import annotations

import os
import select
import socket

from ...protocol import wire
from . import processes
from .worker_process import WorkerProcess

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, List, Mapping, Optional

LOOPBACK = "127.0.0.1"
BACKLOG = 4096  # connections that wait: beyond it, the kernel resets one after a minute of load
ALLOWED_PREFIXES = ("web.", "uploads.", "downloads.")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
AUTHORITY_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)
REPLY_START = b'{"call_id":'
MAX_ID_DIGITS = 20
CALL_CODE = wire.TYPE_CODES[wire.Call]
CERTIFICATE_REQUEST_CODE = wire.TYPE_CODES[wire.CertificateRequest]


class WebProxyProcess:
    """Holds the listening socket of the proxy, and passes frames between it and the host."""

    def __init__(self, settings: Mapping[str, Any], poller: select.poll) -> None:
        self._key = str(settings["key"])
        self._poller = poller
        self._folder = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the sandbox's own
        self._process: Optional[WorkerProcess] = None
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.listener.bind((LOOPBACK, 0))
        self.listener.listen(BACKLOG)
        port = self.listener.getsockname()[1]
        self._authority_file = os.path.join(self._folder, f"web-authority-{port}.pem")
        with open(self._authority_file, "w") as file:
            file.write(str(settings["authority"]))
        self.environment = dict.fromkeys(PROXY_VARIABLES, f"http://{LOOPBACK}:{port}")
        self.environment.update(dict.fromkeys(AUTHORITY_VARIABLES, self._authority_file))
        poller.register(self.listener, select.POLLIN)

    @property
    def pid(self) -> int:
        """The process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def descriptors(self) -> List[int]:
        """The descriptors that belong to the supervisor's end."""
        own = [self.listener.fileno()]
        if self._process is not None:
            own.append(self._process.sock.fileno())
        return own

    def start(
        self, connect: Callable[[], Any], release: Callable[[], None], reap: Callable[[], Any]
    ) -> None:
        """Fork the process: code waits for it.

        `connect` makes its socket; in the process, `release` closes what is the supervisor's.
        """
        ours, theirs = connect()
        pid = processes.fork_with_retry(reap)
        if not pid:
            try:
                ours.close()
                release()
                from .web_proxy import serve_proxy

                serve_proxy(self.listener, theirs, self._key, self._folder)
            finally:
                os._exit(wire.BROKEN_EXIT_CODE)
        theirs.close()
        self._poller.unregister(self.listener)  # the process accepts
        self._process = WorkerProcess(pid, ours, self._poller)

    def forget_process(self) -> None:
        """Close what led to a process that has died; the next connection starts another one."""
        assert self._process is not None
        self._poller.unregister(self._process.sock)
        self._process.sock.close()
        self._process = None
        self._poller.register(self.listener, select.POLLIN)

    def owns_descriptor(self, fd: int) -> bool:
        """Return whether `fd` leads to the process."""
        return self._process is not None and fd == self._process.sock.fileno()

    def send(self, frame: bytes) -> None:
        """Send a frame of the host's to the process, if it still exists."""
        if self._process is not None:
            self._process.send(frame)

    def flush(self) -> None:
        """Send what is queued, as far as the socket takes it."""
        if self._process is not None:
            self._process.flush()

    def read_frames(self) -> List[Any]:
        """Return (type code, frame) of what the process sends and may send."""
        process = self._process
        if process is None:
            return []
        try:
            data, _ = process.receive()
        except OSError:
            return []
        if not data:
            if data == b"":
                process.ignore()  # it is dying, which the poll loop will notice
            return []
        try:
            frames = process.frames.feed(data)
        except wire.WireError:
            frames = [(-1, b"")]
        if all(map(is_allowed, frames)):
            return frames
        process.ignore()
        process.kill("it sent what it must not send")
        return []

    def remove_files(self) -> None:
        """Remove the file with the certificate of the authority."""
        try:
            os.unlink(self._authority_file)
        except OSError:
            pass


def is_allowed(item: Any) -> bool:
    """Return whether the proxy may send a frame."""
    type_code, frame = item
    if type_code == CERTIFICATE_REQUEST_CODE:
        return True
    if type_code != CALL_CODE:
        return False
    try:
        call = wire.decode_message(type_code, frame[wire.HEADER_BYTES :])
    except wire.WireError:
        return False
    assert isinstance(call, wire.Call)
    is_abandoned = call.target == wire.ABANDON_TARGET
    return call.call_id > wire.FIRST_PROXY_CALL_ID and (
        is_abandoned or call.target.startswith(ALLOWED_PREFIXES)
    )


def is_reply_to_proxy(frame: bytes) -> bool:
    """Return whether a `Reply` answers a call of the proxy's; the frame is not decoded."""
    start = wire.HEADER_BYTES + len(REPLY_START)
    digits = frame[start : start + MAX_ID_DIGITS].partition(b",")[0]
    return digits.isdigit() and int(digits) > wire.FIRST_PROXY_CALL_ID
