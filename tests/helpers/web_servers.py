"""A real HTTPS server on this machine, with an authority of its own, and what it was asked."""

from __future__ import annotations

import base64
import gzip
import io
import json
import ssl
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme

HOST = "127.0.0.1"
CSV = "city,people\nOslo,709000\nBergen,291000\n"
LARGE_BYTES = 3_000_000
HUGE_BYTES = 60_000_000
BASIC_HEADER = "Basic YW5hOnBhc3M="  # ana, pass


@dataclass
class ReceivedRequest:
    """A request that the server has got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class WebServer:
    """A running server."""

    port: int
    ca_file: Path
    scheme: str = "https"
    requests: list[ReceivedRequest] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)  # answers below /held
    half_sent: threading.Event = field(default_factory=threading.Event)  # of /stalls

    @property
    def url(self) -> str:
        """The address of its root."""
        return f"{self.scheme}://{HOST}:{self.port}"

    def count(self, path: str) -> int:
        """Return how many requests there were for a path."""
        return sum(each.path == path for each in self.requests)


def zip_table() -> bytes:
    """Return an archive with the table."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(zipfile.ZipInfo("table.csv"), CSV)
    return data.getvalue()


def write_forms(secret: bytes) -> bytes:
    """Return lines that each have a form of a secret."""
    percent = "".join(f"%{each:02X}" for each in secret).encode()
    return b"\n".join((secret, percent, secret.hex().encode(), base64.b64encode(secret)))


class Handler(BaseHTTPRequestHandler):
    """Answers by path."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    web: WebServer

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""

    def handle_any(self) -> None:
        """Answer a request of any method."""
        body = self._read_body()
        received = ReceivedRequest(self.command, self.path, dict(self.headers.items()), body)
        self.web.requests.append(received)
        path = self.path.partition("?")[0]
        if path == "/table.csv":
            self._send(CSV.encode(), "text/csv")
        elif path == "/echo":
            shown = {
                "method": self.command,
                "path": self.path,
                "headers": received.headers,
                "body": body.decode("latin-1"),
                "size": len(body),
            }
            self._send(json.dumps(shown).encode(), "application/json")
        elif path == "/bytes":
            self._send(bytes(range(256)) * 4, "application/octet-stream")
        elif path == "/large":
            self._send(b"0123456789" * (LARGE_BYTES // 10), "application/octet-stream")
        elif path == "/huge":  # more than a code that leaves early lets arrive
            self._send(b"0123456789" * (HUGE_BYTES // 10), "application/octet-stream")
        elif path == "/chunked":
            self._send_chunks([b"one\n", b"two\n", b"three\n"])
        elif path == "/forms":
            data = write_forms(received.headers["Authorization"].partition(" ")[2].encode())
            self._send_chunks([data[at : at + 5] for at in range(0, len(data), 5)])
        elif path == "/cut":
            self._send_chunks([b"x" * 100_000] * 8, is_whole=False)
        elif path == "/gzip":
            data = gzip.compress(b"compressed text", mtime=0)
            self._send(data, "text/plain", ("Content-Encoding", "gzip"))
        elif path == "/redirect":
            self._send(b"", "text/plain", ("Location", "/table.csv"), status=302)
        elif path == "/away":
            self._send(b"", "text/plain", ("Location", "https://elsewhere.example/"), status=302)
        elif path == "/count":
            self._send(str(len(self.web.requests)).encode(), "text/plain")
        elif path == "/missing":
            self._send(b"there is none", "text/plain", status=404)
        elif path == "/slow":
            time.sleep(3.0)
            self._send(b"late", "text/plain")
        elif path == "/page":
            number = int(self.path.rpartition("=")[2])
            link = [("Link", f'</page?n={number + 1}>; rel="next"')] if number < 3 else []
            self._send(json.dumps([number * 10, number * 10 + 1]).encode(), "text/json", *link)
        elif path == "/flaky":  # only the third request is answered
            status = 200 if self.web.count(self.path) > 2 else 503
            self._send(b"at last", "text/plain", status=status)
        elif path == "/login":
            self._send(b"", "text/plain", ("Set-Cookie", "visit=7; Path=/"))
        elif path == "/private":
            status = 200 if received.headers.get("Authorization") == BASIC_HEADER else 401
            self._send(b"for members", "text/plain", status=status)
        elif path == "/table.zip":
            self._send(zip_table(), "application/zip")
        elif path == "/lines.json":
            self._send(b'{"n": 1}\n{"n": 2}\n', "application/jsonl")
        elif path.startswith("/held"):
            self.web.released.wait(60.0)
            self._send(b"released", "text/plain")
        elif path == "/stalls":  # the second half comes when it is released
            self.send_response(200)
            self.send_header("Content-Length", str(LARGE_BYTES))
            self.end_headers()
            for _ in range(2):
                self.wfile.write(b"0123456789" * (LARGE_BYTES // 20))
                self.wfile.flush()
                self.web.half_sent.set()
                self.web.released.wait(60.0)
        elif path == "/breaks":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
            self.wfile.flush()
            self.close_connection = True
        else:
            self._send(b"ok", "text/plain")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_any

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(
        self, body: bytes, media_type: str, *headers: tuple[str, str], status: int = 200
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _send_chunks(self, chunks: list[bytes], *, is_whole: bool = True) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in (*chunks, b"") if is_whole else chunks:
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        self.wfile.flush()
        self.close_connection = not is_whole


class QuickServer(ThreadingHTTPServer):
    """A server with room for many clients that connect at once; one that leaves is no error."""

    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Write nothing."""


@contextmanager
def run_web_server(folder: Path, *, scheme: str = "https") -> Iterator[WebServer]:
    """Run a server until the context is left; its authority is in a file in `folder`."""
    authority = trustme.CA()
    ca_file = folder / "web-authority.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    handler = type("Handler", (Handler,), {})
    with QuickServer((HOST, 0), handler) as server:
        if scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert(HOST).configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        web = handler.web = WebServer(server.server_port, ca_file, scheme)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield web
        finally:
            web.released.set()
            server.shutdown()
            thread.join()
