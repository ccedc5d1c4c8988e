"""Running commands of the command line, in the test's own process or in one of their own."""

from __future__ import annotations

import io
import os
import pty
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from mcpruntime_server.cli import main

from .server_connection import COMMAND, TEST_TIMEOUT_S

CompletedCommand = subprocess.CompletedProcess[str]


class Output(io.TextIOWrapper):
    """Stands for stdout or stderr, as a pipe or as a terminal."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True, newline="")
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    @property
    def text(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


def run_command(*words: str | Path, is_terminal: bool = False, **env: Any) -> CompletedCommand:
    """Run the command line in this process, with none of the user's settings."""
    arguments = [str(word) for word in words]
    out, err = Output(is_terminal=is_terminal), Output()
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env}
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
        ThreadPoolExecutor(1) as thread,  # asynchronous tests have a running event loop in theirs
    ):
        code = thread.submit(main, arguments).result()
    return CompletedCommand(arguments, code, out.text, err.text)


def start_command(*words: str | Path) -> CompletedCommand:
    """Run the command line in a process of its own, with none of the user's settings."""
    return subprocess.run(
        [COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=TEST_TIMEOUT_S,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )


def find_complaints(stderr: str) -> list[str]:
    """Return the lines of stderr, without those of servers that a busy machine lets end late."""
    return [line for line in stderr.splitlines() if not line.endswith("stopping: SIGTERM")]


def run_on_terminal(settings: Path, *words: str, columns: int = 80, **env: str) -> str:
    """Return what a command writes to a real terminal of so many columns."""
    ours, theirs = pty.openpty()
    environ = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "TERM": "xterm",
        "COLUMNS": str(columns),
        **env,
    }
    command = [COMMAND, "--config", str(settings), *words]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 65536):
            written += piece
    except OSError:  # how a terminal ends
        pass
    os.close(ours)
    assert process.wait(TEST_TIMEOUT_S) in (0, 1)
    return written.decode()
