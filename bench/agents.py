"""Two agents that do the same tasks: one writes programs, the other calls functions.

Both get the same prompts, attempts and model, and both are plain MCP clients. A retry shows the
model the error of its program and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.types import Tool

from .code_server import CodeServer, parse_text
from .harness import first_text
from .models import ChatModel, Message, parse_arguments

ANSWER_MARK = "# answer"
MAX_SHOWN_CHARS = 8_000
CODE_BLOCK = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)
PROGRAM_PROMPT = """\
You do a task by writing Python programs for a server that runs them. Answer with one program in a
block fenced with ```python and ```. You see its result and write the next one. Variables persist.
When the value of the program's last expression is your answer, begin it with the line `# answer`.

How the server describes its tool:
"""
FUNCTION_PROMPT = """\
You do a task by calling functions, one at a time. When you know the answer, write it as JSON,
without any other text. If there is nothing to return, write null.
"""
SAY_PROGRAM = "There is no program in your answer: write one in a block fenced with ```python."


@dataclass(frozen=True)
class AgentResult:
    """What an agent came to, and what it used before its first useful call."""

    value: Any
    iterations: int
    turns_before_call: int
    tokens_before_call: int
    failure: str = ""


@dataclass(frozen=True)
class FirstCall:
    """The turns and tokens in before the first useful call."""

    turns: int
    tokens_in: int


class CallWatch:
    """Notes what a model had used when the servers got their first call."""

    def __init__(self, model: ChatModel, count_calls: Callable[[], int]) -> None:
        self._model = model
        self._count_calls = count_calls
        self._before = FirstCall(0, 0)
        self.first: FirstCall | None = None

    def note_turn(self) -> None:
        """Remember what was used before a program or call is run."""
        self._before = FirstCall(self._model.usage.turns, self._model.usage.tokens_in)

    def note_result(self) -> None:
        """Look whether the servers got a call."""
        if self.first is None and self._count_calls():
            self.first = self._before

    def finish(self, value: Any, iterations: int, failure: str = "") -> AgentResult:
        """Return the result of the agent."""
        first = self.first or self._before
        return AgentResult(value, iterations, first.turns, first.tokens_in, failure)


async def do_by_programs(
    server: CodeServer,
    model: ChatModel,
    task: str,
    session: str,
    count_calls: Callable[[], int],
    *,
    attempts: int,
) -> AgentResult:
    """Let a model do a task with programs; raises `ModelFailed`."""
    system = PROGRAM_PROMPT + (server.tool.description or "")
    messages: list[Message] = [
        {"role": "system", "content": system},
        {"role": "user", "content": task},
    ]
    watch = CallWatch(model, count_calls)
    for attempt in range(1, attempts + 1):
        completion = await model.complete(messages)
        found = CODE_BLOCK.search(completion.text)
        messages.append(completion.message)
        watch.note_turn()
        if found is None:
            messages.append({"role": "user", "content": SAY_PROGRAM})
            continue
        answer = await server.run_program(found[1], session)
        watch.note_result()
        if answer.is_ok and found[1].lstrip().startswith(ANSWER_MARK):
            return watch.finish(answer.value, attempt)
        messages.append({"role": "user", "content": cut(answer.text)})
    return watch.finish(None, attempts, "no answer within the attempts")


async def do_by_functions(
    tools: FunctionTools,
    definitions: Sequence[dict[str, Any]],
    model: ChatModel,
    task: str,
    count_calls: Callable[[], int],
    *,
    max_turns: int,
) -> AgentResult:
    """Let a model do a task with one call per turn; raises `ModelFailed`."""
    messages: list[Message] = [
        {"role": "system", "content": FUNCTION_PROMPT},
        {"role": "user", "content": task},
    ]
    watch = CallWatch(model, count_calls)
    for turn in range(1, max_turns + 1):
        completion = await model.complete(messages, definitions)
        messages.append(completion.message)
        watch.note_turn()
        if not completion.calls:
            return watch.finish(parse_text(completion.text), turn)
        for number, call in enumerate(completion.calls):
            text = "Call one function at a time." if number else await tools.call(call)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": cut(text)})
        watch.note_result()
    return watch.finish(None, max_turns, "no answer within the turns")


class FunctionTools:
    """The tools of all upstream servers as functions, called over the same connections."""

    def __init__(self, clients: Mapping[str, Client], tools: Mapping[str, list[Tool]]) -> None:
        self._clients = clients
        self._tools = tools

    def define(self, needed: Sequence[str], count: int) -> list[dict[str, Any]]:
        """Return `count` definitions, those of the needed servers first; all of them if 0."""
        servers = sorted(self._tools, key=lambda server: server not in needed)
        found = [
            define_function(server, tool) for server in servers for tool in self._tools[server]
        ]
        least = sum(len(self._tools[server]) for server in needed)
        return found[: max(count, least)] if count else found

    async def call(self, call: Mapping[str, Any]) -> str:
        """Make a call and return what the model sees."""
        server, _, tool = call["function"]["name"].partition("__")
        if server not in self._clients:
            return f"There is no function {call['function']['name']!r}."
        try:
            arguments = parse_arguments(call["function"]["arguments"])
        except ValueError as exc:
            return f"The arguments are invalid: {exc}"
        result = await self._clients[server].call_tool(tool, arguments)
        if result.is_error or not result.structured_content:
            return first_text(result)
        return json.dumps(result.structured_content, ensure_ascii=False)


def define_function(server: str, tool: Tool) -> dict[str, Any]:
    """Return a tool as a function of a model."""
    return {
        "type": "function",
        "function": {
            "name": f"{server}__{tool.name}",
            "description": tool.description or "",
            "parameters": tool.input_schema,
        },
    }


@asynccontextmanager
async def open_function_tools(upstreams: Mapping[str, Any]) -> AsyncIterator[FunctionTools]:
    """Connect to all upstream servers."""
    async with AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        tools: dict[str, list[Tool]] = {}
        for name, entry in upstreams.items():
            client = await stack.enter_async_context(Client(StdioServerParameters(**entry)))
            clients[name], tools[name] = client, (await client.list_tools()).tools
        yield FunctionTools(clients, tools)


def cut(text: str) -> str:
    """Return a text as a model sees it: its head and tail, if it is long."""
    if len(text) <= MAX_SHOWN_CHARS:
        return text
    half = MAX_SHOWN_CHARS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters ...\n{text[-half:]}"
