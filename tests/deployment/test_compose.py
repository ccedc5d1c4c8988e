"""The services of compose.yaml, started as they are, with a real client. It takes minutes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from ..helpers.commands import run_command
from ..helpers.server_connection import ServerConnection, write_settings
from ..helpers.sizes import IS_LONG

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "compose-offline"
BUILD_TIMEOUT_S = 900  # with an empty cache, on a machine that does other things
START_TIMEOUT_S = 120
PROJECT = "mcpruntime-test"
TOKEN = re.compile(r"not shown again: (mcprt_\S+)")

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not IS_LONG, reason="builds images, for minutes: LONG_TESTS=1"),
    pytest.mark.skipif(not shutil.which("docker-compose"), reason="there is no docker-compose"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may use the engine"),
]


@dataclass(frozen=True)
class Services:
    """The services while they run."""

    port: int
    token: str
    environ: dict[str, str]

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, str(SCRIPT), *words]
        return subprocess.run(command, check=False, capture_output=True, env=self.environ)

    async def wait_until_ready(self) -> None:
        async with httpx2.AsyncClient() as http:
            with anyio.fail_after(START_TIMEOUT_S):
                while True:
                    try:
                        if (await http.get(f"{self.base}/readyz")).status_code == 200:
                            return
                    except httpx2.TransportError:
                        pass
                    await anyio.sleep(0.2)

    @asynccontextmanager
    async def connect(self, era: str = "auto") -> AsyncIterator[ServerConnection]:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx2.AsyncClient(headers=headers, timeout=START_TIMEOUT_S) as http:
            transport = streamable_http_client(f"{self.base}/mcp", http_client=http)
            async with Client(transport, mode=era) as client:
                yield ServerConnection(client, Path())


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {**os.environ, "PORT": str(port), "COMPOSE_PROJECT_NAME": PROJECT}
    command = [sys.executable, str(SCRIPT)]
    try:
        up = subprocess.run(
            [*command, "up"],
            check=False,
            capture_output=True,
            text=True,
            env=environ,
            timeout=BUILD_TIMEOUT_S,
        )
        assert up.returncode == 0, up.stderr
        found = TOKEN.search(up.stderr)
        assert found, up.stderr
        yield Services(port, found[1], environ)
    finally:
        down = subprocess.run([*command, "down"], check=False, capture_output=True, env=environ)
    assert down.returncode == 0, down.stderr


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_code_runs_in_a_sandbox_of_the_engine_beside(services: Services, era: str) -> None:
    await services.wait_until_ready()
    async with services.connect(era) as client:
        code = "import os, pandas\nopen('a.txt', 'w').write('kept')\n(os.getuid() > 0, 6 * 7)"
        assert await client.evaluate(code, f"first-{era}") == [True, 42]


async def test_sessions_survive_the_server_and_the_token_is_printed_once(
    services: Services,
) -> None:
    await services.wait_until_ready()
    async with services.connect() as client:
        await client.evaluate("x = 'kept'\nopen('b.txt', 'w').write(x)", "lasting")
    restarted = await anyio.to_thread.run_sync(services.compose, "restart", "server")
    assert restarted.returncode == 0, restarted.stderr
    await services.wait_until_ready()
    async with services.connect() as client:
        code = "x, open('b.txt').read()"
        assert await client.evaluate(code, "lasting") == ["kept", "kept"]
    again = await anyio.to_thread.run_sync(services.compose, "run", "--rm", "setup")
    assert again.returncode == 0, again.stderr
    assert b"mcprt_" not in again.stdout + again.stderr


async def test_a_backup_of_the_services_can_be_restored_elsewhere(
    services: Services, tmp_path: Path
) -> None:
    await services.wait_until_ready()
    async with services.connect() as client:
        await client.evaluate("y = 'moved'\nopen('c.txt', 'w').write(y)", "moving")
    words = ("exec", "-T", "server", "mcpruntime-server", "backup", "-")
    done = await anyio.to_thread.run_sync(services.compose, *words)
    assert done.returncode == 0, done.stderr
    backup = anyio.Path(tmp_path / "backup.tar")
    await backup.write_bytes(done.stdout)
    settings = write_settings(tmp_path, skills={"folder": str(tmp_path / "skills")})
    restored = await anyio.to_thread.run_sync(
        run_command, "--config", settings, "restore", str(backup)
    )
    assert restored.returncode == 0, restored.stderr
    listed = await anyio.to_thread.run_sync(
        run_command, "--config", settings, "sessions", "--principal", "admin"
    )
    assert "moving" in listed.stdout


async def test_the_server_is_no_root_and_cannot_write_beside_its_volume(
    services: Services,
) -> None:
    check = "id -u; touch /etc/x 2>/dev/null || echo read-only; ls /var/run/docker.sock 2>&1"
    words = ("exec", "-T", "server", "sh", "-c", check)
    done = await anyio.to_thread.run_sync(services.compose, *words)
    user, system, sock = done.stdout.decode().splitlines()
    assert (user, system) == ("10001", "read-only")
    assert "No such file" in sock
