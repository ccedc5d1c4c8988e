"""A journal that a real server has written, and commands that read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.helpers.commands import CompletedCommand, run_command
from tests.helpers.server_connection import connect_server, write_settings
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
RunCommand = Callable[..., CompletedCommand]


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
