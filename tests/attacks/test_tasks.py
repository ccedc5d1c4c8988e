"""Tasks that a client makes, asks about, cancels and leaves cost nobody else anything."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from tests.helpers.server_connection import write_settings
from tests.upstreams import own_server_entry

from .bystander import observe
from .raw_client import RawClient, connect_raw_client

TASKS = "io.modelcontextprotocol/tasks"
ASK = f"from tools.lively import echo\nfor n in range(20): echo(text='{'z' * 2_000}')"
REFUSED = -32602
NAMES = {
    "a run that never was": "r_0000000000000000",
    "a long name": "r_" + "x" * 200_000,
    "control characters": "\x1b[2J\u2028\u0000",
    "a path": "../../journal.db",
    "nothing": "",
}
RESPONSES = {
    "many names": {f"form_{n}": {"action": "accept", "content": {}} for n in range(20_000)},
    "a long name": {"f" * 2_000_000: {"action": "accept"}},
    "a nested answer": json.loads('{"a":' * 90 + "1" + "}" * 90),
    "a long answer": {"form": {"action": "accept", "content": {"decision_1": "x" * 2_000_000}}},
    "no answer": {"form": [[]] * 50_000},
}


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RawClient]:
    """A client that takes tasks and shows forms."""
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        mcpServers={"lively": own_server_entry("lively")},
        policy={"tools": {"lively.echo": "ask"}},
        sandbox={"output_mb": 16},
    )
    capabilities: dict[str, Any] = {"extensions": {TASKS: {}}, "elicitation": {"form": {}}}
    async with connect_raw_client(settings, "auto", **capabilities) as connected:
        yield connected


async def start(client: RawClient, code: str, session: str, **more: Any) -> dict[str, Any]:
    """Start a run that becomes a task; return the result of the call, or the error."""
    arguments = {"code": code, "session": session, "background": True, **more}
    reply = await client.request("tools/call", {"name": "run_code", "arguments": arguments})
    return dict(reply.get("result") or reply["error"])


async def ask(client: RawClient, method: str, task: str, **more: Any) -> dict[str, Any]:
    """Send a request about a task and return its reply."""
    return await client.request(f"tasks/{method}", {"taskId": task, **more})


async def follow(client: RawClient, task: str) -> dict[str, Any]:
    """Return the state of a task at its end."""
    while True:
        state = (await ask(client, "get", task))["result"]
        if state["status"] in ("completed", "cancelled", "failed"):
            return dict(state)
        await anyio.sleep(0.05)


async def repeat(client: RawClient, method: str, task: str, count: int) -> list[dict[str, Any]]:
    """Send the same request many times at once and return the replies."""
    replies = []

    async def send() -> None:
        replies.append(await ask(client, method, task))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(send)
    return replies


async def test_many_tasks_of_one_session(client: RawClient) -> None:
    async with observe(client):
        started = [await start(client, f"{n}", "many") for n in range(200)]
        names = [each["taskId"] for each in started if "taskId" in each]
        assert names, started[0]
        last = await follow(client, names[-1])
    assert last["status"] == "completed"


async def test_tasks_of_many_sessions_are_refused_at_the_limit(client: RawClient) -> None:
    code, replies = "import time\ntime.sleep(1)", []

    async def begin(number: int) -> None:
        replies.append(await start(client, code, f"session {number}"))

    async with observe(client):
        async with anyio.create_task_group() as tasks:
            for number in range(80):
                tasks.start_soon(begin, number)
        started = [each["taskId"] for each in replies if "taskId" in each]
        assert started
        for task in started:
            await follow(client, task)


async def test_a_task_that_is_asked_about_all_the_time(client: RawClient) -> None:
    task = await start(client, "import time\nfor n in range(20): time.sleep(0.1)", "asked")
    async with observe(client):
        replies = await repeat(client, "get", task["taskId"], 1_500)
        await follow(client, task["taskId"])
    assert {each["result"]["status"] for each in replies} <= {"working", "completed"}


@pytest.mark.parametrize("code", ["print('\\u2028' * 3_000_000)", "'x' * 250_000"])
async def test_a_large_result_that_is_taken_again_and_again(client: RawClient, code: str) -> None:
    task = (await start(client, code, "large"))["taskId"]
    await follow(client, task)
    async with observe(client):
        replies = await repeat(client, "get", task, 150)
    assert len({json.dumps(each["result"]["result"]) for each in replies}) == 1


async def test_tasks_that_are_left_keep_little_memory(client: RawClient) -> None:
    async with observe(client):
        for number in range(24):
            task = await start(client, "print('x' * 8_000_000)", f"left {number % 3}")
            assert "taskId" in task, task
        await follow(client, task["taskId"])


async def test_a_task_that_is_cancelled_all_the_time(client: RawClient) -> None:
    task = (await start(client, "while True: pass", "cancelled"))["taskId"]
    async with observe(client):
        await repeat(client, "cancel", task, 500)
        assert (await follow(client, task))["status"] == "cancelled"


async def test_tasks_that_are_cancelled_as_soon_as_they_are_made(client: RawClient) -> None:
    async with observe(client):
        for number in range(60):
            task = (await start(client, "while True: pass", f"short {number % 4}"))["taskId"]
            await ask(client, "cancel", task)
        assert (await follow(client, task))["status"] == "cancelled"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["get", "cancel", "update"])
async def test_a_task_that_never_was(client: RawClient, method: str, name: str) -> None:
    more: dict[str, Any] = {"inputResponses": {}} if method == "update" else {}
    async with observe(client):
        for _ in range(20):
            reply = await ask(client, method, NAMES[name], **more)
            assert reply["error"]["code"] == REFUSED, reply
            assert len(json.dumps(reply)) < 3_000


@pytest.mark.parametrize("name", RESPONSES)
async def test_answers_to_forms_that_were_never_shown(client: RawClient, name: str) -> None:
    task = (await start(client, ASK, f"forms {name}"))["taskId"]
    async with observe(client):
        for _ in range(3):
            reply = await ask(client, "update", task, inputResponses=RESPONSES[name])
            assert "result" in reply or reply["error"]["code"] == REFUSED, str(reply)[:500]
        for _ in range(100):
            await ask(client, "get", task)
        await ask(client, "cancel", task)
        assert (await follow(client, task))["status"] == "cancelled"


async def test_many_tasks_that_wait_for_a_person(client: RawClient) -> None:
    async with observe(client):
        waiting = [(await start(client, ASK, f"waiting {n}"))["taskId"] for n in range(12)]
        for _ in range(20):
            for task in waiting:
                assert "result" in await ask(client, "get", task)
        for task in waiting:
            await ask(client, "cancel", task)
            assert (await follow(client, task))["status"] == "cancelled"
