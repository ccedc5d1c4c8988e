"""One question to an engine on a Unix socket, without docker-py.

The import of docker-py takes a tenth of the time that a server may need to start, and the first
answer to a client depends on what the engine says of the image. Engines that are reached in any
other way are for `DockerEngine`.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ..protocol.payloads import JsonObject

DEFAULT_SOCKET = "/var/run/docker.sock"
UNIX_SCHEME = "unix://"
TIMEOUT_S = 2.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def find_socket(environ: Mapping[str, str], home: Path) -> str:
    """Return the engine's socket; "" if another address or a Docker context is in use."""
    address = environ.get("DOCKER_HOST", "")
    if address:
        path = address.removeprefix(UNIX_SCHEME)
        return path if path.startswith("/") else ""
    folder = environ.get("DOCKER_CONFIG") or os.fspath(home / ".docker")
    try:
        config = json.loads(Path(folder, "config.json").read_bytes())
        context = config.get("currentContext", "default")
    except (OSError, ValueError, AttributeError):
        context = "default"
    return DEFAULT_SOCKET if context == "default" else ""


def inspect_image(path: str, tag: str) -> JsonObject:
    """Return what the engine says of an image; nothing if it does not have it.

    This blocks. Raises `OSError`, `http.client.HTTPException` or `ValueError` if it fails.
    """
    connection = UnixConnection(path)
    try:
        connection.request("GET", f"/images/{quote(tag)}/json")
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
    finally:
        connection.close()
    found = json.loads(body) if response.status == http.client.OK else {}
    return found if isinstance(found, dict) else {}
