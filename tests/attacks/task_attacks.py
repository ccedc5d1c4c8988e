"""What hostile clients do with tasks, each in a process of its own: see `attack_process`.

`python -m tests.attacks.task_attacks NAME URL TOKEN`; it fails if an answer is wrong. They send
messages as they are on the wire, because the SDK would not send some of them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx2
from mcp_types import CLIENT_CAPABILITIES_META_KEY

from ..helpers.http_service import create_http_client
from ..helpers.server_connection import TEST_TIMEOUT_S
from .attack_process import serve_attacks
from .raw_client import META, MODERN_VERSION

TASKS = "io.modelcontextprotocol/tasks"
CAPABILITIES: dict[str, Any] = {"extensions": {TASKS: {}}, "elicitation": {"form": {}}}
CONNECTIONS = 100  # fewer than the requests of a principal that may be under way
SESSIONS = 80  # more than a principal may have
INVALID_PARAMS, PARSE_ERROR = -32602, -32700
MAX_REFUSAL_CHARS = 3_000
POLL_INTERVAL_S = 0.05
ASKING, ENDED = "input_required", ("completed", "cancelled", "failed")
TEXT_CHARS = 3_900_000  # a little less than what is refused unread
ASKING_CODE = f"from tools.lively import echo\nfor n in range(20): echo(text='{'z' * 2_000}')"
ENDLESS_CODE = "while True: pass"
NAMES = {
    "never was": "r_0000000000000000",
    "has a long name": "r_" + "x" * 200_000,
    "has control characters": "\x1b[2J\u2028\u0000",
    "is a path": "../../journal.db",
    "has no name": "",
}
RESPONSES: dict[str, dict[str, Any]] = {  # of fewer values than are refused unread
    "many names": {f"form_{n}": {"action": "accept", "content": {}} for n in range(4_900)},
    "a long name": {"f" * TEXT_CHARS: {"action": "accept"}},
    "a nested answer": json.loads('{"a":' * 90 + "1" + "}" * 90),
    "a long answer": {"form": {"action": "accept", "content": {"decision_1": "x" * TEXT_CHARS}}},
    "no answer": {"form": [[]] * 9_900},
}


class TaskClient:
    """A client that takes tasks and shows forms, over several connections."""

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the reply, which has a result or an error."""
        meta = {**META, CLIENT_CAPABILITIES_META_KEY: CAPABILITIES}
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        headers = {"Mcp-Method": method}
        if method == "tools/call":
            headers["Mcp-Name"] = params["name"]
        reply = parse_reply(await self._http.post(self._url, json=body, headers=headers))
        assert reply.keys() & {"result", "error"}, str(reply)[:500]
        return reply

    async def call_tool(self, code: str, session: str) -> dict[str, Any]:
        """Start a run in the background and return the result of the call."""
        arguments = {"code": code, "session": session, "background": True}
        reply = await self.request("tools/call", {"name": "run_code", "arguments": arguments})
        return dict(reply["result"])

    async def start_task(self, code: str, session: str) -> str:
        """Start a run, which must become a task, and return its name."""
        result = await self.call_tool(code, session)
        assert "taskId" in result, result
        return str(result["taskId"])

    async def send(self, method: str, task: str, **more: Any) -> dict[str, Any]:
        """Send a request about a task and return the reply."""
        return await self.request(f"tasks/{method}", {"taskId": task, **more})

    async def follow_task(self, task: str, *until: str) -> dict[str, Any]:
        """Return the state of a task when it has one of some statuses, or at its end."""
        with anyio.fail_after(TEST_TIMEOUT_S):
            while True:
                state = (await self.send("get", task))["result"]
                if state["status"] in (*until, *ENDED):
                    return dict(state)
                await anyio.sleep(POLL_INTERVAL_S)

    async def cancel_task(self, task: str) -> None:
        """Cancel a task, which must end so."""
        await self.send("cancel", task)
        assert (await self.follow_task(task))["status"] == "cancelled"

    async def repeat(self, count: int, method: str, task: str) -> list[dict[str, Any]]:
        """Send the same request many times, on all connections at once; return the replies."""
        replies: list[dict[str, Any]] = []
        left = iter(range(count))

        async def send_on_connection() -> None:
            replies.extend([await self.send(method, task) for _ in left])

        async with anyio.create_task_group() as tasks:
            for _ in range(CONNECTIONS):
                tasks.start_soon(send_on_connection)
        return replies

    async def evaluate(self, code: str, session: str) -> Any:
        """Run code, which must succeed, and return its value."""
        state = await self.follow_task(await self.start_task(code, session))
        data = state["result"]["structuredContent"]
        assert data["status"] == "ok", data
        return data["value"]


def parse_reply(response: httpx2.Response) -> dict[str, Any]:
    """Return the message in a response, which may be a stream of events."""
    content = response.content
    if response.headers["Content-Type"].startswith("text/event-stream"):
        # Only bytes are split where lines of events end; text is also split at other characters.
        lines = content.splitlines()
        (content,) = (line[len(b"data: ") :] for line in lines if line.startswith(b"data: "))
    reply = json.loads(content)
    assert isinstance(reply, dict), reply
    return reply


async def make_many_of_one_session(client: TaskClient) -> None:
    """Make many tasks in one session, one after the other."""
    tasks = [await client.start_task(f"{n}", "many") for n in range(200)]
    assert (await client.follow_task(tasks[-1]))["status"] == "completed"


async def make_many_of_many_sessions(client: TaskClient) -> None:
    """Make tasks in more sessions at once than a principal may have; some are refused."""
    results: list[dict[str, Any]] = []

    async def start(number: int) -> None:
        results.append(await client.call_tool("import time\ntime.sleep(1)", f"session {number}"))

    async with anyio.create_task_group() as tasks:
        for number in range(SESSIONS):
            tasks.start_soon(start, number)
    started = [each["taskId"] for each in results if "taskId" in each]
    refused = [each for each in results if "taskId" not in each]
    assert started
    assert refused
    for result in refused:
        assert result["isError"], result
        assert "sessions are busy" in result["content"][0]["text"], result
    for task in started:
        assert (await client.follow_task(task))["status"] == "completed"


async def ask_all_the_time(client: TaskClient) -> None:
    """Ask about a task very often while it runs."""
    task = await client.start_task("import time\nfor n in range(20): time.sleep(0.1)", "asked")
    replies = await client.repeat(1_500, "get", task)
    assert {each["result"]["status"] for each in replies} <= {"working", "completed"}
    assert (await client.follow_task(task))["status"] == "completed"


async def take_again_and_again(client: TaskClient, code: str) -> None:
    """Take a large result very often; it stays the same."""
    task = await client.start_task(code, "large")
    await client.follow_task(task)
    replies = await client.repeat(150, "get", task)
    assert len({json.dumps(each["result"]["result"]) for each in replies}) == 1


async def leave_tasks(client: TaskClient) -> None:
    """Make tasks with much output, and take the result of the last one alone."""
    for number in range(24):
        task = await client.start_task("print('x' * 8_000_000)", f"left {number % 3}")
    await client.follow_task(task)


async def cancel_all_the_time(client: TaskClient) -> None:
    """Cancel a task very often."""
    task = await client.start_task(ENDLESS_CODE, "cancelled")
    await client.repeat(500, "cancel", task)
    assert (await client.follow_task(task))["status"] == "cancelled"


async def cancel_as_soon_as_made(client: TaskClient) -> None:
    """Cancel tasks immediately after they were made."""
    for number in range(60):
        task = await client.start_task(ENDLESS_CODE, f"short {number % 4}")
        await client.send("cancel", task)
    assert (await client.follow_task(task))["status"] == "cancelled"


async def name_task(client: TaskClient, name: str) -> None:
    """Ask about a task that there is not, cancel it and update it."""
    for method in ("get", "cancel", "update"):
        more: dict[str, Any] = {"inputResponses": {}} if method == "update" else {}
        for _ in range(20):
            reply = await client.send(method, name, **more)
            assert reply["error"]["code"] == INVALID_PARAMS, str(reply)[:MAX_REFUSAL_CHARS]
            assert len(json.dumps(reply)) < MAX_REFUSAL_CHARS


async def answer_forms_never_shown(client: TaskClient, responses: dict[str, Any]) -> None:
    """Answer other forms than the one that a task shows."""
    task = await client.start_task(ASKING_CODE, "forms")
    assert (await client.follow_task(task, ASKING))["status"] == ASKING
    for _ in range(3):
        reply = await client.send("update", task, inputResponses=responses)
        if "error" in reply:
            assert reply["error"]["code"] in (INVALID_PARAMS, PARSE_ERROR), str(reply)[:500]
    for _ in range(100):
        await client.send("get", task)
    await client.cancel_task(task)


async def wait_for_person(client: TaskClient) -> None:
    """Make many tasks that wait for a person, and ask about all of them."""
    waiting = [await client.start_task(ASKING_CODE, f"waiting {n}") for n in range(12)]
    for _ in range(20):
        for task in waiting:
            assert "result" in await client.send("get", task)
    for task in waiting:
        await client.cancel_task(task)


ATTACKS: dict[str, Callable[[TaskClient], Awaitable[None]]] = {
    "many tasks of one session": make_many_of_one_session,
    "tasks of too many sessions": make_many_of_many_sessions,
    "a task that is asked about all the time": ask_all_the_time,
    "a large output that is taken often": partial(
        take_again_and_again, code="print('\\u2028' * 3_000_000)"
    ),
    "a large value that is taken often": partial(take_again_and_again, code="'x' * 250_000"),
    "tasks that are left": leave_tasks,
    "a task that is cancelled all the time": cancel_all_the_time,
    "tasks that are cancelled as soon as made": cancel_as_soon_as_made,
    **{f"a task that {name}": partial(name_task, name=NAMES[name]) for name in NAMES},
    **{
        f"forms never shown, {name}": partial(answer_forms_never_shown, responses=RESPONSES[name])
        for name in RESPONSES
    },
    "tasks that wait for a person": wait_for_person,
}


@asynccontextmanager
async def connect_client(url: str, token: str) -> AsyncIterator[TaskClient]:
    """Be a client that takes tasks."""
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": MODERN_VERSION,
    }
    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with create_http_client(headers=headers, limits=limits) as http:
        yield TaskClient(http, url)


if __name__ == "__main__":
    serve_attacks(ATTACKS, connect_client)
