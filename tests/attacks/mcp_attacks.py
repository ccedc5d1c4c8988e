"""What hostile clients of the SDK do, each in a process of its own: see `attack_process`.

`python -m tests.attacks.mcp_attacks NAME URL TOKEN`; it fails if an answer is wrong.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from mcp import MCPError
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from mcpruntime_server.server.mcp_server import MAX_PROMPT_CHARS

from ..helpers.http_service import create_http_client
from ..helpers.server_connection import ServerConnection
from .attack_process import serve_attacks

BODY_CHARS = 3_900_000  # a little less than what is refused unread
NAME_CHARS = 15_000  # a client repeats names in headers
ROUNDS = 6
SESSION = "mallory"
OBJECTS = "[" + "{}," * (BODY_CHARS // 3) + "{}]"
QUOTES = '"' * (BODY_CHARS // 2)

Attack = Callable[[ServerConnection], Awaitable[Any]]


def call(tool: str, /, **arguments: Any) -> Attack:
    """Return what calls a tool again and again."""

    async def attack(attacker: ServerConnection) -> None:
        for _ in range(ROUNDS):
            with suppress(MCPError):
                await attacker.client.call_tool(tool, arguments)

    return attack


async def get_prompts(attacker: ServerConnection) -> None:
    """Ask for prompts with long arguments, and for one that is not there."""
    for prompt in (await attacker.client.list_prompts()).prompts:
        for argument in prompt.arguments or ():
            for _ in range(ROUNDS):
                for task in (QUOTES, QUOTES[:MAX_PROMPT_CHARS]):
                    with suppress(MCPError):
                        await attacker.client.get_prompt(prompt.name, {argument.name: task})
    with suppress(MCPError):
        await attacker.client.get_prompt("x" * NAME_CHARS)


async def read_resources(attacker: ServerConnection) -> None:
    """Read addresses that are long, or have many parts."""
    for scheme in ("skill://", "workspace://", "knowledge://", ""):
        for part in ("x", "../", "%25", "a/", "{a}", "?a=b&"):
            for _ in range(ROUNDS):
                with suppress(MCPError, ValueError):
                    await attacker.client.read_resource(scheme + part * (NAME_CHARS // len(part)))


async def match_patterns(attacker: ServerConnection) -> None:
    """Match patterns with the files of a workspace that has many, deep down."""
    code = "import os\nfor n in range(40):\n    folder = '/'.join('a' * 14 + str(n))\n"
    code += "    os.makedirs(folder, exist_ok=True)\n"
    code += "    for m in range(50): open(f'{folder}/f{m}', 'w').close()"
    assert (await attacker.run(code, SESSION)).status == "ok"
    for pattern in ("/".join(["**", "*"] * 15 + ["x"]), "**/" + "*a" * 100, "*[!b]*" * 40):
        for _ in range(ROUNDS):
            await attacker.run("1", SESSION, context=[pattern])
    await attacker.run("1", SESSION, context=["**/*/**/*/**/*/**/*/**/y"] * 60)


async def answer_often(attacker: ServerConnection) -> None:
    """Give long answers to many questions of one run."""
    code = "for n in range(30): answer = ask_llm(f'Which? {n}')\nlen(answer)"
    asked = await attacker.run(code, SESSION)
    while asked.status == "waiting":
        answers = {each["id"]: "x" * BODY_CHARS for each in asked.waiting_for}
        asked = await attacker.run_request(asked.run, answers=answers)
    assert asked.status in ("ok", "error"), asked.text[:500]  # which is how much it may record


async def run_long_code(attacker: ServerConnection) -> None:
    """Run code that is mostly one text."""
    for _ in range(ROUNDS):
        found = await attacker.evaluate(f"x = {QUOTES[:1_500_000]!r}\nlen(x)", SESSION)
        assert found == 1_500_000


async def rerun_other_code(attacker: ServerConnection) -> None:
    """Execute a step again with other code, which is long."""
    assert await attacker.evaluate("x = 1\nx", SESSION) == 1
    for _ in range(ROUNDS):
        await attacker.replay("rerun", SESSION, step=1, code=f"y = {QUOTES[:1_500_000]!r}")


async def open_many_sessions(attacker: ServerConnection) -> None:
    """Ask for sessions that are not there, many at once."""

    async def ask(number: int) -> None:
        await attacker.replay("show", f"nobody{number}")

    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(ask, number)


async def attach_out_of_order(attacker: ServerConnection) -> None:
    """Wait for a run, answer it, cancel it and attach again, all at once and often."""
    asked = await attacker.run("ask_llm('Which?')", SESSION)

    async def disturb(number: int) -> None:
        more: list[dict[str, Any]] = [
            {"answers": {"q1": "a", "q9": [{}] * 3_000}},
            {"answers": {"*": "x" * 100_000}},
            {"wait_s": 0},
            {"cancel": number > 90},
            {"answers": {str(n): n for n in range(9_000)}},
        ]
        await attacker.run_request(asked.run, **more[number % len(more)])

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(disturb, number)


ATTACKS: dict[str, Attack] = {
    "code of many objects": call("run_code", code=OBJECTS, session=SESSION, wait_s=0, timeout_s=1),
    "answers as text": call("run_code", run="r_1", answers=OBJECTS),
    "context as text": call("run_code", code="1", context=OBJECTS),
    "names to call as text": call("replay", action="rerun", session=SESSION, live=OBJECTS),
    "many names to call": call("replay", action="rerun", session=SESSION, live=["a"] * 18_000),
    "a long session": call("run_code", code="1", session=QUOTES),
    "a long run": call("replay", action="show", run=QUOTES),
    "a long unknown argument": call("run_code", **{QUOTES: 1}),
    "many unknown arguments": call("run_code", **{f"cod{n}": 1 for n in range(9_000)}),
    "many inputs": call("run_code", code="1", context=[{"text": "x" * 50_000}] * 64),
    "a long search": call("list_skills", query=QUOTES),
    "a long skill": call("save_skill", name=QUOTES, session=SESSION),
    "prompts": get_prompts,
    "resources": read_resources,
    "patterns": match_patterns,
    "long answers to one run": answer_often,
    "long code": run_long_code,
    "other code": rerun_other_code,
    "many sessions": open_many_sessions,
    "out of order": attach_out_of_order,
}


@asynccontextmanager
async def connect_client(url: str, token: str) -> AsyncIterator[ServerConnection]:
    """Be a client of the SDK."""
    async with (
        create_http_client(headers={"Authorization": f"Bearer {token}"}) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield ServerConnection(client, Path())  # of a server whose folder is not its own


if __name__ == "__main__":
    serve_attacks(ATTACKS, connect_client)
