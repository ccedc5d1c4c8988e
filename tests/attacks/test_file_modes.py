"""Other users of the machine read nothing of what the server keeps, whatever its umask was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from mcp import StdioServerParameters
from mcp.client.client import Client

from tests.helpers.commands import run_command
from tests.helpers.server_connection import (
    COMMAND,
    ServerConnection,
    server_parameters,
    write_settings,
)
from tests.upstreams import own_server_entry

CODE = """\
from pathlib import Path
from tools.counted import add
item = 'pears'
add(item=item)
Path('report.txt').write_text('x' * 100_000)
export('report.txt')
knowledge.search('pears')
item * 2
"""
SHARED_BITS = 0o077
# Sandboxes read wheels as another user; nobody else may enter the folder around them.
READ_BY_SANDBOXES = "data/packages/wheels"
# by pattern, below the folder of the settings
KEPT = (
    "data",
    "data/journal.db",
    "data/blobs",
    "data/blobs/*/*",
    "data/logs",
    "data/logs/server.log",
    "data/logs/*counted*",
    "data/catalogues/*",
    "data/servers",
    "data/exports",
    "data/exports/report.txt",
    "data/knowledge-*.db",
    "data/packages",
    "tool_shims",
    "tool_shims/counted.py",
    "skills_store",
    "skills_store/.lock",
    "skills_store/kept/SKILL.md",
    "skills_store/kept/skill.toml",
    "skills_store/kept/cases/0001.json",
    "skills_store/kept/versions/1/skill.py",
)


def modes_below(folder: Path, pattern: str) -> dict[str, int]:
    """Return the permissions of the files and folders that match."""
    return {str(path): stat.S_IMODE(path.lstat().st_mode) for path in folder.glob(pattern)}


def write_open_settings(folder: Path) -> Path:
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "fruit.md").write_text("pears")
    counted = own_server_entry("counted", str(folder / "added"))
    command = ["sh", "-c", 'echo started >&2; exec "$@"', "sh", counted["command"]]
    noisy = {"command": command[0], "args": [*command[1:], *counted["args"]]}
    return write_settings(
        folder,
        sandbox={"backend": "local", "pool_size": 0},
        mcpServers={"counted": noisy},
        knowledge={"notes": {"path": str(folder / "notes")}},
    )


async def use_server(settings: Path, umask: int) -> None:
    """Start a server with a umask, and let it write all that it keeps."""
    parameters = server_parameters(settings, is_forked=False)
    command = f"umask {umask:o}; exec {COMMAND} --config {settings} --stdio"
    started = StdioServerParameters(command="sh", args=["-c", command], env=parameters.env)
    async with Client(started) as client:
        server = ServerConnection(client, settings.parent / "data")
        run = await server.run(CODE)
        assert run.data.get("status") == "ok", run.text
        await client.call_tool("save_skill", {"run": run.run, "name": "kept"})


@pytest.fixture(scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a server that anybody may read has worked."""
    folder = tmp_path_factory.mktemp("open")
    await use_server(write_open_settings(folder), 0)
    return folder


@pytest.mark.parametrize("pattern", KEPT)
async def test_only_the_user_may_read(folder: Path, pattern: str) -> None:
    modes = modes_below(folder, pattern)
    assert modes
    assert not {path: oct(mode) for path, mode in modes.items() if mode & SHARED_BITS}


async def test_nothing_else_is_left_open(folder: Path) -> None:
    for name in ("data", "tool_shims", "skills_store"):
        modes = modes_below(folder / name, "**/*")
        modes.pop(str(folder / READ_BY_SANDBOXES), None)
        assert not {path: oct(mode) for path, mode in modes.items() if mode & SHARED_BITS}


async def test_upstreams_keep_the_umask_of_the_user(folder: Path) -> None:
    assert stat.S_IMODE((folder / "added").stat().st_mode) == 0o777


async def test_folders_of_an_earlier_version_are_closed(tmp_path: Path) -> None:
    settings = write_open_settings(tmp_path)
    await use_server(settings, 0o022)
    own = [tmp_path / name for name in ("data", "tool_shims", "skills_store")]
    for path in (*own, *(tmp_path / "data").iterdir()):
        path.chmod(0o777 if path.is_dir() else 0o666)
    await use_server(settings, 0o022)
    for path in (*own, *(tmp_path / "data").iterdir()):
        assert not path.stat().st_mode & SHARED_BITS, path


async def test_folders_that_the_user_has_named_are_left_alone_and_reported(tmp_path: Path) -> None:
    shared, mixed = tmp_path / "shared", tmp_path / "mixed"
    for path in (shared, mixed):
        path.mkdir()
        path.chmod(0o755)
    (mixed / "letters").mkdir()
    settings = write_settings(
        tmp_path / "settings",
        server={"data_dir": str(mixed), "export_dir": str(shared)},
        sandbox={"backend": "local", "pool_size": 0},
        skills={"folder": str(shared)},
    )
    told = run_command("--config", settings, "doctor").stdout
    for path in (shared, mixed):
        assert f"Other users of this machine may enter {path}." in " ".join(told.split())
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE((mixed / "letters").stat().st_mode) == 0o755 & ~os.umask(os.umask(0o022))
    assert not (mixed / "servers").stat().st_mode & SHARED_BITS
