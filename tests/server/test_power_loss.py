"""Servers with `durability = "disk"` whose machine is lost, or whose disk fails.

The disk keeps what was synced, and nothing else; the next server works with that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from ..helpers.failing_disks import LossyDisk, open_lossy_disk, open_thin_disk
from ..helpers.server_connection import write_settings
from ..helpers.server_killing import start_ready_server
from .conftest import upstream_entry
from .test_resume import IMPORT, World, expect_death, until


class DiskWorld(World):
    """A server whose data are on a disk that fails; what its upstream does is kept elsewhere."""

    def __init__(self, folder: Path, disk: LossyDisk) -> None:
        super().__init__(folder)
        self.disk = disk
        self.settings = write_settings(
            folder,
            server={"data_dir": str(disk.folder / "data")},
            journal={"durability": "disk"},
            mcpServers={"counted": upstream_entry("counted", str(self.upstream))},
            sandbox={"backend": "local", "pool_size": 0},
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DiskWorld]:
    with open_lossy_disk(tmp_path) as disk:
        yield DiskWorld(tmp_path, disk)


async def test_a_result_that_was_delivered_is_there_with_its_files(world: DiskWorld) -> None:
    code = "x = 7\nfor n in range(30): open(f'f{n}', 'w').write(f'kept {n}' * 100)\n'v' * 30_000"
    async with world.server() as server:
        told = await server.run(code, "s", "k")
        assert told["status"] == "ok", told
        world.disk.cut_power()
        server.kill()
    world.disk.restore_power()
    async with world.server() as server:
        again = await server.run(code, "s", "k")
        assert (again["run"], again["value"]) == (told["run"], told["value"])
        look = "x, [open(f'f{n}').read() == f'kept {n}' * 100 for n in range(30)]"
        assert (await server.run(look, "s"))["value"] == [7, [True] * 30]


async def test_a_call_that_may_write_is_known_with_all_that_came_before_it(
    world: DiskWorld,
) -> None:
    code = (
        f"{IMPORT}\nseen = count(item='read').result\nput(item=f'put {{seen}}')\n"
        "add(item='written', hold='after').result"
    )
    world.hold()
    async with start_ready_server(world.settings) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(expect_death, server, code, "s", "k")
        await until(lambda: world.held == 1)
        world.disk.cut_power()
        server.kill()
    world.hold(on=False)
    world.disk.restore_power()
    async with world.server() as server:
        told = await server.run(code, "s", "k")
        assert [wait["kind"] for wait in told["waiting_for"]] == ["in_doubt"], told
        told = await server.wait_run(told["run"], answers={"q1": {"result": {"result": 2}}})
        assert told["value"] == 2
    assert world.done == ["count read", "put put 0", "add written"]


async def test_after_a_failed_fsync_no_write_is_called_until_the_server_is_started_again(
    tmp_path: Path,
) -> None:
    with open_thin_disk(tmp_path) as disk:
        world = DiskWorld(tmp_path, disk)
        fill_log = f"{IMPORT}\nfor n in range(100): count(item=f'{{n}}'.ljust(9000))\n"
        async with world.server() as server:
            assert (await server.run(f"{IMPORT}\nx = 1", "s"))["status"] == "ok"
            disk.fill()
            told = await server.run(f"{fill_log}add(item='refused')", "s")
            check_refusal(told)
            disk.clear()
            check_refusal(await server.run("add(item='refused again')", "s"))
            server.kill()
        async with world.server() as server:
            assert (await server.run("add(item='made').result", "s"))["value"] == 100
        assert [line for line in world.done if line.startswith("add")] == ["add made"]


def check_refusal(told: dict[str, Any]) -> None:
    assert told["status"] == "error", told
    assert "add was not called: The journal" in told["error"]["message"]
    assert "could not be put on the disk: No space left on device" in told["error"]["message"]
    assert "This run could not be recorded: The journal" in told["note"]
