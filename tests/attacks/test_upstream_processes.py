"""The processes of upstreams end with the server, whatever ended it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.capabilities.tools.process_cgroup import create_cgroup
from tests.helpers.server_connection import connect_server, write_settings
from tests.upstreams import own_server_entry

SOON_S = 30.0  # the guardian takes one second; only a test that fails waits so long


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def skip_without_cgroups() -> None:
    cgroup = create_cgroup()
    if cgroup is None:
        pytest.skip("the tests may not make cgroups here")
    cgroup.rmdir()


async def wait_until_gone(pids: list[int]) -> None:
    with anyio.fail_after(SOON_S):
        while any(map(is_alive, pids)):  # noqa: ASYNC110 - nobody announces the end
            await anyio.sleep(0.05)


@pytest.mark.parametrize("how", ["killed", "closed"])
@pytest.mark.parametrize("mode", ["stubborn", "leaving", "daemon", "hidden", "fine"])
async def test_no_process_of_an_upstream_outlives_the_server(
    tmp_path: Path, mode: str, how: str
) -> None:
    if mode == "hidden":
        skip_without_cgroups()
    file = tmp_path / "pids"
    upstreams = {"up": own_server_entry("raw", mode, str(file))}
    settings = write_settings(tmp_path / "server", mcpServers=upstreams)
    pids: list[int] = []
    try:
        async with connect_server(settings) as server:
            assert await server.evaluate("from tools.up import grow\ngrow()") == "ok"
            pids = [int(pid) for pid in file.read_text().split()] if file.exists() else []
            assert all(map(is_alive, pids))
            if how == "killed":
                for pid in server.server_pids:
                    os.kill(pid, signal.SIGKILL)
                await wait_until_gone(pids)
    except* Exception:  # the client of a killed server fails in many ways
        if how != "killed":
            raise
    await wait_until_gone(pids)
    assert bool(pids) == (mode != "fine")
