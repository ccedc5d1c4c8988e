"""Upstreams start in cgroups of their own, where the server may make them."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from mcpruntime_server.capabilities.tools.process_cgroup import (
    create_cgroup,
    enter_cgroup,
    find_own_cgroup,
)

from .test_stdio_client import TIMEOUT_S, child

MOUNT = "41 31 0:38 {root} {folder} rw,relatime - cgroup2 cgroup2 rw\n"
OTHER = "30 20 0:31 / /sys rw - sysfs sysfs rw\n"


@pytest.mark.parametrize(
    ("mounts", "memberships", "folder"),
    [
        (OTHER + MOUNT.format(root="/", folder="/c"), "0::/\n", "/c"),
        (MOUNT.format(root="/", folder="/c"), "3:cpu:/x\n0::/user/app\n", "/c/user/app"),
        (MOUNT.format(root="/docker/a", folder="/c"), "0::/docker/a/b\n", "/c/b"),
        (MOUNT.format(root="/docker/a", folder="/c"), "0::/docker/ab\n", None),
        (MOUNT.format(root="/", folder="/c"), "3:cpu:/x\n", None),
        (OTHER, "0::/\n", None),
        ("", "", None),
    ],
)
def test_the_cgroup_of_a_process_is_found(
    mounts: str, memberships: str, folder: str | None
) -> None:
    assert find_own_cgroup(mounts, memberships) == (folder and Path(folder))


def test_a_command_that_cannot_be_executed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").touch(mode=0o600)
    for name, error in (("no-such-command", FileNotFoundError), ("./no", FileNotFoundError)):
        with pytest.raises(error, match="No such file"):
            enter_cgroup(tmp_path, [name], {}, tmp_path)
    with pytest.raises(PermissionError):
        enter_cgroup(tmp_path, ["./text"], {}, tmp_path)


async def test_a_process_is_in_its_cgroup_which_ends_with_it(tmp_path: Path) -> None:
    cgroup = create_cgroup()
    if cgroup is None:
        pytest.skip("the tests may not make cgroups here")
    cgroup.rmdir()
    async with child(tmp_path, "sh", "-c", "cat /proc/self/cgroup > entered; cat") as (_, writer):
        with anyio.fail_after(TIMEOUT_S):
            while not (tmp_path / "entered").exists():  # noqa: ASYNC110
                await anyio.sleep(0.01)
        del writer
    [entered] = (
        line.rpartition("/")[2]
        for line in (tmp_path / "entered").read_text().splitlines()
        if line.startswith("0::")
    )
    assert entered.startswith("mcpruntime-upstream-")
    assert not (cgroup.parent / entered).exists()


async def test_a_cgroup_that_cannot_be_entered_stops_no_command(tmp_path: Path) -> None:
    command = enter_cgroup(tmp_path / "nowhere", ["sh", "-c", "echo run > done"], {}, tmp_path)
    async with child(tmp_path, *command):
        pass
    assert (tmp_path / "done").read_text() == "run\n"
    assert (tmp_path / "stderr").read_text() == ""
