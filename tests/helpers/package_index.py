"""An index of packages over HTTP (PEP 503), with the wheels of a folder, which may misbehave."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DECLARED_BYTES = 2 << 30  # of a wheel that the index declares and never sends


@dataclass
class PackageIndex:
    """What an index serves, and how it lies.

    It names wrong digests for the packages in `forged`, never answers about those in `silent`, and
    declares that the wheels of those in `huge` have 2 GB.
    """

    folder: Path
    url: str = ""
    forged: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    huge: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a server that asks this index and no other, with pip."""
        own = {"PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1"}
        return {**own, "PIP_INDEX_URL": f"{self.url}/simple"}

    def list_links(self, name: str) -> bytes:
        """Return the page of a package."""
        links = []
        for path in sorted(self.folder.iterdir()):
            if path.name.partition("-")[0].replace("_", "-") == name:
                data = path.read_bytes() + (b"?" if name in self.forged else b"")
                digest = hashlib.sha256(data).hexdigest()
                link = f"/files/{path.name}#sha256={digest}"
                links.append(f'<a href="{link}">{path.name}</a>')
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()


@contextmanager
def run_package_index(folder: Path) -> Iterator[PackageIndex]:
    """Serve the wheels of a folder on this machine."""
    index = PackageIndex(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.requests.append(self.path)
            _, kind, name, *_ = self.path.split("/")
            package = name.partition("-")[0].replace("_", "-") if kind == "files" else name
            if package in index.silent:
                index.closed.wait()
                return
            if kind == "simple":
                self.answer(index.list_links(name), "text/html")
                return
            data = (folder / name).read_bytes()
            size = DECLARED_BYTES if package in index.huge else len(data)
            self.answer(data, "application/octet-stream", size)
            is_huge = package in index.huge and self.command == "GET"
            while is_huge and not index.closed.is_set():
                self.wfile.write(bytes(1 << 20))

        do_HEAD = do_GET

        def answer(self, data: bytes, media_type: str, size: int = -1) -> None:
            self.send_response(200)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(data) if size < 0 else size))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True  # the client has seen enough

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        index.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield index
        finally:
            index.closed.set()
            server.shutdown()
            thread.join()
