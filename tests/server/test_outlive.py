"""Runs that outlive the requests that look at them, and the servers that execute them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import MCPError

from ..helpers.server_connection import TEST_TIMEOUT_S, ToolAnswer, connect_server, parse_answer
from ..helpers.server_killing import (
    IDEMPOTENCY_KEY,
    KillableServer,
    ServerKilled,
    start_ready_server,
)
from .test_approvals import ERAS, IMPORT, World, attach

pytestmark = pytest.mark.alone

GIVES_UP_S = 1.0  # client timeout of a request; REQUEST_S=60 RUN_S=600 is the real case
REQUEST_S = float(os.environ.get("REQUEST_S", str(GIVES_UP_S)))
RUN_S = float(os.environ.get("RUN_S", "6"))
PRINTS = 4  # of the long run
SLOWLY = "import time\nfor i in range({n}):\n    print(i, flush=True)\n    time.sleep({s})\n'end'"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def gate(folder: Path) -> str:
    """Return code that waits for the file `go` in `folder`; only unisolated code can see it."""
    return f"import os, time\nwhile not os.path.exists({str(folder / 'go')!r}): time.sleep(0.02)\n"


# attaching ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
async def test_a_background_run_returns_at_once_and_attaching_delivers_updates(
    world: World, tmp_path: Path, era: str
) -> None:
    code = f"print('first', flush=True)\n{gate(tmp_path)}print('second')\n42"
    async with world.client(mode=era) as connection:
        told = await connection.run(code, session="s", background=True)
        assert told.status in ("queued", "running")
        run = told.run
        printed = told.data.get("stdout", "")
        while not printed:
            told = await attach(connection.client, run, wait_s=0.1)
            printed += told.data.get("stdout", "")
        assert printed == "first\n"
        still = await attach(connection.client, run, wait_s=0.2)
        assert (still.status, "stdout" in still.data) == ("running", False)
        (tmp_path / "go").touch()
        ended = await attach(connection.client, run)
        while ended.status == "running":
            ended = await attach(connection.client, run)
        assert (ended.status, ended.value) == ("ok", 42)
        assert "second" in ended.stdout or "second" in still.text
        assert "first" not in ended.stdout
        again = await attach(connection.client, run)  # of a run that is over all is told
        assert (again.status, again.value, again.stdout) == ("ok", 42, "first\nsecond\n")


async def test_a_request_returns_after_its_wait_and_the_run_continues(
    world: World, tmp_path: Path
) -> None:
    async with world.client() as connection:
        await connection.run("1", session="s")  # so that the next begins at once
        told = await connection.run(f"{gate(tmp_path)}'end'", session="s", wait_s=0.5)
        assert (told.status, told.note) == (
            "running",
            f"run_code(run='{told.run}') waits for more.",
        )
        (tmp_path / "go").touch()
        assert (await attach(connection.client, told.run)).value == "end"


async def test_progress_continues_while_attached(world: World, tmp_path: Path) -> None:
    heard: list[str] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")
        (tmp_path / "go").touch()

    code = (
        f"print('first', flush=True)\n{gate(tmp_path)}print('second', flush=True)\ntime.sleep(0.2)"
    )
    async with world.client() as connection:
        told = await connection.run(code, background=True)
        while told.status != "ok":
            result = await connection.client.call_tool(
                "run_code", {"run": told.run}, progress_callback=listen
            )
            told = parse_answer(result)
    assert "second" in "\n".join(heard) or "second" in told.stdout
    assert heard


async def test_runs_of_a_session_queue_and_those_of_others_do_not(
    world: World, tmp_path: Path
) -> None:
    async with world.client() as connection:
        first = await connection.run(f"{gate(tmp_path)}x = 1", session="s", background=True)
        second = await connection.run("x += 1", session="s", background=True)
        third = await connection.run("x += 1; x", session="s", wait_s=0.1)
        assert (second.status, third.status) == ("queued", "queued")
        assert "2 runs of this session come first." in third.note
        assert await connection.evaluate("'other'", session="other") == "other"
        (tmp_path / "go").touch()
        assert (await attach(connection.client, third.run)).value == 3
        assert [(await attach(connection.client, each.run)).status for each in (first, second)] == [
            "ok",
            "ok",
        ]


async def test_the_limits_on_runs_are_enforced_and_reported(world: World, tmp_path: Path) -> None:
    text = world.settings.read_text()
    world.settings.write_text(
        text.replace("[server]", "[server]\nmax_runs = 4\nmax_runs_per_principal = 2")
    )
    async with world.client() as connection:
        runs = [
            await connection.run(f"{gate(tmp_path)}{n}", session=f"s{n}", background=True)
            for n in range(5)
        ]
        told = [await attach(connection.client, each.run, wait_s=0.3) for each in runs]
        assert [each.status for each in told] == [
            "running",
            "running",
            "queued",
            "queued",
            "queued",
        ]
        assert "2 other runs come first." in told[4].note
        (tmp_path / "go").touch()
        assert [await value_of(connection.client, each.run) for each in runs] == list(range(5))


async def value_of(client: Any, run: str) -> Any:
    """Return the value of a run, when it is over."""
    while (told := await attach(client, run)).status in ("queued", "running"):
        pass
    return told.data.get("value")


# cancelling ---------------------------------------------------------------------------------------


async def test_runs_are_cancelled_by_their_ids(world: World, tmp_path: Path) -> None:
    async with world.client() as connection:
        await connection.run("x = 0", session="s")
        running = await connection.run(f"x = 1\n{gate(tmp_path)}", session="s", background=True)
        queued = await connection.run("x = 2", session="s", background=True)
        assert (await attach(connection.client, queued.run, cancel=True)).status == "cancelled"
        assert (await attach(connection.client, running.run, cancel=True)).status == "cancelled"
        assert (await attach(connection.client, queued.run)).status == "cancelled"
        for each in (running, queued):
            again = await attach(connection.client, each.run, cancel=True)
            assert again.text.startswith("[invalid_request] ")
        assert [step["run"] for step in (await connection.replay("list", "s")).steps][1:] == [
            running.run
        ]
        assert await connection.evaluate("x", session="s") == 1


@pytest.mark.parametrize("era", ERAS)
async def test_a_reader_that_gives_up_takes_no_background_run_with_it(
    world: World, tmp_path: Path, era: str
) -> None:
    async with world.client(mode=era) as connection:
        told = await connection.run(f"{gate(tmp_path)}'end'", background=True)
        for _ in range(3):
            with anyio.move_on_after(0.2):
                await attach(connection.client, told.run)
        (tmp_path / "go").touch()
        assert await value_of(connection.client, told.run) == "end"


async def test_a_long_run_under_a_client_that_gives_up_early(world: World) -> None:
    code = SLOWLY.format(n=PRINTS, s=RUN_S / PRINTS)
    begun, given_up = time.monotonic(), 0
    async with world.client(
        read_timeout_seconds=REQUEST_S, limit_s=2 * RUN_S + TEST_TIMEOUT_S
    ) as connection:
        told = await connection.run(code, background=True, timeout_s=2 * RUN_S + TEST_TIMEOUT_S)
        run, status = told.run, told.status
        while status in ("queued", "running"):
            try:
                status = (await attach(connection.client, run, wait_s=2 * REQUEST_S)).status
            except MCPError:  # it has given up, and asks again
                given_up += 1
        told = await attach(connection.client, run)
    assert (told.status, told.value) == ("ok", "end")
    assert told.stdout == "".join(f"{i}\n" for i in range(PRINTS))
    assert time.monotonic() - begun >= RUN_S
    assert given_up
    print(f"{time.monotonic() - begun:.0f} s, {given_up} requests were given up")


# servers that end, or die -------------------------------------------------------------------------


async def gone(server: KillableServer, how: str) -> None:
    if how == "killed":
        server.kill()
        await server.process.wait()
    else:
        await server.close()


@pytest.mark.parametrize("how", ["killed", "ended"])
async def test_background_runs_continue_in_the_next_server(
    world: World, tmp_path: Path, how: str
) -> None:
    world.settings.write_text(world.settings.read_text().replace('"counted.add" = "ask"\n', ""))
    first = (
        f"{IMPORT}x = 1\nadd(item='a')\nprint('before', flush=True)\n"
        f"{gate(tmp_path)}add(item='b')\nprint('after')"
    )
    async with start_ready_server(world.settings) as server:
        one = await server.call_run_code({"code": first, "session": "s", "background": True}, {})
        two = await server.call_run_code(
            {"code": "x += 1\nx", "session": "s", "background": True}, {IDEMPOTENCY_KEY: "k"}
        )
        assert two["status"] == "queued"
        while "stdout" not in await server.wait_run(one["run"], wait_s=0.1):
            pass
        await gone(server, how)
    (tmp_path / "go").touch()
    async with start_ready_server(world.settings) as server:
        again = await server.call_run_code(
            {"code": "x += 1\nx", "session": "s", "background": True}, {IDEMPOTENCY_KEY: "k"}
        )
        assert again["run"] == two["run"]
        ends = {}
        for run in (one["run"], two["run"]):
            while (told := await server.wait_run(run))["status"] in ("queued", "running"):
                pass
            ends[run] = told
        whole = await server.wait_run(one["run"])
        assert (whole["status"], whole["stdout"]) == ("ok", "before\nafter\n")
        assert (ends[two["run"]]["status"], ends[two["run"]]["value"]) == ("ok", 2)
    assert world.done == ["add a", "add b"]


async def test_queued_runs_are_found_however_early_the_next_server_is_asked(
    world: World, tmp_path: Path
) -> None:
    keys = [f"k{n}" for n in range(30)]

    async def ask(server: KillableServer, key: str) -> str:
        told = await server.call_run_code(
            {"code": "x += 1\nx", "session": "s", "background": True}, {IDEMPOTENCY_KEY: key}
        )
        return str(told["run"])

    async with start_ready_server(world.settings) as server:
        first = await server.call_run_code(
            {"code": f"x = 0\n{gate(tmp_path)}", "session": "s", "background": True}, {}
        )
        runs = {key: await ask(server, key) for key in keys}
        await gone(server, "killed")
    found: dict[str, str] = {}

    async def find(key: str) -> None:
        found[key] = await ask(server, key)

    async with start_ready_server(world.settings) as server:
        async with anyio.create_task_group() as tasks:
            for key in reversed(keys):
                tasks.start_soon(find, key)
        (tmp_path / "go").touch()
        while (told := await server.wait_run(runs[keys[-1]]))["status"] in ("queued", "running"):
            pass
        steps = await server.request(
            "tools/call", {"name": "replay", "arguments": {"action": "list", "session": "s"}}
        )
    assert found == runs
    assert told["value"] == len(keys)
    assert [step["run"] for step in steps["structuredContent"]["steps"]] == [
        first["run"],
        *runs.values(),
    ]


@pytest.mark.parametrize("how", ["killed", "ended"])
async def test_what_is_queued_behind_a_run_that_waits_does_not_take_its_place(
    world: World, how: str
) -> None:
    async with start_ready_server(world.settings) as server, anyio.create_task_group() as tasks:
        told = await server.call_run_code(
            {"code": f"{IMPORT}x = 1\nadd(item='a')", "session": "s"}, {}
        )
        assert told["status"] == "waiting"
        tasks.start_soon(expect_end, server, {"code": "x = 2", "session": "s"})
        await server.call_run_code(
            {"code": "1", "session": "other"}, {}
        )  # the one before has been taken
        await gone(server, how)
    async with start_ready_server(world.settings) as server:
        again = await server.wait_run(told["run"])
        assert (again["status"], again["waiting_for"][0]["id"]) == ("waiting", "q1")


async def expect_end(server: KillableServer, arguments: dict[str, Any]) -> None:
    with suppress(ServerKilled, AssertionError):  # an error is told by a server that is told to end
        await server.call_run_code(arguments, {})


async def test_another_server_delivers_results_to_the_same_principal(
    world: World, tmp_path: Path
) -> None:
    async with world.client() as connection:
        told = await connection.run("print('hello')\n6 * 7", session="s", background=True)
        assert await value_of(connection.client, told.run) == 42
        waits = await connection.run(gate(tmp_path), session="t", background=True)
        async with connect_server(world.settings) as other:  # while the first one has the sessions
            past = await attach(other.client, told.run)
            assert (past.status, past.value, past.stdout, past.session) == (
                "ok",
                42,
                "hello\n",
                "s",
            )
            elsewhere: ToolAnswer = await attach(other.client, waits.run, wait_s=0.5)
            assert elsewhere.status == "running"
            cancelled = await attach(other.client, waits.run, cancel=True)
            assert cancelled.status == "cancelled"


async def test_the_same_background_request_is_one_run(world: World, tmp_path: Path) -> None:
    meta: Any = {IDEMPOTENCY_KEY: "same"}
    arguments = {"code": f"{gate(tmp_path)}1", "session": "s", "background": True}
    async with world.client() as connection:
        runs = {
            parse_answer(await connection.client.call_tool("run_code", arguments, meta=meta)).run
            for _ in range(3)
        }
        other = parse_answer(await connection.client.call_tool("run_code", arguments)).run
        (tmp_path / "go").touch()
        assert len(runs) == 1
        assert other not in runs
        assert await value_of(connection.client, other) == 1


# what time does with it ---------------------------------------------------------------------------


async def test_a_session_can_be_forked_and_not_rewound_while_a_run_waits(tmp_path: Path) -> None:
    world = World(tmp_path, approver="model")
    async with world.client() as connection:
        await connection.run(f"{IMPORT}x = 1", session="s")
        told = await connection.run("x = 2\nadd(item='a')\nx", session="s")
        assert told.status == "waiting"
        refused = await connection.replay("rewind", "s", step=1)
        assert refused.text.startswith("[invalid_request] ")
        fork = await connection.replay("fork", "s", step=1)
        assert await connection.evaluate("x", session=fork.session) == 1
        told = await attach(connection.client, told.run, answers={"q1": "allow"})
        assert (told.status, told.value) == ("ok", 2)
        listed = await connection.replay("list", "s")
        assert [step["status"] for step in listed.steps] == ["ok", "ok"]
