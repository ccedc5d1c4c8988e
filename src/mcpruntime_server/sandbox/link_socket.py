"""A socket in a folder that a sandbox sees, so that the link need not pass through the engine.

An attached stream passes through two processes of the engine in each direction, which costs more
than the link itself. A sandbox that sees a folder of this machine connects to a socket there
instead. Where it cannot (the engine is on another machine, or its kernel or a security module
forbids it), the attached stream remains in use.

Rule 1: one connection is accepted: that of the supervisor, before any other code runs. Then the
socket is closed and its file is removed.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import UNIXSocketStream

from ..protocol.wire import LINK_FILE
from .stream import SandboxStream

ANY_USER_MODE = 0o666  # the sandbox's user is another one than the server's
HAS_LINK_SOCKETS = sys.platform == "linux"  # elsewhere, engines run in a virtual machine


class LinkSocket:
    """Listens in `folder` for one connection."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LINK_FILE
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:  # the address of a socket has at most 107 bytes, which the path of a folder may exceed
            self._socket.bind(f"/proc/self/fd/{descriptor}/{LINK_FILE}")
            self._path.chmod(ANY_USER_MODE)
            self._socket.listen(1)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(descriptor)

    async def accept(self) -> SandboxStream:
        """Wait for the connection, and close the socket."""
        await anyio.wait_readable(self._socket)
        connection, _ = self._socket.accept()
        self.close()
        try:
            return SandboxStream(await UNIXSocketStream.from_socket(connection))
        except BaseException:  # it was cancelled
            connection.close()
            raise

    def close(self) -> None:
        """Close the socket and remove its file; nobody may be waiting for a connection."""
        self._socket.close()
        with suppress(OSError):
            self._path.unlink()
