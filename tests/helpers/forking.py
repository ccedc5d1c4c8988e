"""How tests start servers quickly: through one fork server for each test process."""

from __future__ import annotations

import atexit
import os
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
        [sys.executable, "-m", "tests.helpers.fork_server", path],
        cwd=HELPERS.parents[1],
        env=fork_server_environment(),
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


def stalls_file(pid: int) -> Path:
    """Return where a forked server records how long its event loop served nobody."""
    return Path(f"{fork_server_socket()}.{pid}.stalls")


def fork_server_environment() -> dict[str, str]:
    """Return an environment in which the fork server imports the code that tests are to run."""
    source = os.environ.get("ATTACKED_SOURCE")  # the `src` of an older version, say
    return {**os.environ, **({"PYTHONPATH": source} if source else {})}


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
