"""Background runs under attack: by readers, limits, dying servers and senseless requests."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import MCPError

from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    ServerConnection,
    ToolAnswer,
    connect_server,
    parse_answer,
    write_settings,
)
from ..helpers.server_killing import (
    IDEMPOTENCY_KEY,
    KillableServer,
    ServerKilled,
    start_ready_server,
    start_server,
)
from ..helpers.sizes import choose_size
from .conftest import upstream_entry
from .test_approvals import ERAS, attach
from .test_resume import until

DEATHS = choose_size("DEATHS", short=4, long=20)  # of servers under background runs
RUNS = max(4, DEATHS)  # of each session then
SEED = os.environ.get("KILL_SEED") or secrets.token_hex(4)
IMPORT = "import os, time\nfrom tools.counted import add, count, put\n"
UNDER_WAY = ("queued", "running")
META: Any = {IDEMPOTENCY_KEY: "the same"}


class World:
    """A server with unisolated code, which a test can block, and a record of upstream calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.upstream = folder / "done"
        self.settings = self.configure()

    def configure(self, **server: Any) -> Path:
        """Write the settings, with these of the server; return their path."""
        upstreams = {
            "counted": upstream_entry("counted", str(self.upstream)),
            "lively": upstream_entry("lively"),
        }
        sandbox = {"backend": "local", "pool_size": 0}
        return write_settings(self.folder, server=server, sandbox=sandbox, mcpServers=upstreams)

    @property
    def done(self) -> list[str]:
        return self.upstream.read_text().splitlines() if self.upstream.exists() else []

    def gate(self, name: str = "go") -> str:
        """Return code that waits until `open` has been called with that name."""
        return (
            "import os, time\n"
            f"while not os.path.exists({str(self.folder / name)!r}): time.sleep(0.01)\n"
        )

    def open(self, name: str = "go") -> None:
        (self.folder / name).touch()

    def marked(self, name: str) -> str:
        """Return code that appends `name` to what `marks` returns."""
        return (
            f"with open({str(self.folder / 'marks')!r}, 'a') as file: file.write({name + ' '!r})\n"
        )

    @property
    def marks(self) -> list[str]:
        path = self.folder / "marks"
        return path.read_text().split() if path.exists() else []

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[ServerConnection]:
        async with connect_server(self.settings, **options) as connection:
            yield connection

    def server(self) -> AbstractAsyncContextManager[KillableServer]:
        return start_ready_server(self.settings)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def end_of(connection: ServerConnection, run: str) -> ToolAnswer:
    """Attach to a run until it is over; return the last answer."""
    while (told := await attach(connection.client, run)).data.get("status") in UNDER_WAY:
        pass
    return told


# how long a request waits -------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
async def test_a_request_waits_as_the_settings_say_and_longer_for_a_client_with_progress(
    world: World, era: str
) -> None:
    world.configure(wait_s=0.3, wait_progress_s=2 * TEST_TIMEOUT_S)

    async def listen(*_: Any) -> None:
        world.open()

    async with world.client(mode=era) as connection:
        told = await connection.run(world.gate(), session="s")
        assert told.status == "running"
        patient = await connection.run(
            f"import time\ntime.sleep(0.5)\nprint('on', flush=True)\n{world.gate()}'end'",
            progress_callback=listen,
        )
        assert (patient.status, patient.value) == ("ok", "end")


async def test_a_request_that_is_not_to_wait_tells_what_there_is(world: World) -> None:
    async with world.client() as connection:
        told = await connection.run(f"{world.gate()}'end'", session="s", wait_s=0)
        assert told.status in UNDER_WAY
        for _ in range(3):
            assert (await attach(connection.client, told.run, wait_s=0)).status in UNDER_WAY
            assert (await attach(connection.client, told.run, background=True)).status in UNDER_WAY
        world.open()
        assert (await end_of(connection, told.run)).value == "end"


@pytest.mark.parametrize("era", ERAS)
async def test_attaching_blocks_until_the_end_whatever_the_code_prints(
    world: World, era: str
) -> None:
    answers: list[ToolAnswer] = []

    async def look(connection: ServerConnection, run: str) -> None:
        answers.append(await attach(connection.client, run, wait_s=TEST_TIMEOUT_S))

    async with world.client(mode=era) as connection:
        told = await connection.run(
            f"{world.gate()}print('new', flush=True)\n{world.marked('on')}{world.gate('end')}",
            background=True,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look, connection, told.run)
            world.open()
            await until(lambda: world.marks == ["on"])
            while "stdout" not in (await attach(connection.client, told.run, wait_s=0)).data:
                pass
            assert answers == []
            world.open("end")
        assert answers[0].status == "ok"


async def test_attaching_waits_as_long_as_it_is_told_to_while_the_code_prints(
    world: World,
) -> None:
    code = "import time\nwhile True:\n    print('on', flush=True)\n    time.sleep(0.05)"
    async with world.client() as connection:
        told = await connection.run(code, background=True)
        started_at = time.monotonic()
        early = await attach(connection.client, told.run, wait_s=1)
        assert time.monotonic() - started_at >= 1
        assert (early.status, early.stdout[:3]) == ("running", "on\n")
        assert (await attach(connection.client, told.run, cancel=True)).status == "cancelled"


async def test_concurrent_readers_get_output_once_and_each_gets_the_end(
    world: World,
) -> None:
    heard: list[str] = []
    ends: list[str] = []

    async def read(connection: ServerConnection, run: str) -> None:
        while (told := await attach(connection.client, run, wait_s=0.1)).status in UNDER_WAY:
            heard.append(told.data.get("stdout", ""))
        ends.append(told.status)

    async with world.client() as connection:
        code = "import time\nfor n in range(30):\n    print(n, flush=True)\n    time.sleep(0.03)"
        told = await connection.run(code, background=True)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read, connection, told.run)
        whole = await attach(connection.client, told.run)
    assert ends == ["ok"] * 3
    assert whole.stdout == "".join(f"{n}\n" for n in range(30))
    lines = [line for text in heard for line in text.splitlines()]
    assert len(lines) == len(set(lines))


async def test_output_of_a_run_is_delivered_once_and_in_order(world: World) -> None:
    code = (
        "import sys, time\nfor n in range(40):\n    print(n, flush=True)\n"
        "    print(-n, file=sys.stderr, flush=True)\n"
        "    time.sleep(0.02)"
    )
    out, err = "", ""
    async with world.client() as connection:
        told = await connection.run(code, background=True)
        while True:
            out, err = out + told.data.get("stdout", ""), err + told.data.get("stderr", "")
            if told.status not in UNDER_WAY:
                break
            told = await attach(
                connection.client, told.run, wait_s=random.choice([0, 0.01, 0.1, 5])
            )
    assert out == "".join(f"{n}\n" for n in range(40))
    assert err == "".join(f"{-n}\n" for n in range(40))


async def test_a_run_that_ends_between_two_looks_tells_the_rest_and_then_the_whole(
    world: World,
) -> None:
    async with world.client() as connection:
        told = await connection.run(
            f"print('a', flush=True)\n{world.gate()}\nprint('b')", background=True, session="s"
        )
        early = await attach(connection.client, told.run, wait_s=0.1)
        while not early.data.get("stdout"):
            early = await attach(connection.client, told.run, wait_s=0.1)
        world.open()
        assert await connection.evaluate("1", session="s") == 1
        texts = [(await attach(connection.client, told.run)).stdout for _ in range(2)]
    assert (early.stdout, texts) == ("a\n", ["b\n", "a\nb\n"])


# many at once -------------------------------------------------------------------------------------


async def test_sessions_have_fair_turns_however_many_runs_each_has(world: World) -> None:
    world.configure(max_runs=1)
    async with world.client() as connection:
        await connection.run(f"{world.marked('first')}{world.gate()}", session="z", background=True)
        await until(lambda: world.marks == ["first"])
        runs = [
            await connection.run(world.marked(name), session=name[0], background=True)
            for name in ("a1", "a2", "a3", "b1", "c1", "c2")
        ]
        assert {each.status for each in runs} == {"queued"}
        told = [await attach(connection.client, each.run, wait_s=0) for each in runs]
        assert [each.note.partition(".")[0] for each in told[1:]] == [
            "1 run of this session comes first",
            "2 runs of this session come first",
            "1 other run comes first",
            "2 other runs come first",
            "1 run of this session comes first",
        ]
        world.open()
        for each in runs:
            assert (await end_of(connection, each.run)).status == "ok"
    assert world.marks == ["first", "a1", "b1", "c1", "a2", "c2", "a3"]


async def test_a_place_is_passed_on_when_a_run_that_waits_for_it_is_cancelled(world: World) -> None:
    world.configure(max_runs=1)
    async with world.client() as connection:
        first = await connection.run(
            f"{world.marked('1')}{world.gate()}", session="a", background=True
        )
        await until(lambda: world.marks == ["1"])
        second = await connection.run(world.marked("2"), session="b", background=True)
        third = await connection.run(world.marked("3"), session="c", background=True)
        cancelled = await attach(connection.client, second.run, cancel=True)
        assert (cancelled.status, "value" in cancelled.data) == ("cancelled", False)
        assert (await attach(connection.client, first.run, cancel=True)).status == "cancelled"
        assert (await end_of(connection, third.run)).status == "ok"
        assert await connection.evaluate("'free'", session="b") == "free"
    assert world.marks == ["1", "3"]


@pytest.mark.parametrize("era", ERAS)
async def test_runs_that_are_cancelled_at_any_moment_leave_their_sessions_in_order(
    world: World, era: str
) -> None:
    async with world.client(mode=era) as connection:
        await connection.run("n = 0", session="s")
        run = random.Random(SEED)
        for _ in range(10):
            told = [
                await connection.run(
                    "n += 1\nimport time\ntime.sleep(9)", session="s", background=True
                )
            ]
            told.append(await connection.run("n += 100", session="s", background=True))
            await anyio.sleep(run.uniform(0, 0.05))
            for each in told[:: run.choice([1, -1])]:
                ended = await attach(connection.client, each.run, cancel=True)
                assert ended.is_error or ended.status == "cancelled", ended.text
                assert not ended.is_error or "ok" in ended.text, ended.text
        n = await connection.evaluate("n", session="s")
        assert n % 100 <= 10
        steps = (await connection.replay("list", "s")).steps
        assert {step["status"] for step in steps} <= {"ok", "cancelled"}


async def test_busy_sessions_are_not_closed_for_others_and_can_be_attached_to(world: World) -> None:
    world.configure(max_sessions=2, session_idle_s=0.1)
    async with world.client() as connection:
        runs = [
            await connection.run(f"x = {n}\n{world.gate()}x", session=f"s{n}", background=True)
            for n in range(2)
        ]
        for _ in range(2):
            refused = await connection.run("1", session="late", background=True)
            assert refused.text.startswith("[unavailable] ")
        assert [(await attach(connection.client, each.run, wait_s=0)).status for each in runs] == [
            "running"
        ] * 2
        world.open()
        assert [(await end_of(connection, each.run)).value for each in runs] == [0, 1]
        assert await connection.evaluate("1", session="late") == 1
        assert [await connection.evaluate("x", session=f"s{n}") for n in range(2)] == [0, 1]


# time, while a run is under way -------------------------------------------------------------------


async def test_a_session_goes_back_only_when_what_it_runs_is_cancelled_and_can_be_forked(
    world: World,
) -> None:
    async with world.client() as connection:
        await connection.run("x = 1", session="s")
        await connection.run("x = 2", session="s")
        running = await connection.run(
            f"x = 3\n{world.marked('on')}{world.gate()}", session="s", background=True
        )
        queued = await connection.run("x = 4", session="s", background=True)
        await until(lambda: world.marks == ["on"])
        refused = await connection.replay("rewind", "s", step=1)
        assert refused.text.startswith("[invalid_request] ")
        for step in (1, 2):
            fork = await connection.replay("fork", "s", step=step)
            assert await connection.evaluate("x", session=fork.session) == step
        for run in (running.run, queued.run):
            assert (await connection.replay("fork", "s", run=run)).is_error
            assert (await connection.replay("rewind", "s", run=run)).is_error
        assert (await connection.replay("rewind", "s", step=1, cancel=True)).step == 1
        for run in (running.run, queued.run):
            assert (await attach(connection.client, run)).status == "cancelled"
        assert await connection.evaluate("x", session="s") == 1


# upstreams that change ----------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
async def test_tools_that_change_are_new_in_the_next_run_though_it_was_queued_before(
    world: World, era: str
) -> None:
    look = "import tools.lively\n'grown' in dir(tools.lively)"
    grow = (
        f"{world.gate()}tools.lively.grow()\nwhile 'grown' not in str(tools.list('lively')): pass"
    )
    async with world.client(mode=era) as connection:
        before = (await connection.client.list_tools()).model_dump_json()
        for session in ("s", "other"):
            assert await connection.evaluate(look, session=session) is False
        grows = await connection.run(grow, session="s", background=True)
        dropped = await connection.run(look, session="s", background=True)
        looks = await connection.run(look, session="s", background=True)
        assert (await attach(connection.client, dropped.run, cancel=True)).status == "cancelled"
        world.open()
        assert (await end_of(connection, grows.run)).status == "ok"
        assert (await end_of(connection, looks.run)).value is True
        assert await connection.evaluate(look, session="other") is True
        assert (await connection.client.list_tools()).model_dump_json() == before


async def test_tools_that_have_changed_are_new_after_a_run_that_was_undone(world: World) -> None:
    look = "import tools.lively\n'grown' in dir(tools.lively)"
    async with world.client() as connection:
        assert await connection.evaluate(look, session="s") is False
        await connection.run(
            "tools.lively.grow()\nwhile 'grown' not in str(tools.list('lively')): pass", session="t"
        )
        assert (await connection.run("import os\nos._exit(3)", session="s")).status == "crashed"
        assert await connection.evaluate(look, session="s") is True
        await connection.replay("rewind", "s", step=1)
        assert await connection.evaluate(look, session="s") is True


# clients that give up -----------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("how", ["timed out", "wait over"])
async def test_an_abandoned_foreground_run_continues_here_and_in_the_next_server(
    world: World, era: str, how: str
) -> None:
    code = f"{IMPORT}x = add(item='a').result\n{world.marked('on')}{world.gate()}add(item='b')\nx"
    request: dict[str, Any] = {"code": code, "session": "s"}

    async def ask(connection: ServerConnection, timeout_s: float, **more: Any) -> ToolAnswer:
        call = connection.client.call_tool
        return parse_answer(
            await call("run_code", {**request, **more}, read_timeout_seconds=timeout_s, meta=META)
        )

    async with world.client(mode=era) as connection:
        await connection.run("1", session="s")
        if how == "timed out":
            with pytest.raises(MCPError, match="timed out"):
                await ask(connection, 1.0)
        else:
            assert (await ask(connection, TEST_TIMEOUT_S, wait_s=0.3)).status == "running"
        await until(lambda: world.marks == ["on"])
    world.open()
    async with world.client(mode=era) as connection:
        told = await ask(connection, TEST_TIMEOUT_S)
        assert (told.status, told.value) == ("ok", 0)
    assert world.done == ["add a", "add b"]


@pytest.mark.parametrize("era", ERAS)
async def test_a_background_request_that_is_cancelled_at_any_moment_starts_one_run_or_none(
    world: World, era: str
) -> None:
    moments = random.Random(SEED)
    async with world.client(mode=era) as connection:
        await connection.run(IMPORT, session="s")
        for n in range(15):
            request = {"code": f"add(item='{n}')", "session": "s", "background": True}
            meta: Any = {IDEMPOTENCY_KEY: str(n)}
            with anyio.move_on_after(moments.uniform(0, 0.01)):
                await connection.client.call_tool("run_code", request, meta=meta)
            told = parse_answer(await connection.client.call_tool("run_code", request, meta=meta))
            assert (await end_of(connection, told.run)).status == "ok"
    assert world.done == [f"add {n}" for n in range(15)]


async def test_readers_that_give_up_while_a_session_is_taken_over_leave_none_of_its_runs_behind(
    world: World,
) -> None:
    moments = random.Random(SEED)
    async with world.client() as other:
        for life in range(5):
            async with world.server() as server:
                await server.call_run_code(
                    {"code": world.gate(f"go{life}"), "session": f"s{life}", "background": True}, {}
                )
                request = {
                    "code": world.marked(str(life)),
                    "session": f"s{life}",
                    "background": True,
                }
                runs = [(await server.call_run_code(request, {}))["run"] for _ in range(20)]
                server.kill()
            with anyio.move_on_after(moments.uniform(0, 0.02)):
                await attach(other.client, runs[0])
            world.open(f"go{life}")
            with anyio.fail_after(TEST_TIMEOUT_S):
                assert [(await end_of(other, run)).status for run in runs] == ["ok"] * 20
    assert world.marks == [str(life) for life in range(5) for _ in range(20)]


# servers that end, or die, and others on the same folder ------------------------------------------


async def test_delivered_output_survives_a_server_killed_at_once(world: World) -> None:
    async with world.server() as server:
        over = await server.call_run_code(
            {"code": "print('out')\n6 * 7", "session": "s", "background": True}, {}
        )
        while (told := await server.wait_run(over["run"]))["status"] in UNDER_WAY:
            pass
        begun = await server.call_run_code(
            {"code": "'begun'", "session": "s", "background": True}, {}
        )
        server.kill()
    async with world.client() as connection:
        past = await attach(connection.client, over["run"])
        assert (past.status, past.value, past.stdout) == (told["status"], 42, "out\n")
        assert (await end_of(connection, begun["run"])).value == "begun"


async def test_a_run_that_its_server_hands_on_again_and_again_is_not_given_up(world: World) -> None:
    # The answer to the first call must have arrived, or it is in doubt.
    code = f"{IMPORT}add(item='a')\n{world.marked('on')}{world.gate()}add(item='b')\n'end'"
    async with world.server() as server:
        run = (await server.call_run_code({"code": code, "session": "s", "background": True}, {}))[
            "run"
        ]
        await until(lambda: world.marks == ["on"])
        await server.close()
    for _ in range(4):
        async with world.server() as server:
            assert (await server.wait_run(run, wait_s=0))["status"] in UNDER_WAY
            await server.close()
    world.open()
    async with world.client() as connection:
        assert (await end_of(connection, run)).value == "end"
    assert world.done == ["add a", "add b"]


async def test_a_reader_of_a_run_that_another_server_has_waits_for_its_end(world: World) -> None:
    world.configure(max_sessions=1)
    answers: list[ToolAnswer] = []

    async def look(connection: ServerConnection, run: str) -> None:
        answers.append(await attach(connection.client, run, wait_s=TEST_TIMEOUT_S))

    async with world.client() as one, world.client() as other:
        await other.run("x = 1", session="mine")
        code = f"print('on', flush=True)\n{world.marked('on')}{world.gate()}'end'"
        told = await one.run(code, session="s", background=True)
        queued = await one.run("'next'", session="s", background=True)
        await until(lambda: world.marks == ["on"])
        with anyio.fail_after(
            TEST_TIMEOUT_S
        ):  # code runs on while its beginning is being put on record
            while (early := await attach(other.client, told.run, wait_s=0.1)).status == "queued":
                pass
        assert (early.status, (await attach(other.client, queued.run, wait_s=0)).status) == (
            "running",
            "queued",
        )
        unasked = await attach(other.client, told.run, answers={"q1": "allow"})
        assert unasked.text.startswith("[invalid_request] ")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look, other, told.run)
            assert await other.evaluate("x", session="mine") == 1
            assert answers == []
            world.open()
        assert (answers[0].status, answers[0].value, answers[0].stdout) == ("ok", "end", "on\n")
        assert (
            "note" not in (await other.run("x", session="mine")).data
        )  # it was not closed for a session of others


async def test_a_run_continues_on_the_server_that_waits_for_it_when_its_own_dies(
    world: World,
) -> None:
    answers: list[ToolAnswer] = []

    async def look(connection: ServerConnection, run: str) -> None:
        answers.append(await end_of(connection, run))

    code = f"{IMPORT}add(item='a')\n{world.marked('on')}{world.gate()}add(item='b')\n'end'"
    async with world.client() as other, world.server() as server:
        run = (await server.call_run_code({"code": code, "session": "s", "background": True}, {}))[
            "run"
        ]
        await until(lambda: world.marks == ["on"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look, other, run)
            await other.run("1")
            server.kill()
            world.open()
    assert (answers[0].status, answers[0].value) == ("ok", "end")
    assert world.done == ["add a", "add b"]


async def test_runs_beyond_capacity_continue_one_after_the_other(world: World) -> None:
    runs = []
    async with world.server() as server:
        for n in range(3):
            code = f"{world.gate()}{world.marked(str(n))}"
            runs.append(
                (
                    await server.call_run_code(
                        {"code": code, "session": f"s{n}", "background": True}, {}
                    )
                )["run"]
            )
        server.kill()
    world.configure(max_sessions=1)
    async with world.server() as server:  # one of them goes on here
        await server.wait_run(runs[0], wait_s=0.1)
        await server.close()
    world.open()
    async with world.server() as server:
        await until(lambda: sorted(world.marks) == ["0", "1", "2"])
        assert [(await server.wait_run(run))["status"] for run in runs] == ["ok"] * 3


class Work:
    """Background runs of two sessions, whose servers die or stop at random moments."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.moments = random.Random(SEED)
        self.tags = {f"{session}{n}": session for n in range(RUNS) for session in "ab"}
        self.runs: dict[str, str] = {}  # tag -> run
        self.told: set[tuple[str, str]] = set()
        self.deaths: Counter[str] = Counter()

    async def go_on(self, server: KillableServer) -> None:
        """Ask for what has not been asked for, once more for what has, and look at some."""
        for tag, session in self.tags.items():
            if tag not in self.runs or self.moments.random() < 0.2:
                code = (
                    f"{IMPORT}for i in range(4): add(item=f'{tag}-{{i}}'); time.sleep(0.01)\n"
                    f"print({tag!r})\n{tag!r}"
                )
                told = await server.call_run_code(
                    {"code": code, "session": session, "background": True}, {IDEMPOTENCY_KEY: tag}
                )
                self.runs[tag] = told["run"]
                self.told.add((tag, told["run"]))
        for tag in self.moments.sample(list(self.tags), 4):
            await self.end_of(server, tag, wait_s=self.moments.uniform(0, 0.5))

    async def end_of(
        self, server: KillableServer, tag: str, wait_s: float = TEST_TIMEOUT_S
    ) -> dict[str, Any]:
        """Look at a run; say what became of a call of which its server could not."""
        told = await server.wait_run(self.runs[tag], wait_s=wait_s)
        while told["status"] == "waiting":
            [wait] = told["waiting_for"]
            assert wait["kind"] == "in_doubt"
            item = wait["call"].partition('"')[2].partition('"')[0]
            answer = {"result": {"result": 0}} if f"add {item}" in self.world.done else "again"
            told = await server.wait_run(
                self.runs[tag], answers={wait["id"]: answer}, wait_s=wait_s
            )
        return told

    async def live_and_die(self) -> None:
        """Run a server for a while."""
        async with start_server(self.world.settings) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(self._end, server)
            with suppress(
                ServerKilled, AssertionError
            ):  # an error is told by a server that is told to end
                await server.initialize()
                await self.go_on(server)
            await server.process.wait()

    async def _end(self, server: KillableServer) -> None:
        await anyio.sleep(self.moments.uniform(0.8, 2.5))
        how = self.moments.choice(["kill", "terminate", "close"])
        self.deaths[how] += 1
        if how == "close":
            await server.close()
        else:
            getattr(server.process, how)()


async def test_background_runs_execute_once_and_in_order_whatever_happens_to_their_servers(
    world: World,
) -> None:
    print(f"KILL_SEED={SEED}")  # shown where it fails
    work = Work(world)
    for _ in range(DEATHS):
        await work.live_and_die()
    async with world.server() as server:
        await work.go_on(server)
        for tag in work.tags:
            while (told := await work.end_of(server, tag))["status"] in UNDER_WAY:
                pass
            whole = await server.wait_run(work.runs[tag])
            assert (told["status"], whole["value"], whole["stdout"]) == ("ok", tag, f"{tag}\n"), (
                whole
            )
    for session in "ab":
        mine = [line for line in world.done if line.startswith(f"add {session}")]
        assert mine == [f"add {session}{n}-{i}" for n in range(RUNS) for i in range(4)]
    assert len(work.told) == len(work.tags)
    print(dict(work.deaths))


# requests that make no sense ----------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    {"run": ""}, {"run": " "}, {"run": "\x00"}, {"run": 5}, {"run": []}, {"run": "r_' OR 1=1 --"},
    {"run": "s"}, {"cancel": "please"}, {"answers": []}, {"answers": "allow"}, {"answers": {}},
    {"answers": {"q1": "allow"}}, {"answers": {"*": "allow"}},
    {"answers": {"*": "allow"}, "cancel": True},
    {"wait_s": -0.1}, {"wait_s": [1]}, {"background": 2},
    {"code": "1"}, {"code": ""}, {"dry_run": True}, {"timeout_s": 0}, {"run": None, "cancel": True},
])  # fmt: skip
@pytest.mark.parametrize("state", ["running", "queued", "over"])
async def test_a_wrong_request_about_a_run_is_refused_and_changes_nothing(
    busy: dict[str, Any], state: str, arguments: dict[str, Any]
) -> None:
    connection: ServerConnection = busy["connection"]
    result = await connection.client.call_tool(
        "run_code", {"run": busy[state], "wait_s": 0, **arguments}
    )
    assert result.is_error
    text = result.content[0].text  # type: ignore[union-attr]
    assert text.startswith(("[invalid_request] ", "[not_found] ")), text
    assert len(text) < 1000
    status = (await attach(connection.client, busy[state], wait_s=0)).status
    assert status == ("ok" if state == "over" else state)


@pytest.fixture(scope="module")
async def busy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Any]]:
    """A connection, and a run of each state."""
    world = World(tmp_path_factory.mktemp("busy"))
    async with world.client() as connection:
        over = await connection.run("1", session="s")
        running = await connection.run(
            f"{world.marked('on')}{world.gate()}'ran'", session="s", background=True
        )
        queued = await connection.run("'too'", session="s", background=True)
        await until(lambda: world.marks == ["on"])
        yield {
            "connection": connection,
            "over": over.run,
            "running": running.run,
            "queued": queued.run,
        }
        world.open()
        assert (await end_of(connection, running.run)).value == "ran"
        assert (await end_of(connection, queued.run)).value == "too"
