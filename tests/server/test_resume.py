"""Runs that outlive their server, and requests that are sent twice: nothing is done twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.shared.exceptions import MCPError

from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    ServerConnection,
    connect_server,
    write_settings,
)
from ..helpers.server_killing import (
    IDEMPOTENCY_KEY,
    KillableServer,
    ServerKilled,
    start_ready_server,
)
from .conftest import upstream_entry

META: Any = {IDEMPOTENCY_KEY: "the same"}
IMPORT = "from tools.counted import add, count, put\nimport os, time, uuid"


class World:
    """Settings of a server, and what its upstream has done."""

    def __init__(self, folder: Path) -> None:
        self.upstream = folder / "done"
        self.settings = write_settings(
            folder,
            mcpServers={"counted": upstream_entry("counted", str(self.upstream))},
            sandbox={"backend": "local", "pool_size": 0},
        )

    @property
    def done(self) -> list[str]:
        return self.upstream.read_text().splitlines() if self.upstream.exists() else []

    @property
    def held(self) -> int:
        """How many calls have hung so far."""
        path = self.upstream.with_suffix(".held")
        return len(path.read_text().splitlines()) if path.exists() else 0

    def hold(self, *, on: bool = True) -> None:
        """Make calls that ask for it hang, or release them."""
        path = self.upstream.with_suffix(".hold")
        path.touch() if on else path.unlink()

    async def die_in(
        self, code: str, session: str = "s", key: str = "k", *, calls: int = 1
    ) -> None:
        """Have a server run `code` until so many of its calls hang, and kill it."""
        self.hold()
        before = self.held
        async with start_ready_server(self.settings) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(expect_death, server, code, session, key)
            await until(lambda: self.held == before + calls)
            server.kill()
        self.hold(on=False)

    def server(self) -> AbstractAsyncContextManager[KillableServer]:
        return start_ready_server(self.settings)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes do."""
    with anyio.fail_after(TEST_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - no event signals it
            await anyio.sleep(0.01)


async def expect_death(server: KillableServer, code: str, session: str, key: str | None) -> None:
    with pytest.raises(ServerKilled):
        await server.run(code, session, key)


# what becomes of the run --------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["count", "put"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_harmless_call_under_way_is_made_again_and_finished_ones_are_not(
    world: World, tool: str, when: str
) -> None:
    code = (
        f"{IMPORT}\nwhen = time.time_ns()\nitem = uuid.uuid4().hex\nprint(item, when, flush=True)\n"
        "first = add(item=item)\nprint('half', flush=True)\n"
        f"second = {tool}(item='x', hold='{when}')\nprint('whole')\n"
        "[item, when, first.result]"
    )
    await world.die_in(code)
    async with world.server() as server:
        told = await server.run(code, "s", "k")
        assert told["status"] == "ok", str(told)
        item, when_told, _ = told["value"]
        assert told["stdout"] == f"{item} {when_told}\nhalf\nwhole\n"
        assert world.done.count(f"add {item}") == 1
        assert len(world.done) == (2 if when == "before" else 3)
        assert [line["status"] for line in told["calls"]] == ["ok", "ok"]
        assert (await server.run("[item, when, first.result]", "s"))["value"] == told["value"]


DOUBTFUL = (
    "x.append(2)\nopen('f', 'w').write('new')\nadd(item='first')\n"
    "try: r = add(item='second', hold='{}').result\nexcept tools.ToolError as e: r = e.kind\n"
    "x.append(3)\nadd(item='third')\nr"
)


@pytest.mark.parametrize(
    ("when", "answer", "value"),
    [
        ("before", "again", 1),
        ("after", {"result": {"result": 7}}, 7),
        ("before", "fail", "in_doubt"),
    ],
)
async def test_a_write_in_doubt_makes_the_run_wait_for_a_decision(
    world: World, when: str, answer: Any, value: Any
) -> None:
    async with world.server() as server:
        await server.run(f"{IMPORT}\nimport tools\nx = [1]\nopen('f', 'w').write('old')", "s")
    code = DOUBTFUL.format(when)
    await world.die_in(code)
    async with world.server() as server:
        told = await server.run(code, "s", "k")
        assert (told["status"], told["step"], "value" in told) == ("waiting", 2, False)
        [wait] = told["waiting_for"]
        assert (wait["id"], wait["kind"], wait["line"]) == ("q1", "in_doubt", 4)
        assert wait["call"] == f"counted.add(item='second', hold='{when}')"
        assert [line["status"] for line in told["calls"]] == ["ok"]
        told = await server.wait_run(told["run"], answers={"q1": answer})
        assert (told["status"], told["value"]) == ("ok", value), told
        assert (await server.run("x, open('f').read()", "s"))["value"] == [[1, 2, 3], "new"]
    second = ["add second"] if when == "after" or answer == "again" else []
    assert world.done == ["add first", *second, "add third"]


async def test_all_calls_in_doubt_are_asked_about_and_none_is_made_before(world: World) -> None:
    made = "tools.map(lambda n: add(item=f'i{n}', hold='after'), range(5))"
    code = f"{IMPORT}\nimport tools\nslots = {made}\n[slot.ok for slot in slots]"
    await world.die_in(code, calls=5)
    async with world.server() as server:
        told = await server.run(code, "s", "k")
        while len(told["waiting_for"]) < 5:  # they are made again by threads, one after the other
            told = await server.wait_run(told["run"])
        assert sorted(wait["call"] for wait in told["waiting_for"]) == [
            f"counted.add(item='i{n}', hold='after')" for n in range(5)
        ]
        told = await server.wait_run(told["run"], answers={"*": "fail"})
        assert told["value"] == [False] * 5
    assert sorted(world.done) == [f"add i{n}" for n in range(5)]


async def test_a_write_that_another_thread_makes_waits_for_the_one_in_doubt_to_be_made_again(
    world: World,
) -> None:
    code = (
        f"{IMPORT}\nimport threading\n"
        "t = threading.Thread(target=lambda: add(item='doubt', hold='before'))\n"
        "t.start()\ncount(item='x', hold='before')\nadd(item='late')\nt.join()"
    )
    await world.die_in(code, calls=2)
    async with world.server() as server:
        told = await server.run(code, "s", "k")
        assert [wait["kind"] for wait in told["waiting_for"]] == ["in_doubt"]
        told = await server.wait_run(told["run"], answers={"q1": "again"})
        assert told["status"] == "ok"
    assert sorted(line for line in world.done if line.startswith("add")) == [
        "add doubt",
        "add late",
    ]


async def test_a_question_about_a_call_in_doubt_outlives_more_deaths(world: World) -> None:
    code = f"{IMPORT}\nadd(item='first', hold='after')\n'end'"
    await world.die_in(code)
    for _ in range(5):  # more than a run may go on that kills its server
        async with world.server() as server:
            told = await server.run(code, "s", "k")
            assert [wait["id"] for wait in told["waiting_for"]] == ["q1"]
            server.kill()
    async with world.server() as server:
        told = await server.run(code, "s", "k")
        told = await server.wait_run(told["run"], answers={"q1": {"result": {"result": 0}}})
        assert told["value"] == "end"
    assert world.done == ["add first"]


async def test_a_file_that_was_exported_before_the_death_is_there_once(world: World) -> None:
    code = (
        f"{IMPORT}\nopen('x', 'w').write(uuid.uuid4().hex)\nwhere = export('x')\n"
        "count(item='x', hold='before')\n[where, export('x'), open('x').read()]"
    )
    await world.die_in(code)
    async with world.server() as server:
        told = await server.run(code, "s", "k")
    assert told["status"] == "ok", str(told)
    first, second, text = told["value"]
    assert first == second
    assert os.listdir(Path(first).parent) == ["x"]
    with open(first) as file:  # noqa: ASYNC230 - a small local file
        assert file.read() == text
    calls = [line["call"] for line in told["calls"]]
    assert calls[0] == calls[2] == f"files.export(name='x', size={len(text)}) = {first}"


async def test_calls_of_a_run_that_dies_again_and_again_are_numbered_apart(world: World) -> None:
    code = (
        f"{IMPORT}\nimport threading\n"
        "t = threading.Thread(target=lambda: [time.sleep(0.3), add(item='slow')])\n"
        "t.start()\nfor n in range(4): count(item=str(n), hold='after')\nt.join()\n"
        "add(item='end')\n'done'"
    )
    for _ in range(2):
        await world.die_in(code)
    async with world.server() as server:
        told = await server.run(code, "s", "k")
        assert (told["status"], told.get("value")) == ("ok", "done"), str(told)
    assert [world.done.count(f"add {item}") for item in ("slow", "end")] == [1, 1]


async def test_a_run_that_kills_its_server_each_time_is_given_up(world: World) -> None:
    async with world.server() as server:
        await server.run(f"{IMPORT}\nx = 1", "s")
    code = "add(item='once')\ncount(item='x', hold='before')"
    await world.die_in(f"x = 2\n{code}")
    for _ in range(3):
        world.hold()
        before = world.held
        async with world.server() as server:  # nobody asks for it
            await until(lambda before=before: world.held == before + 1)  # type: ignore[misc]
            server.kill()
        world.hold(on=False)
    async with world.server() as server:
        told = await server.run(f"x = 2\n{code}", "s", "k")
        assert (told["status"], told["error"]["type"]) == ("crashed", "ServerDied")
        assert "was resumed 3 times" in told["error"]["message"]
        assert (told["calls"][0]["call"], told["calls"][0]["status"]) == (
            "counted.add(item='once')",
            "ok",
        )
        assert (await server.run("x", "s"))["value"] == 1
    assert world.done == ["add once"]


async def test_several_sessions_continue_concurrently_after_a_crash(world: World) -> None:
    code = f"{IMPORT}\nadd(item=NAME)\ncount(item=NAME, hold='before')\nNAME"
    names = ["a", "b", "c"]
    world.hold()
    async with world.server() as server, anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(expect_death, server, f"NAME = {name!r}\n{code}", name, None)
        await until(lambda: world.held == 3)
        server.kill()
    world.hold(on=False)
    async with world.server() as server:
        for name in names:
            assert (await server.run("NAME", name))["value"] == name
    assert sorted(world.done) == [f"{tool} {name}" for tool in ("add", "count") for name in names]


# the same request twice ---------------------------------------------------------------------------


async def test_a_key_is_answered_as_before_whenever_it_comes_again(world: World) -> None:
    code = f"{IMPORT}\nprint('out')\nadd(item='x')\n1 / 0"
    async with world.server() as server:
        first = await server.run(code, "s", "k")
        again = await server.run(code, "s", "k")
        assert comparable(again) == comparable(first)
        assert (await server.run("1", "s", "other"))["step"] == 2
    async with world.server() as server:
        assert comparable(await server.run(code, "s", "k")) == comparable(first)
        server.kill()
    async with world.server() as server:
        assert comparable(await server.run(code, "s", "k")) == comparable(first)
    assert world.done == ["add x"]


def comparable(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "note"}


async def test_a_repeated_key_attaches_to_the_running_run(world: World) -> None:
    code = f"{IMPORT}\nadd(item='x')\nwhile not os.path.exists(GO): time.sleep(0.01)\n'went'"
    go = world.upstream.with_suffix(".go")
    code = f"GO = {str(go)!r}\n{code}"
    told: list[dict[str, Any]] = []

    async def ask(server: KillableServer) -> None:
        told.append(await server.run(code, "s", "k"))

    async with world.server() as server, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask, server)
        await until(lambda: bool(world.done))
        tasks.start_soon(ask, server)
        go.touch()
        await until(lambda: len(told) == 4)
        server.kill()
    assert {each["run"] for each in told} == {told[0]["run"]}
    assert world.done == ["add x"]


async def test_keys_that_come_many_at_once_execute_once_each(world: World) -> None:
    told: list[dict[str, Any]] = []

    async def ask(server: KillableServer, key: str) -> None:
        told.append(await server.run(f"{IMPORT}\nadd(item={key!r})", "s", key))

    async with world.server() as server, anyio.create_task_group() as tasks:
        for number in range(10):
            for _ in range(5):
                tasks.start_soon(ask, server, f"k{number}")
        await until(lambda: len(told) == 50)
        server.kill()
    assert sorted(world.done) == [f"add k{number}" for number in range(10)]


async def test_the_same_code_attaches_only_while_it_runs(world: World) -> None:
    go = world.upstream.with_suffix(".go")
    code = f"{IMPORT}\nadd(item='x')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    runs: list[str] = []

    async def ask(server: KillableServer) -> None:
        runs.append((await server.run(code, "s"))["run"])

    async with world.server() as server, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, server)
        await until(lambda: len(world.done) == 1)
        tasks.start_soon(ask, server)
        assert (await server.run("'between'", "t"))["value"] == "between"
        go.touch()
        await until(lambda: len(runs) == 2)
        await ask(server)
        server.kill()
    assert runs[0] == runs[1] != runs[2]
    assert world.done == ["add x", "add x"]


async def test_a_client_that_times_out_and_asks_again_attaches(world: World) -> None:
    go = world.upstream.with_suffix(".go")
    code = (
        f"{IMPORT}\nadd(item='x')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n'went'"
    )
    async with connect_server(world.settings) as server:
        await server.run(IMPORT, "s")
        with pytest.raises(MCPError, match="timed out"):
            await ask(server, code, timeout_s=1.0)
        assert world.done == ["add x"]
        go.touch()
        assert (await ask(server, code, timeout_s=TEST_TIMEOUT_S))["value"] == "went"
    assert world.done == ["add x"]


async def test_a_client_that_cancels_stops_the_run(world: World) -> None:
    code = f"{IMPORT}\nadd(item='x')\nwhile True: time.sleep(0.01)"
    async with connect_server(world.settings) as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, server, code, TEST_TIMEOUT_S)
            await until(lambda: bool(world.done))
            tasks.cancel_scope.cancel()
        assert (await server.run("'next'", "s")).value == "next"
        assert (await server.run("1", "s")).step == 3


async def ask(server: ServerConnection, code: str, timeout_s: float) -> dict[str, Any]:
    """Send a request as a client does that gives each a key and waits so long for the answer."""
    arguments = {"code": code, "session": "s"}
    result = await server.client.call_tool(
        "run_code", arguments, read_timeout_seconds=timeout_s, meta=META
    )
    data: dict[str, Any] = result.structured_content or {}
    return data
