"""The command line, run in this process or in one of its own, on what a real server journaled."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest

from mcpruntime_server.cli import main
from tests.helpers.server_connection import COMMAND, TEST_TIMEOUT_S, connect_server, write_settings
from tests.upstreams import own_server_entry

HOSTILE_TEXT = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\u202eover\u2028"
HOSTILE_CODE = f"""\
h = {HOSTILE_TEXT!r}
print(h)
open(h.replace('\\0', ''), 'w').close()
open('f', 'a').write('two\\n')
try: lively.echo(text=h)
finally: raise ValueError(h)
"""
CompletedCommand = subprocess.CompletedProcess[str]
RunCommand = Callable[..., CompletedCommand]


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


def run_command(*words: str | Path, is_terminal: bool = False, **env: str) -> CompletedCommand:
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


def lively_entry() -> dict[str, object]:
    return own_server_entry("lively")


def write_local_settings(folder: Path) -> Path:
    return write_settings(
        folder, sandbox={"backend": "local"}, mcpServers={"lively": lively_entry()}
    )


async def record_sessions(settings: Path) -> None:
    """Use a server: a line of three steps, a line that was left, a step that died, and a fork."""
    async with connect_server(settings) as server:
        await server.run("x = 1\nprint('hello')", session="report")
        await server.run(
            "from tools import lively\nlively.echo(text='said')\nopen('f', 'w').write('one\\n')",
            session="report",
        )
        await server.run("1 / 0", session="report")
        await server.run("import os; os._exit(3)", session="report")
        await server.client.call_tool(
            "replay", {"action": "rewind", "session": "report", "step": 2}
        )
        await server.run(HOSTILE_CODE, session="report")
        await server.client.call_tool(
            "replay", {"action": "fork", "session": "report", "step": 2, "name": "try"}
        )
        await server.run("x = 2\nprint('bye')", session="try")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the settings and data of a server that has been used."""
    folder = tmp_path_factory.mktemp("used")
    anyio.run(record_sessions, write_local_settings(folder))
    return folder


@pytest.fixture
def used(template: Path, tmp_path: Path) -> Path:
    """Settings of a server of the test's own that has been used."""
    shutil.copytree(template / "data", tmp_path / "data")
    return write_local_settings(tmp_path)


@pytest.fixture
def run(used: Path) -> RunCommand:
    """Run a verb on that server's data."""
    return lambda *words, **env: run_command("--config", used, *words, **env)


def parse_json(done: CompletedCommand) -> Any:
    """Return what a verb has printed for programs."""
    assert done.stderr == ""
    return json.loads(done.stdout)
