"""Claude Code in a terminal: what becomes of runs that take longer than a moment."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from tests.helpers.server_connection import COMMAND, write_settings

from .agents import AGENTS, API_KEY, BIN, PROMPT, Launch, prepare_claude, write_json
from .conftest import require_agent
from .scripted_model import ScriptedModel, serve_model

CLAUDE = AGENTS[0]
LIMIT_S = 60.0
RETYPE_S = 5.0  # what is typed before the tools are known is answered without them
TERMINAL_SIZE = struct.pack("HHHH", 50, 120, 0, 0)
RECORDED_SERVER = ('tee "$0" | "$@"',)  # a shell command that keeps what the server is sent
TURNS: list[dict[str, Any]] = [
    {"code": "import time\ntime.sleep(1.5)\n'short'"},
    {"code": "time.sleep(2)\n'waited for'", "wait_s": 30},
    {"code": "time.sleep(6)\n'late'", "wait_s": 1},
]


class Terminal:
    """The screen and the keyboard of a program."""

    def __init__(self, fd: int) -> None:
        self.screen = b""
        self._fd = fd

    def read_screen(self) -> None:
        """Read until the program has closed its end."""
        while True:
            try:
                self.screen += os.read(self._fd, 65_536)
            except OSError:
                return

    async def type_line(self, text: str) -> None:
        """Type a line, and then the return key: together they would be taken for a paste."""
        os.write(self._fd, text.encode())
        await anyio.sleep(0.3)
        os.write(self._fd, b"\r")


@asynccontextmanager
async def open_terminal(project: Path, launch: Launch) -> AsyncIterator[Terminal]:
    """Start Claude Code in a terminal of its own; leaving ends it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, TERMINAL_SIZE)
    process = await anyio.open_process(
        [str(CLAUDE.command), *launch.arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=project,
        env=launch.env,
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(ours)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, terminal.read_screen)
            try:
                yield terminal
            finally:
                process.kill()
                with anyio.CancelScope(shield=True):
                    await process.wait()
    finally:
        os.close(ours)


def prepare_interactive(folder: Path, model: ScriptedModel, seen: Path) -> tuple[Path, Launch]:
    """Return the project and the launch of an agent whose first dialogs are answered."""
    home, project = folder / "home", folder / "project"
    home.mkdir()
    project.mkdir()
    settings = write_settings(folder / "server")
    command = ["/bin/sh", "-c", *RECORDED_SERVER, str(seen), COMMAND]
    launch = prepare_claude(home, [*command, "--config", str(settings), "--stdio"], model)
    trusted = {"hasTrustDialogAccepted": True, "hasCompletedProjectOnboarding": True}
    answered = {
        "hasCompletedOnboarding": True,
        "theme": "dark",
        "customApiKeyResponses": {"approved": [API_KEY], "rejected": []},
        "projects": {str(project): trusted},
    }
    write_json(home / ".claude.json", answered)
    arguments = [each for each in launch.arguments if each not in ("--print", PROMPT)]
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(home), "TERM": "xterm-256color", **launch.env}
    return project, Launch(arguments, env)


def read_requests(seen: Path) -> list[dict[str, Any]]:
    """Return the messages that the server has been sent so far."""
    if not seen.exists():
        return []
    *lines, _ = seen.read_text().split("\n")  # the last line may not be complete
    return [json.loads(line) for line in lines]


def list_methods(seen: Path) -> list[str]:
    return [each.get("method", "") for each in read_requests(seen)]


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - another process makes it true
        await anyio.sleep(0.05)


@asynccontextmanager
async def converse(folder: Path) -> AsyncIterator[tuple[ScriptedModel, Path]]:
    """Let the agent play the script; yield the model, and the file of what the server was sent."""
    seen = folder / "seen.jsonl"
    async with serve_model(TURNS) as model:
        project, launch = prepare_interactive(folder, model, seen)
        async with open_terminal(project, launch) as terminal:
            with anyio.move_on_after(LIMIT_S) as bound:
                await wait_until(lambda: "tools/list" in list_methods(seen))
                while not model.requests:
                    await terminal.type_line(PROMPT)
                    with anyio.move_on_after(RETYPE_S):
                        await wait_until(lambda: bool(model.requests))
                await wait_until(lambda: len(model.results) == len(TURNS))
                await wait_until(lambda: "tasks/get" in list_methods(seen))
            assert not bound.cancelled_caught, terminal.screen[-4_000:].decode(errors="replace")
            yield model, seen


async def test_a_run_becomes_a_background_task_only_after_its_wait(tmp_path: Path) -> None:
    require_agent(CLAUDE)
    async with converse(tmp_path) as (model, seen):
        requests = read_requests(seen)
    short, waited, late = (result.text for result in model.results)
    assert '"value":"short"' in short.replace(" ", "")
    assert '"value":"waitedfor"' in waited.replace(" ", "")
    assert "late" not in late
    calls = [each for each in requests if each["method"] == "tools/call"]
    extensions = calls[0]["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
    assert "io.modelcontextprotocol/tasks" in extensions["extensions"]  # it would take a task
    polled = {each["params"]["taskId"] for each in requests if each["method"] == "tasks/get"}
    [task] = polled
    assert task in late
    assert task not in short + waited
