"""Agents that do the same tasks: one writes programs, another calls functions.

All get the same prompts, attempts and model, and all are plain MCP clients. A retry shows the model
the error of its program and nothing else. The programs of a recursive agent ask models themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
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
RECURSIVE_PROMPT = """
Your programs can ask models as well, without an import: `ask_llm(prompt, data=None, schema=None)`
returns an answer about data, `ask_llm_batch(prompt, [data, ...], schema=None)` returns slots with
.ok, .value and .error, and `sub_agent(task, context=None, schema=None)` lets an agent with the same
tools do a part of the task. What they read does not reach you: let them read what is long.
"""
SAY_PROGRAM = "There is no program in your answer: write one in a block fenced with ```python."


@dataclass(frozen=True)
class AgentResult:
    """What an agent came to, and the model requests and tokens in before its first useful call."""

    value: Any
    iterations: int
    requests_before_call: int
    tokens_before_call: int
    failure: str = ""
    result_chars: int = 0  # of what functions returned, before it was cut


class CallWatch:
    """Notes what models had used when the servers got their first call.

    What the program of that call asked of models counts, even what it asked later.
    """

    def __init__(self, model: ChatModel, count_calls: Callable[[], int]) -> None:
        self._usage = model.usage
        self._count_calls = count_calls
        self._requests = self._tokens_in = 0
        self._has_called = False

    def note_result(self) -> None:
        """Look whether the servers got a call, after each program or call."""
        if not self._has_called:
            self._requests = self._usage.turns + self._usage.requests_of_programs
            self._tokens_in = self._usage.tokens_in
            self._has_called = bool(self._count_calls())

    def finish(self, value: Any, iterations: int, failure: str = "") -> AgentResult:
        """Return the result of the agent."""
        return AgentResult(value, iterations, self._requests, self._tokens_in, failure)


async def do_by_programs(
    server: CodeServer,
    model: ChatModel,
    task: str,
    session: str,
    count_calls: Callable[[], int],
    *,
    attempts: int,
    is_recursive: bool = False,
) -> AgentResult:
    """Let a model do a task with programs; raises `ModelFailed`.

    If it `is_recursive`, the model learns that its programs can ask models.
    """
    system = PROGRAM_PROMPT + (server.tool.description or "") + RECURSIVE_PROMPT * is_recursive
    messages: list[Message] = [
        {"role": "system", "content": system},
        {"role": "user", "content": task},
    ]
    watch = CallWatch(model, count_calls)
    for attempt in range(1, attempts + 1):
        completion = await model.complete(messages)
        found = CODE_BLOCK.search(completion.text)
        messages.append(completion.message)
        if found is None:
            watch.note_result()
            messages.append({"role": "user", "content": SAY_PROGRAM})
            continue
        answer = await server.run_program(found[1], session)
        model.usage.add_programs(answer.usage)
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
    result_chars = 0
    for turn in range(1, max_turns + 1):
        completion = await model.complete(messages, definitions)
        messages.append(completion.message)
        if not completion.calls:
            watch.note_result()
            result = watch.finish(parse_text(completion.text), turn)
            return replace(result, result_chars=result_chars)
        for number, call in enumerate(completion.calls):
            text = "Call one function at a time." if number else await tools.call(call)
            result_chars += len(text)
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
