"""A server whose disk is full: runs fail cleanly, and sessions continue once there is space.

A limit on the size of files makes each write to the journal fail as it does on a full disk.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ..helpers.server_killing import KillableServer
from .test_resume import IMPORT, World

NOT_RECORDED = "could not be recorded"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@contextmanager
def full_disk(server: KillableServer) -> Iterator[None]:
    """Let the server write nothing meanwhile."""
    pid = server.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    yield
    with suppress(ProcessLookupError):  # it has been killed
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


async def test_no_write_is_called_that_cannot_be_journaled(world: World) -> None:
    async with world.server() as server:
        await server.run(f"{IMPORT}\nx = 1", "s")
        with full_disk(server):
            told = await server.run("add(item='unknown')", "s", "k")
            assert (told["status"], world.done) == ("error", [])
            assert "was not called" in told["error"]["message"]
            assert NOT_RECORDED in told["note"]
        assert (await server.run("add(item='known').result", "s"))["value"] == 0
        assert world.done == ["add known"]


async def test_a_session_continues_once_there_is_space_and_loses_nothing(world: World) -> None:
    async with world.server() as server:
        await server.run(f"{IMPORT}\nx = 1", "s")
        with full_disk(server):
            told = await server.run("x += 1\nopen('f', 'w').write('kept')\nx", "s", "k")
            assert (told["status"], told["value"]) == ("ok", 2)
            assert NOT_RECORDED in told["note"]
        after = await server.run("x += 1\nx", "s")
        assert (after["status"], after["value"], after["step"]) == ("ok", 3, 3)
        assert NOT_RECORDED not in after.get("note", "")
        server.kill()
    async with world.server() as server:
        again = await server.run("x += 1\nopen('f', 'w').write('kept')\nx", "s", "k")
        assert (again["value"], again["run"]) == (2, told["run"])
        assert (await server.run("x, open('f').read()", "s"))["value"] == [3, "kept"]


async def test_what_was_not_recorded_is_as_if_it_never_was_after_a_crash(world: World) -> None:
    async with world.server() as server:
        await server.run(f"{IMPORT}\nx = 1\nopen('f', 'w').write('old')", "s")
        with full_disk(server):
            told = await server.run("x = 2\nopen('f', 'w').write('new')\nx", "s")
            assert NOT_RECORDED in told["note"]
            server.kill()
    async with world.server() as server:
        after = await server.run("x, open('f').read()", "s")
        assert (after["value"], after["step"]) == ([1, "old"], 2)


async def test_a_rewind_on_a_full_disk_is_refused_and_the_session_stays_usable(
    world: World,
) -> None:
    async with world.server() as server:
        for number in range(3):
            await server.run(f"x = {number}", "s")
        with full_disk(server):
            arguments = {"action": "rewind", "session": "s", "step": 1}
            refused = await server.request("tools/call", {"name": "replay", "arguments": arguments})
            assert refused["isError"]
        assert (await server.run("x", "s"))["value"] == 2
        server.kill()
    async with world.server() as server:
        assert (await server.run("x", "s"))["value"] == 2
