"""The files of deploy/ are accepted by the programs that read them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from mcpruntime_server.config import load_config

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "mcpruntime-server.service"
MAX_EXPOSURE = 2.0  # of 10; `systemd-analyze security` calls less than 3 "OK"


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **env}, cwd=ROOT
    )


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
def test_systemd_accepts_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/mcpruntime/bin/mcpruntime-server", "/bin/true"))
    verified = run("systemd-analyze", "verify", str(unit))
    assert (verified.returncode, verified.stderr) == (0, "")
    threshold = f"--threshold={MAX_EXPOSURE * 10:g}"
    rated = run("systemd-analyze", "security", "--offline=true", threshold, str(unit))
    assert rated.returncode == 0, rated.stdout


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")
def test_compose_accepts_its_file() -> None:
    checked = run("docker-compose", "-f", "compose.yaml", "config", "--quiet")
    assert checked.returncode == 0, checked.stderr


def test_compose_shows_the_server_to_this_machine_alone_and_mounts_no_socket_of_it() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    volumes = [volume for service in services.values() for volume in service["volumes"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not any("docker.sock" in volume for volume in volumes)
    assert [name for name, each in services.items() if each.get("privileged")] == ["engine"]


def test_the_settings_of_the_container_are_valid() -> None:
    config = load_config(ROOT / "deploy" / "server.toml", environ={})
    assert config.http.host == "127.0.0.1"  # the command in the compose file says otherwise
