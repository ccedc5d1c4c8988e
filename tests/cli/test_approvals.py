"""The command `approvals`: answers from the command line, with and without a running server."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.config import load_config
from mcpruntime_server.config.shell_commands import format_command
from tests.helpers.commands import CompletedCommand, run_command
from tests.helpers.server_connection import ServerConnection
from tests.helpers.server_killing import start_ready_server
from tests.server.test_approvals import IMPORT, World, attach, choose

from .conftest import HOSTILE_TEXT


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def approvals(world: World, *words: str) -> CompletedCommand:
    return await anyio.to_thread.run_sync(
        lambda: run_command("--config", world.settings, "approvals", *words)
    )


async def cancel(world: World, run: str) -> CompletedCommand:
    return await anyio.to_thread.run_sync(
        lambda: run_command("--config", world.settings, "replay", "cancel", run)
    )


async def run_on(connection: ServerConnection, run: str) -> str:
    """Return the status of a run at the next thing that it does."""
    status: str = (await attach(connection.client, run)).status
    return status


async def test_questions_are_listed_in_full_without_control_characters(
    world: World,
) -> None:
    code = f"{IMPORT}\nadd(item={HOSTILE_TEXT!r} + 'x' * 5000)"
    async with world.client() as connection:
        told = await connection.run(code, session="report")
        listed = await approvals(world)
        data = json.loads((await approvals(world, "--json")).stdout)
    assert listed.returncode == 0
    assert listed.stdout.isascii()
    assert "\x1b" not in listed.stdout
    assert "x" * 5000 in listed.stdout
    assert f"run {told.run} q1  session report  May this be called?" in listed.stdout
    assert "counted.add " in listed.stdout
    assert "(line 4)" in listed.stdout
    assert "expires in 1440 min" in listed.stdout
    [question] = data
    assert question["calls"] == [
        {"target": "tools.counted.add", "args": {"item": HOSTILE_TEXT + "x" * 5000}}
    ]
    assert (question["run"], question["question"], question["session"]) == (
        told.run,
        "q1",
        "report",
    )


@pytest.mark.parametrize(("word", "value"), [("allow", 0), ("deny", "denied")])
async def test_an_answer_reaches_a_running_server(world: World, word: str, value: object) -> None:
    code = (
        f"{IMPORT}try: r = add(item='a').result\nexcept tools.ToolDeniedError as e: r = e.kind\nr"
    )
    async with world.client() as connection:
        told = await connection.run(code)
        done = await approvals(world, told.run, "q1", word)
        assert (done.returncode, done.stdout) == (
            0,
            "1 answer is left for the server. The run continues.\n",
        )
        again = await approvals(world, told.run, "q1", word)
        assert again.returncode == 2
        ended = await attach(connection.client, told.run)
        assert (ended.status, ended.value) == ("ok", value)
        assert (await approvals(world)).stdout == "No run waits for an answer.\n"


async def test_one_answer_allows_all_calls_of_a_loop(world: World) -> None:
    async with world.client() as connection:
        told = await connection.run(f"{IMPORT}[add(item=str(i)).result for i in range(30)]")
        await approvals(world, told.run, "q1", "allow_run")
        ended = await attach(connection.client, told.run)
    assert ended.value == list(range(30))


async def test_one_command_answers_all_approvals_of_a_run(world: World) -> None:
    code = f"{IMPORT}len(tools.map(lambda i: add(item=str(i)), range(10), max_concurrency=10))"
    async with world.client() as connection:
        told = await connection.run(code)
        while len(json.loads((await approvals(world, "--json")).stdout)) < 10:
            pass
        assert "10 answers are left" in (await approvals(world, told.run, "all", "allow")).stdout
        while (ended := await attach(connection.client, told.run)).status == "waiting":
            pass
    assert ended.value == 10
    assert len(world.done) == 10


async def test_an_answer_is_kept_for_a_server_that_starts_later(world: World) -> None:
    async with start_ready_server(world.settings) as server:
        told = await server.run(f"{IMPORT}add(item='a').result", "s")
        server.kill()
    done = await approvals(world, told["run"], "q1", "allow")
    assert done.stdout.endswith("The run continues when a server is started on this data folder.\n")
    assert "(answered, not yet received)" in (await approvals(world)).stdout
    async with world.client() as connection:
        assert (
            await run_on(connection, told["run"]) == "ok"
        )  # it is not told to be waiting for what was answered
    assert world.done == ["add a"]


async def test_a_run_is_cancelled_from_here(world: World) -> None:
    async with world.client() as connection:
        told = await connection.run(f"{IMPORT}add(item='a')", "s")
        done = await cancel(world, "s:1")
        assert done.stdout == f"Run {told.run} is cancelled in a moment.\n"
        assert await run_on(connection, told.run) == "cancelled"
        again = await cancel(world, told.run)
        assert "has finished already; its status is cancelled" in again.stdout
        assert (await cancel(world, "r_none")).returncode == 2
    assert world.done == []


async def test_a_cancellation_is_kept_for_a_server_that_starts_later(world: World) -> None:
    async with start_ready_server(world.settings) as server:
        told = await server.run(f"{IMPORT}add(item='a')", "s")
        server.kill()
    done = await cancel(world, told["run"])
    assert done.stdout.endswith("is cancelled when a server is started on this data folder.\n")
    async with world.client() as connection:
        assert await run_on(connection, told["run"]) == "cancelled"
    assert world.done == []


async def test_a_question_asked_in_the_client_can_be_answered_here(world: World) -> None:
    asked = anyio.Event()

    class Slow:
        async def __call__(self, context: object, params: object) -> object:
            asked.set()
            await anyio.sleep_forever()
            return None

    async with world.client(mode="legacy", elicitation_callback=Slow()) as connection:
        async with anyio.create_task_group() as tasks:

            async def answer() -> None:
                await asked.wait()
                [question] = json.loads((await approvals(world, "--json")).stdout)
                await approvals(world, question["run"], "q1", "allow")

            tasks.start_soon(answer)
            told = await connection.run(f"{IMPORT}add(item='a').result")
        assert (told.status, told.value) == ("ok", 0)


async def test_mistakes_are_named(world: World) -> None:
    async with world.client(elicitation_callback=choose("cancel")) as connection:
        told = await connection.run(f"{IMPORT}add(item='a')")
        for words, problem in (
            (("r_none", "q1", "allow"), "does not wait for an answer"),
            ((told.run, "q7", "allow"), "does not wait for an answer to 'q7'"),
            ((told.run, "q1", "again"), "'again' is not an answer to question q1"),
            ((told.run, "q1", "yes"), "Use allow, allow_run, allow_session, deny."),
            ((told.run, "q1"), "Question 'q1' of run"),
        ):
            done = await approvals(world, *words)
            assert (done.returncode, problem in done.stderr) == (2, True), done
        assert [
            each["answered"] for each in json.loads((await approvals(world, "--json")).stdout)
        ] == [False]
    assert world.done == []


async def test_the_command_in_the_note_answers_and_a_run_can_be_listed_alone(world: World) -> None:
    async with world.client() as connection:
        told = await connection.run(f"{IMPORT}add(item='a').result")
        other = await connection.run(f"{IMPORT}add(item='b').result", session="other")
        listed = (await approvals(world, told.run)).stdout
        assert f"run {told.run} q1" in listed
        assert other.run not in listed
        program, *words = shlex.split(told.note.split("`")[1])
        assert (program, words[-1]) == ("mcpruntime-server", "allow")
        done = await anyio.to_thread.run_sync(lambda: run_command(*words))
        assert done.returncode == 0, done.stderr
        assert (await attach(connection.client, told.run, wait_s=20)).value == 0
        await attach(connection.client, other.run, cancel=True)
    assert "does not wait for an answer." in (await approvals(world, told.run)).stdout


def test_a_command_has_the_options_that_lead_to_the_same_data(tmp_path: Path) -> None:
    file = tmp_path / "my settings.toml"
    file.write_text(f"[server]\ndata_dir = '{tmp_path / 'data'}'\n")
    config = load_config(file, environ={})
    assert format_command(config, "approvals") == (f"mcpruntime-server --config '{file}' approvals")
    elsewhere = {"server.data_dir": str(tmp_path / "other")}
    config = load_config(file, elsewhere, environ={})
    assert format_command(config, "approvals", "r_1", "all", "allow") == (
        f"mcpruntime-server --config '{file}' --data-dir {tmp_path / 'other'} "
        "approvals r_1 all allow"
    )
    variable = {"MCPRUNTIME_SERVER__DATA_DIR": str(tmp_path / "third")}
    config = load_config(None, environ={**variable, "HOME": str(tmp_path)})
    assert f"--data-dir {tmp_path / 'third'} " in format_command(config, "approvals")
