"""A web server over HTTPS for measurements: `python -m bench.servers.download_server FOLDER`.

It writes the certificate of its authority into FOLDER and prints its port. `/small` is a few bytes,
`/large/MB` so many megabytes.
"""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme

HOST = "127.0.0.1"
AUTHORITY_FILE = "authority.pem"
PART = b"0123456789abcdef" * (1 << 16)  # 1 MB


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one piece
    disable_nagle_algorithm = True  # else the first answer waits 40 ms for an acknowledgement

    def do_GET(self) -> None:
        """Send what the path names."""
        _, kind, *rest = self.path.partition("?")[0].split("/")
        count = int(rest[0]) if kind == "large" else 0
        self.send_response(200)
        self.send_header("Content-Length", str(count * len(PART) or 2))
        self.end_headers()
        for _ in range(count):
            self.wfile.write(PART)
        self.wfile.write(b"" if count else b"ok")
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


class DownloadServer(ThreadingHTTPServer):
    """A server with room for many clients that connect at once."""

    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Write nothing about a client that leaves."""


@dataclass(frozen=True)
class RunningServer:
    """The address of a running server, and the authority that it is verified by."""

    url: str
    authority: Path


@contextmanager
def start_download_server(folder: Path) -> Iterator[RunningServer]:
    """Run the server in a process of its own."""
    command = [sys.executable, "-m", "bench.servers.download_server", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            yield RunningServer(f"https://{HOST}:{port}", folder / AUTHORITY_FILE)
        finally:
            process.kill()


def main(folder: Path) -> None:
    """Serve until the process is killed."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / AUTHORITY_FILE))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    with DownloadServer((HOST, 0), Handler) as server:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
