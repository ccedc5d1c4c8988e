"""MCP servers for tests: real ones, which `scripts/test-upstreams` installs, and our own.

Every server is described by a settings entry, as a user would write it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.config import UpstreamSettings
from tests.helpers.forking import forked_script

ROOT = Path(__file__).parents[2]
VENVS = ROOT / ".venvs"
FOLDER = Path(__file__).parent

PYTHON_SERVERS = {"git": "mcp-server-git", "time": "mcp-server-time", "excel": "excel-mcp-server"}
NODE_SERVERS = {
    "filesystem": "mcp-server-filesystem",
    "memory": "mcp-server-memory",
    "everything": "mcp-server-everything",
}
ARGUMENTS = {"excel": ["stdio"], "filesystem": ["{folder}"], "everything": ["stdio"]}
SDK_SCRIPTS = {  # slow to import
    *("editor", "hinted", "hostile", "lively", "orders", "paced", "painter", "shelves", "traced"),
    "web",
}
REAL_SERVERS = (*PYTHON_SERVERS, *NODE_SERVERS)


def find_executable(name: str) -> Path:
    """Return where the real server `name` is installed, or would be."""
    if name in PYTHON_SERVERS:
        return VENVS / PYTHON_SERVERS[name] / "bin" / PYTHON_SERVERS[name]
    return VENVS / "node" / "node_modules" / ".bin" / NODE_SERVERS[name]


def real_server(name: str, folder: Path, **more: Any) -> UpstreamSettings:
    """Return settings for the real server `name`, which may use `folder`.

    Skips the test if the server is not installed.
    """
    command = find_executable(name)
    if not command.exists():
        why = (
            "Node is absent"
            if name in NODE_SERVERS and not (VENVS / "node").exists()
            else "it is not installed"
        )
        pytest.skip(f"{why}: run scripts/test-upstreams to have {command.name}")
    env = {"MEMORY_FILE_PATH": str(folder / "memory.jsonl")} if name == "memory" else {}
    arguments = [argument.format(folder=folder) for argument in ARGUMENTS.get(name, [])]
    return UpstreamSettings.from_mapping(
        {"command": str(command), "args": arguments, "env": env, **more}
    )


def own_server(script: str, *arguments: str, **more: Any) -> UpstreamSettings:
    """Return settings for the server of this folder in `script` (without `.py`)."""
    return UpstreamSettings.from_mapping(own_server_entry(script, *arguments, **more))


def own_server_entry(script: str, *arguments: str, **more: Any) -> dict[str, Any]:
    """Return the server of this folder in `script` as an entry of a settings file."""
    file = FOLDER / f"{script}.py"
    command, *args = [sys.executable, str(file), *arguments]
    if script in SDK_SCRIPTS:
        command, *args = forked_script(file, *arguments)
    return {"command": command, "args": args, **more}
