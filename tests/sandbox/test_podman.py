"""What Podman is told differently, and what `doctor` says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.sandbox import hardening, podman
from mcpruntime_server.sandbox.docker_backend import check_engine
from mcpruntime_server.sandbox.link import open_link

from .conftest import SandboxDriver, make_backend, make_setup

ENGINE_INFO = {
    "Components": [{"Name": "Podman Engine", "Version": "4.3.1"}],
    "Version": "4.3.1",
    "ApiVersion": "1.41",
    "OSType": "linux",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "KernelVersion": "6.1.0",
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
}


def make_config(**settings: Any) -> dict[str, Any]:
    return hardening.make_container_config(
        SandboxSettings(**settings), "image", ["python3", "-m", "x"], {}, {}, uid=30_000
    )


def test_the_seccomp_profile_is_in_a_file(tmp_path: Path) -> None:
    config = make_config()
    adapted = podman.adapt_config(config, tmp_path / "files")["HostConfig"]
    assert adapted["SecurityOpt"][0] == "no-new-privileges:true"
    path = Path(adapted["SecurityOpt"][1].removeprefix("seccomp="))
    assert json.loads(path.read_text()) == json.loads(hardening.load_seccomp_profile())
    again = podman.adapt_config(config, tmp_path / "files")["HostConfig"]
    assert again["SecurityOpt"] == adapted["SecurityOpt"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_folders_keep_their_sizes_and_the_workspace_its_owner(tmp_path: Path) -> None:
    config = make_config(workspace_mb=32, tmp_mb=16)
    adapted = podman.adapt_config(config, tmp_path)["HostConfig"]["Tmpfs"]
    assert adapted["/workspace"] == "rw,nosuid,nodev,exec,size=32m,notmpcopyup,U"
    assert adapted["/tmp"] == "rw,nosuid,nodev,noexec,mode=1777,size=16m,notmpcopyup"
    assert "size=4k" in adapted["/run"]
    assert "size=4k" in adapted["/var/tmp"]


def test_nothing_else_of_a_configuration_changes(tmp_path: Path) -> None:
    config = make_config()
    adapted = podman.adapt_config(config, tmp_path)
    before, after = config["HostConfig"], adapted["HostConfig"]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"SecurityOpt", "Tmpfs", "Mounts", "Ulimits"}
    assert {**adapted, "HostConfig": None} == {**config, "HostConfig": None}
    added = [limit for limit in after["Ulimits"] if limit not in before["Ulimits"]]
    assert added == [{"Name": "nproc", "Soft": before["PidsLimit"], "Hard": before["PidsLimit"]}]


def test_doctor_names_podman_and_what_is_different() -> None:
    checks = check_engine(ENGINE_INFO, "")
    assert checks[0].detail == "Podman 4.3.1, API 1.41, linux"
    (different,) = [check for check in checks if check.name == "podman"]
    assert not different.is_warning
    rootless = check_engine({**ENGINE_INFO, "Rootless": True}, "")
    (warning,) = [check for check in rootless if check.is_warning]
    assert "docs/podman.md" in warning.remedy


def test_doctor_says_how_to_add_a_runtime_that_the_engine_lacks() -> None:
    checks = check_engine({**ENGINE_INFO, "Components": [], "Runtimes": {"runc": {}}}, "runsc")
    (failing,) = [check for check in checks if not check.is_ok]
    assert failing.name == "runtime"
    assert "docs/gvisor.md" in failing.remedy


def test_the_kernel_of_gvisor_has_room_beside_the_sandbox() -> None:
    usual, larger = (make_config(runtime=each)["HostConfig"] for each in ("", "runsc"))
    assert larger["Memory"] - usual["Memory"] == hardening.GVISOR_MEMORY_MB << 20
    assert larger["PidsLimit"] > usual["PidsLimit"] * 2


# real engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["podman", "gvisor"])
async def test_doctor_finds_nothing_wrong_with_the_engine(name: str, tmp_path: Path) -> None:
    checks = await make_backend(name, tmp_path).run_checks()
    assert [check for check in checks if not check.is_ok] == []
    assert ("podman" in checks[0].detail.lower()) is (name == "podman")


@pytest.mark.parametrize("name", ["podman", "gvisor"])
async def test_what_is_closed_with_docker_is_closed_here(name: str, tmp_path: Path) -> None:
    backend = make_backend(name, tmp_path)
    async with open_link(backend, make_setup(backend)) as link:
        run = SandboxDriver(link, is_slow=True)
        code = (
            "import os, socket\n"
            "def refused(action):\n"
            "    try: action()\n"
            "    except OSError: return True\n"
            "    return False\n"
            "status = open('/proc/self/status').read()\n"
            "caps = status.partition('CapEff:')[2].split()\n"
            "{'caps': int(caps[0], 16), 'root': os.getuid() == 0,\n"
            " 'etc': refused(lambda: open('/etc/x', 'w')),\n"
            " 'run': refused(lambda: open('/run/x', 'w')),\n"
            " 'var': refused(lambda: open('/var/tmp/x', 'wb').write(bytes(1 << 20))),\n"
            " 'size': refused(lambda: open('big', 'wb').write(bytes(40 << 20))),\n"
            " 'net': refused(lambda: socket.create_connection(('10.0.0.1', 80), 2)),\n"
            " 'mount': refused(lambda: os.chroot('/tmp'))}"
        )
        done = await run(code, timeout_s=60, park=False)
        assert done.status == "ok", done.error
        assert json.loads(done.value["text"]) == {  # type: ignore[index]
            "caps": 0,
            "root": False,
            **dict.fromkeys(("etc", "run", "var", "size", "net", "mount"), True),
        }


async def test_containers_of_podman_are_removed_however_they_end(tmp_path: Path) -> None:
    backend = make_backend("podman", tmp_path)
    for _ in range(5):
        async with open_link(backend, make_setup(backend)) as link:
            with anyio.move_on_after(30):
                await SandboxDriver(link).evaluate("1")
    assert await backend.remove_orphans() == 0


def test_only_a_race_of_podman_is_tried_again() -> None:
    assert podman.is_removal_race("cannot remove container x as it could not be stopped: sending")
    assert not podman.is_removal_race("the device is busy")
