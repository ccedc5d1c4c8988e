"""The server over stdio: its tools, progress, cancellation, parallel sessions, odd messages."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client.client import Client
from mcp.types import JSONRPCError

from mcpruntime_server.cli.demo.token_count import count_tokens
from mcpruntime_server.server.stdio_transport import parse_client_message

from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    ServerConnection,
    connect_server,
    server_parameters,
    write_settings,
)

TOKENS = 700
ENDLESS = "print('on', flush=True)\nimport time; time.sleep(99)"


class Progress:
    """What a client hears while its request is answered."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, str]] = []
        self.first = anyio.Event()

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        self.heard.append((progress, message or ""))
        self.first.set()


# the tool -----------------------------------------------------------------------------------------


async def test_the_tools_are_few_and_cost_few_tokens(server: ServerConnection) -> None:
    tools = (await server.client.list_tools()).tools
    assert [tool.name for tool in tools] == [
        "run_code",
        "replay",
        "list_skills",
        "save_skill",
    ]
    starts = {"code", "session", "timeout_s", "wait_s", "background", "dry_run", "context"}
    assert set(tools[0].input_schema["properties"]) == {*starts, "run", "answers", "cancel"}
    listed = json.dumps([[tool.name, tool.description, tool.input_schema] for tool in tools])
    tokens = count_tokens(listed)
    assert tokens is not None
    assert tokens <= TOKENS
    assert all(
        name in (tools[0].description or "") for name in ("lively", "hostile", "tools.search")
    )


@pytest.mark.parametrize("llm", [{}, {"model": "m", "api_base": "http://127.0.0.1:9"}])
@pytest.mark.parametrize("name", ["srv{}", "a_server_with_a_long_name_{}", "x" * 200 + "{}"])
async def test_many_servers_do_not_make_the_list_of_tools_long(
    tmp_path: Path, llm: dict[str, str], name: str
) -> None:
    upstreams = {name.format(n): {"command": "/nowhere"} for n in range(100)}
    async with connect_server(write_settings(tmp_path, mcpServers=upstreams, llm=llm)) as server:
        tools = (await server.client.list_tools()).tools
        listed = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
            for tool in tools
        ]
        assert count_tokens(json.dumps(listed, ensure_ascii=False)) <= 750
        shown = tools[0].description or ""
        assert " more. `tools.search(" in shown or "100; tools.list() names them." in shown


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_clients_of_both_eras_are_served(
    tmp_path_factory: pytest.TempPathFactory, mode: Any
) -> None:
    settings = write_settings(tmp_path_factory.mktemp(mode), sandbox={"backend": "local"})
    async with Client(server_parameters(settings), mode=mode) as client:
        result = await client.call_tool("run_code", {"code": "1 + 1"})
        assert (result.structured_content or {})["value"] == 2
        assert "without isolation" in (client.instructions or "")


async def test_a_session_of_its_own_belongs_to_each_connection(server: ServerConnection) -> None:
    first = await server.run("x = 1")
    assert first.session.startswith("s_")
    again = await server.run("x")
    assert (again.value, again.session, again.step) == (1, first.session, first.step + 1)
    assert (await server.run("x", session=first.session)).value == 1


@pytest.mark.parametrize(
    "code",
    [
        "```python\n1 + 1\n```",
        "```\n1 + 1\n```",
        "~~~py\n1 + 1\n~~~\n",
        "    1 + 1\n",
        "\n\t1 + 1",
        "x = '''\n```\n'''\n1 + 1",
    ],
)
async def test_fences_and_indentation_around_code_are_taken_off(
    server: ServerConnection, code: str
) -> None:
    assert await server.evaluate(code, session="fences") == 2


async def test_five_hundred_runs_of_a_session_are_all_there(server: ServerConnection) -> None:
    await server.run("total = 0", session="many")
    for number in range(500):
        answer = await server.run(f"print({number})\ntotal += {number}", session="many")
        assert (answer.stdout, answer.step) == (f"{number}\n", number + 2)
    assert await server.evaluate("total", session="many") == sum(range(500))


# progress -----------------------------------------------------------------------------------------


async def test_output_arrives_while_the_code_runs_with_increasing_progress(
    server: ServerConnection,
) -> None:
    progress = Progress()
    async with anyio.create_task_group() as tasks:
        code = (
            "import time\nfor n in range(3):\n    print('line', n, flush=True)\n"
            "    time.sleep(0.05)\ntime.sleep(99)"
        )

        async def run() -> None:
            await server.run(code, session="progress", progress_callback=progress)

        tasks.start_soon(run)
        with anyio.fail_after(TEST_TIMEOUT_S):
            while "line 2" not in "".join(text for _, text in progress.heard):
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    numbers = [number for number, _ in progress.heard]
    assert numbers == sorted(set(numbers))
    assert progress.heard[0][1].startswith("line 0")


async def test_a_line_of_progress_is_short_even_if_much_is_printed(
    server: ServerConnection,
) -> None:
    progress = Progress()
    await server.run("print('x' * 1_000_000)", session="progress", progress_callback=progress)
    assert all(len(text) <= 2_000 for _, text in progress.heard)


# cancellation -------------------------------------------------------------------------------------


async def test_a_cancelled_request_interrupts_its_code_and_keeps_the_session(
    server: ServerConnection,
) -> None:
    await server.run("x = 1", session="cancelled")
    for _ in range(5):
        progress = Progress()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                partial(server.run, ENDLESS, session="cancelled", progress_callback=progress)
            )
            with anyio.fail_after(TEST_TIMEOUT_S):
                await progress.first.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(TEST_TIMEOUT_S):
            assert await server.evaluate("x += 1; x - 1", session="cancelled") is not None
    assert await server.evaluate("x", session="cancelled") == 6


async def test_a_request_that_is_cancelled_in_the_queue_never_runs(
    server: ServerConnection,
) -> None:
    progress = Progress()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            partial(server.run, ENDLESS, session="queue", timeout_s=2, progress_callback=progress)
        )
        with anyio.fail_after(TEST_TIMEOUT_S):
            await progress.first.wait()
        with anyio.move_on_after(0.2):
            await server.run("ran = True", session="queue")
    assert await server.evaluate("'ran' in globals()", session="queue") is False


async def test_a_request_that_is_cancelled_while_its_sandbox_starts_never_runs(
    tmp_path: Path,
) -> None:
    async with connect_server(write_settings(tmp_path, sandbox={"pool_size": 0})) as server:
        await server.client.list_tools()
        with anyio.move_on_after(0.02):  # a container takes longer to start
            await server.run("open('ran', 'w').close()", session="early")
        assert await server.evaluate("import os; os.path.exists('ran')", session="early") is False


# side by side -------------------------------------------------------------------------------------


async def test_two_sessions_run_at_once(server: ServerConnection) -> None:
    """Each waits inside for a call that is answered only when both are there."""
    answers = []

    async def meet(session: str) -> None:
        answers.append(await server.evaluate("tools.lively.meet(number=2)", session=session))

    with anyio.fail_after(TEST_TIMEOUT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meet, "left")
            tasks.start_soon(meet, "right")
    assert answers == ["met", "met"]


async def test_runs_of_one_session_happen_in_order(server: ServerConnection) -> None:
    await server.run("seen = []", session="order")
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(server.run, f"seen.append({number}); len(seen)", "order")
    seen = await server.evaluate("seen", session="order")
    assert sorted(seen) == list(range(20))


async def test_nothing_of_one_session_is_seen_in_another(server: ServerConnection) -> None:
    async def check(name: str) -> None:
        for number in range(10):
            code = f"me = '{name}'\nprint(me, {number})\ntools.lively.echo(text=me)"
            answer = await server.run(code, session=name)
            assert (answer.stdout, answer.value) == (f"{name} {number}\n", name)
            assert [line["call"] for line in answer.calls] == [f"lively.echo(text='{name}')"]

    async with anyio.create_task_group() as tasks:
        for name in ("ann", "bob", "cat"):
            tasks.start_soon(check, name)


# odd messages -------------------------------------------------------------------------------------


def test_half_a_character_in_a_request_stays_visible() -> None:
    message = parse_client_message(
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"code":"\'\\ud83d\'"}}'
    )
    assert not isinstance(message, JSONRPCError)
    assert message.message.params == {"code": "'\\ud83d'"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"not json", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b"[]", None),
        (b'{"jsonrpc":"2.0","id":7}', 7),
        (b'{"jsonrpc":"2.0","id":"a","method":5}', "a"),
        (b'{"jsonrpc":"2.0","id":{},"method":5}', None),
    ],
)
def test_a_line_that_is_no_message_is_answered(line: bytes, number: int | str | None) -> None:
    answer = parse_client_message(line)
    assert isinstance(answer, JSONRPCError)
    assert answer.id == number


def test_an_error_that_a_client_sends_is_a_message_and_no_answer() -> None:
    assert not isinstance(
        parse_client_message(b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}'),
        JSONRPCError,
    )
