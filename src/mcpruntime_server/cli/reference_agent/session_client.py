"""The reference agent's end of the server: an MCP client that has programs executed, finds skills and keeps them.

It knows the tools as any client does, and nothing of what is behind them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, TextContent

from ... import APP_NAME
from ...config import Config
from ...errors import CallFailed, Unavailable

McpTarget = (
    Any  # what the SDK's client connects to: a URL, a server, a transport, parameters of a process
)
PACKAGES_PATTERN = re.compile(r"servers as packages: (?!none)([\w, ]+?)(?: and \d+ more)?\.")
UNFINISHED_STATUSES = ("queued", "running", "waiting")
OUTPUT_FIELDS = ("stdout", "stderr")
SUB_AGENT_WAITS_MARK = "sub-agent waits"  # in the note of a run: what its agents wait for
SKILL_QUERY_CHARS = 300  # of a task, to look for skills with
VALUE_CUT_MARK = "value is cut"  # in the note of a run
VALUE_TOO_LARGE = "So it was not submitted: submit less, or write it to a file and submit its name."
WAIT_MESSAGE = (
    "run {run} waits for a person: {calls}; answer with `mcpruntime-server approvals {run}`"
)


class SessionClient:
    """One session on a server."""

    def __init__(self, client: Client, on_wait: Callable[[str], None]) -> None:
        self.session_id = f"agent-{secrets.token_hex(4)}"
        self._client = client
        self._on_wait = on_wait

    async def run_program(self, code: str, inputs: Sequence[Any] = ()) -> Mapping[str, Any]:
        """Run a program to its end, whatever it waits for; raises `McpRuntimeError`."""
        context = {"context": list(inputs)} if inputs else {}
        told = await self.call_tool("run_code", code=code, session=self.session_id, **context)
        printed = {name: told.get(name, "") for name in OUTPUT_FIELDS}
        while told["status"] in UNFINISHED_STATUSES:
            if told["status"] == "waiting":
                calls = ", ".join(wait["call"] for wait in told["waiting_for"])
                self._on_wait(WAIT_MESSAGE.format(run=told["run"], calls=calls))
            elif SUB_AGENT_WAITS_MARK in told.get("note", ""):
                self._on_wait(told["note"])
            told = await self.call_tool("run_code", run=told["run"])
            printed = {name: printed[name] + told.get(name, "") for name in OUTPUT_FIELDS}
        if told.get("submitted") and VALUE_CUT_MARK in told.get("note", ""):
            told |= {"submitted": False, "note": f"{told['note']} {VALUE_TOO_LARGE}"}
        return {**told, **{name: text for name, text in printed.items() if text}}

    async def find_skills(self, task: str) -> str:
        """Return the skills that may help, a line each; "" if there are none."""
        told = await self.call_tool("list_skills", query=task[:SKILL_QUERY_CHARS])
        lines = [f"{each['name']}: {each.get('summary', '')}" for each in told.get("skills", ())]
        return "\n".join(lines)

    async def save_skill(self, run_id: str) -> str:
        """Have a run kept as a skill; return in one line what became of it."""
        try:
            told = await self.call_tool("save_skill", run=run_id)
        except CallFailed as exc:
            return f"not kept as a skill: {exc.message}"
        reasons = " ".join(told.get("reasons", ()))
        return f"kept as the skill {told['name']} ({told.get('state', '')}){f': {reasons}' if reasons else ''}"

    async def call_tool(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return what a tool answers; raises `CallFailed` where it refuses, `Unavailable` if the server is gone."""
        try:
            answer = await self._client.call_tool(tool, arguments)
        except MCPError as exc:
            raise Unavailable(
                f"The server does not answer: {exc}", remedy="Its log says why."
            ) from None
        if answer.is_error:
            raise CallFailed("refused", result_text(answer))
        return answer.structured_content or {}


async def list_package_names(client: Client) -> tuple[str, ...]:
    """Return the packages of tools that the server names in the description of `run_code`."""
    for tool in (await client.list_tools()).tools:
        if tool.name == "run_code" and (found := PACKAGES_PATTERN.search(tool.description or "")):
            return tuple(re.findall(r"\w+", found[1]))
    return ()


def result_text(answer: CallToolResult) -> str:
    """Return an answer as text."""
    return "\n".join(part.text for part in answer.content if isinstance(part, TextContent))


@asynccontextmanager
async def connect(
    config: Config,
    target: McpTarget | None,
    model: str,
    roots: Sequence[Path] = (),
    usd: float | None = None,
) -> AsyncIterator[Client]:
    """Yield a client of `target`, or of a server of our own with the same settings, but for what is given here.

    All that programs ask there costs `usd` at most.
    """
    if target is not None:
        async with Client(target) as client:
            yield client
        return
    log = config.server.data_dir / "logs" / "agent-server.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        errors = log.open("a", encoding="utf-8")
    except OSError as exc:
        raise Unavailable(f"The log {log} cannot be written: {exc.strerror}.") from exc
    async with AsyncExitStack() as stack:
        stack.enter_context(errors)
        own = Client(stdio_client(server_parameters(config, model, roots, usd), errors))
        try:
            client = await stack.enter_async_context(own)
        except (MCPError, ExceptionGroup) as exc:
            raise Unavailable(
                "The server of the agent did not start.", remedy=f"Its log {log} says why."
            ) from exc
        yield client


def server_parameters(
    config: Config, model: str, roots: Sequence[Path], usd: float | None
) -> StdioServerParameters:
    """Return how our own server is started with these settings; files below `roots` can be inputs, too."""
    limits = [each for each in (usd, config.llm.principal.usd) if each is not None]
    file = ["--config", str(config.sources.file)] if config.sources.file else []
    places = ["--data-dir", str(config.server.data_dir), "--backend", config.sandbox.backend]
    environ = {**os.environ, **({"MCPRUNTIME_LLM__MODEL": model} if model else {})}
    if limits:
        environ["MCPRUNTIME_LLM__PRINCIPAL__USD"] = str(min(limits))
    if roots:
        folders = dict.fromkeys(map(str, (*config.server.context_roots, *roots)))
        environ["MCPRUNTIME_SERVER__CONTEXT_ROOTS"] = json.dumps(list(folders))
    command = str(Path(sys.executable).with_name(APP_NAME))
    return StdioServerParameters(command=command, args=[*file, *places, "--stdio"], env=environ)
