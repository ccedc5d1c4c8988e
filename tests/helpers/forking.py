"""How tests start servers quickly: through one fork server for each test process."""

from __future__ import annotations

import atexit
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

HELPERS = Path(__file__).parent


@cache
def fork_server_socket() -> str:
    """Return the socket of the fork server, which is started at the first use."""
    folder = tempfile.TemporaryDirectory(prefix="fork-server-")
    path = str(Path(folder.name) / "socket")
    process = subprocess.Popen(
        [sys.executable, HELPERS / "fork_server.py", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def stop() -> None:
        process.communicate()
        folder.cleanup()

    atexit.register(stop)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return path


def forked_command(*arguments: str) -> list[str]:
    """Return a command line for `mcpruntime-server ARGUMENT...`, forked."""
    client = str(HELPERS / "fork_client.py")
    return [sys.executable, "-ES", client, fork_server_socket(), *arguments]


def forked_pid(client_pid: int) -> int | None:
    """Return the process that was forked for a `fork_client.py`; None if it is not forked yet."""
    with suppress(OSError, ValueError):
        return int(Path(f"{fork_server_socket()}.{client_pid}").read_text())
    return None


def forked_script(file: Path, *arguments: str) -> list[str]:
    """Return a command line for a Python script that uses the MCP SDK, forked."""
    return forked_command("--script", str(file), *arguments)
