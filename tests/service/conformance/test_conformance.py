"""The MCP conformance suite and the MCP Inspector against real servers.

`scripts/test-conformance` installs both. The suite has scenarios for fixture tools, so its server
is `server.py` of this folder; the Inspector gets the server as it is.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from ...helpers.child_processes import start_process
from ...helpers.commands import run_command
from ...helpers.http_service import open_http_service
from ...helpers.server_connection import COMMAND, TEST_TIMEOUT_S, write_settings
from ...upstreams import own_server_entry
from . import server

FOLDER = Path(__file__).parent
INSTALLED = Path(__file__).resolve().parents[3] / ".venvs" / "conformance"
BIN = INSTALLED / "node_modules" / ".bin"
REVISIONS = ("2025-11-25", "2026-07-28")
SUITE_TIMEOUT_S = 300.0
BAD = ("FAILURE", "WARNING")


@pytest.fixture(autouse=True)
def _require_installed() -> None:
    """Skip the tests, with the reason, where Node or its packages are missing."""
    missing = INSTALLED / ".missing"
    if missing.exists() or not (INSTALLED / ".installed").exists():
        reason = missing.read_text().strip() if missing.exists() else "not installed"
        pytest.skip(f"the conformance suite: {reason} (scripts/test-conformance)")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_settings(
        tmp_path,
        mcpServers={"counted": own_server_entry("counted", str(tmp_path / "done"))},
        sandbox={"backend": "local", "pool_size": 0},
        policy={"tools": {"counted.add": "ask"}},
    )


async def run_node(command: str, *arguments: str, **env: str) -> CompletedProcess[bytes]:
    """Run an installed command to its end."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    with anyio.fail_after(SUITE_TIMEOUT_S):
        return await anyio.run_process(
            [str(BIN / command), *arguments],
            check=False,
            env={**os.environ, "PATH": path, **env},
        )


@asynccontextmanager
async def serve_fixtures(settings: Path) -> AsyncIterator[str]:
    """Run the server with the fixtures, and yield its address."""
    command = ["-m", server.__name__, str(settings)]
    with (settings.parent / "log").open("wb") as log:
        async with start_process([sys.executable, *command], stderr=log) as process:
            assert process.stdout is not None
            with anyio.fail_after(TEST_TIMEOUT_S):
                line = await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 1_000)
            yield line.decode()


def read_failures(folder: Path) -> dict[str, str]:
    """Return what the suite found wrong, by scenario and check."""
    failures = {}
    for file in sorted(folder.glob("*/checks.json")):
        scenario = file.parent.name.removeprefix("server-").rsplit("-", 6)[0]
        for check in json.loads(file.read_text()):
            if check["status"] in BAD:
                failures[f"{scenario}:{check['id']}"] = str(check.get("errorMessage"))
    return failures


@pytest.mark.parametrize("revision", REVISIONS)
async def test_the_server_conforms_but_for_what_is_expected(
    tmp_path: Path, settings: Path, revision: str
) -> None:
    expected = tomllib.loads((FOLDER / "expected_failures.toml").read_text())[revision]
    token = run_command("--config", settings, "token", "create", "suite").stdout.strip()
    async with serve_fixtures(settings) as url:
        done = await run_node(
            "conformance",
            *("server", "--url", url, "--requirements", revision, "-o", str(tmp_path / "results")),
            MCP_TOKEN=token,
            NODE_OPTIONS=f"--import {FOLDER / 'bearer.mjs'}",
        )
    failures = read_failures(tmp_path / "results")
    assert failures.keys() == expected.keys(), failures
    assert done.returncode == 0, done.stdout.decode()[-2_000:]


# the Inspector ------------------------------------------------------------------------------------


async def inspect_tools(tmp_path: Path, entry: dict[str, Any], era: str) -> None:
    """Let the Inspector check the tools of a server, which is an entry of a client's settings."""
    servers = tmp_path / "mcp.json"
    servers.write_text(json.dumps({"mcpServers": {"runtime": entry}}))
    done = await run_node(
        "mcp-inspector",
        *("--cli", "--config", str(servers), "--server", "runtime", "--protocol-era", era),
        *("--method", "tools/list", "--strict", "--format", "json"),
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b": tool " not in done.stderr, done.stderr.decode()  # errors and warnings begin so
    tools = json.loads(done.stdout)["result"]["tools"]
    assert [tool["name"] for tool in tools][:2] == ["run_code", "replay"]


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_finds_nothing_over_http(
    tmp_path: Path, settings: Path, era: str
) -> None:
    async with open_http_service(settings) as service:
        headers = {"Authorization": f"Bearer {service.create_token('inspector')}"}
        entry = {"type": "streamable-http", "url": service.url, "headers": headers}
        await inspect_tools(tmp_path, entry, era)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_finds_nothing_over_stdio(
    tmp_path: Path, settings: Path, era: str
) -> None:
    entry = {"command": COMMAND, "args": ["--config", str(settings), "--stdio"]}
    await inspect_tools(tmp_path, entry, era)
