"""The reference agent's MCP client: it runs programs, finds skills and saves them.

It uses the tools like any other client, and knows nothing else about the server.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, TextContent

from ... import APP_NAME
from ...capabilities.agent.program_result import ProgramResult
from ...config import Config
from ...errors import CallFailed, Unavailable
from ...protocol.payloads import JsonObject
from ...server.result_format import USAGE_META_KEY

McpTarget = Any  # anything that the SDK's client can connect to: a URL, a server, a transport, ...
PACKAGES_PATTERN = re.compile(r"servers as packages: (?!none)([\w, ]+?)(?: and \d+ more)?\.")
UNFINISHED_STATUSES = ("queued", "running", "waiting")
SUB_AGENT_WAITS_MARK = "sub-agent waits"  # in the note of a run whose sub-agents wait
SKILL_QUERY_CHARS = 300  # of a task
VALUE_CUT_MARK = "value is cut"  # in the note of a run
VALUE_TOO_LARGE = "So it was not submitted: submit less, or write it to a file and submit its name."


class SessionClient:
    """A client of one session on a server; `on_wait` receives what a run waits for."""

    def __init__(self, client: Client, on_wait: Callable[[str], None]) -> None:
        self.session_id = f"agent-{secrets.token_hex(4)}"
        self._client = client
        self._on_wait = on_wait

    async def run_program(self, code: str, inputs: Sequence[Any] = ()) -> ProgramResult:
        """Run a program to its end, through all its waits; raises `McpRuntimeError`."""
        arguments: JsonObject = {"code": code, "session": self.session_id}
        if inputs:
            arguments["context"] = list(inputs)
        result = await self._run_code(**arguments)
        stdout, stderr = result.get("stdout", ""), result.get("stderr", "")
        while result["status"] in UNFINISHED_STATUSES:
            self._report_wait(result)
            result = await self._run_code(run=result["run"])
            stdout += result.get("stdout", "")
            stderr += result.get("stderr", "")
        if stdout:
            result["stdout"] = stdout
        if stderr:
            result["stderr"] = stderr
        note = result.get("note", "")
        if result.get("submitted") and VALUE_CUT_MARK in note:
            result["submitted"] = False
            result["note"] = f"{note} {VALUE_TOO_LARGE}"
        return result

    async def _run_code(self, **arguments: Any) -> ProgramResult:
        return cast(ProgramResult, await self.call_tool("run_code", **arguments))

    def _report_wait(self, result: ProgramResult) -> None:
        note = result.get("note", "")
        if result["status"] == "waiting":
            run = result["run"]
            calls = ", ".join(question["call"] for question in result.get("waiting_for", ()))
            self._on_wait(f"run {run} waits for an approval: {calls}. {note}")
        elif SUB_AGENT_WAITS_MARK in note:
            self._on_wait(note)

    async def find_skills(self, task: str) -> str:
        """Return the skills that may help, one per line; "" if there are none."""
        answer = await self.call_tool("list_skills", query=task[:SKILL_QUERY_CHARS])
        lines = [
            f"{skill['name']}: {skill.get('summary', '')}" for skill in answer.get("skills", ())
        ]
        return "\n".join(lines)

    async def save_skill(self, run_id: str) -> str:
        """Save a run as a skill and return the outcome in one line."""
        try:
            answer = await self.call_tool("save_skill", run=run_id)
        except CallFailed as exc:
            return f"not saved as a skill: {exc.message}"
        saved = f"saved as the skill {answer['name']} ({answer.get('state', '')})"
        reasons = " ".join(answer.get("reasons", ()))
        return f"{saved}: {reasons}" if reasons else saved

    async def call_tool(self, tool: str, **arguments: Any) -> JsonObject:
        """Return the structured answer of a tool.

        Raises `CallFailed` if the tool refuses, `Unavailable` without a server.
        """
        try:
            answer = await self._client.call_tool(tool, arguments)
        except MCPError as exc:
            raise Unavailable(
                f"The server does not answer: {exc}", remedy="Its log says why."
            ) from None
        if answer.is_error:
            raise CallFailed("refused", result_text(answer))
        usage = (answer.meta or {}).get(USAGE_META_KEY)
        return {**(answer.structured_content or {}), **({"usage": usage} if usage else {})}


async def list_package_names(client: Client) -> tuple[str, ...]:
    """Return the tool packages that the description of `run_code` names."""
    for tool in (await client.list_tools()).tools:
        if tool.name == "run_code" and (found := PACKAGES_PATTERN.search(tool.description or "")):
            return tuple(re.findall(r"\w+", found[1]))
    return ()


def result_text(answer: CallToolResult) -> str:
    """Return an answer as text."""
    return "\n".join(part.text for part in answer.content if isinstance(part, TextContent))


@asynccontextmanager
async def connect_session(
    config: Config,
    target: McpTarget | None,
    model: str,
    roots: Sequence[Path] = (),
    usd: float | None = None,
) -> AsyncIterator[Client]:
    """Yield a client of `target`, or else of a new server with these settings.

    The arguments override the settings of a new server. `usd` is the most that all its programs
    together may spend on models.
    """
    if target is not None:
        async with Client(target) as client:
            yield client
        return
    log = config.server.data_dir / "logs" / "agent-server.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log_file = log.open("a", encoding="utf-8")
    except OSError as exc:
        raise Unavailable(f"The log {log} cannot be written: {exc.strerror}.") from exc
    async with AsyncExitStack() as stack:
        stack.enter_context(log_file)
        parameters = server_parameters(config, model, roots, usd)
        try:
            client = await stack.enter_async_context(Client(stdio_client(parameters, log_file)))
        except (MCPError, ExceptionGroup) as exc:
            raise Unavailable(
                "The server of the agent did not start.", remedy=f"Its log {log} says why."
            ) from exc
        yield client


def server_parameters(
    config: Config, model: str, roots: Sequence[Path], usd: float | None
) -> StdioServerParameters:
    """Return the parameters that start a server with these settings.

    Files below `roots` can be its inputs, too.
    """
    args = [
        "--data-dir",
        str(config.server.data_dir),
        "--backend",
        config.sandbox.backend,
        "--stdio",
    ]
    if config.sources.file:
        args = ["--config", str(config.sources.file), *args]
    environ = dict(os.environ)
    if model:
        environ["MCPRUNTIME_LLM__MODEL"] = model
    limits = [limit for limit in (usd, config.llm.principal.usd) if limit is not None]
    if limits:
        environ["MCPRUNTIME_LLM__PRINCIPAL__USD"] = str(min(limits))
    if roots:
        folders = dict.fromkeys(map(str, (*config.server.context_roots, *roots)))
        environ["MCPRUNTIME_SERVER__CONTEXT_ROOTS"] = json.dumps(list(folders))
    command = str(Path(sys.executable).with_name(APP_NAME))
    return StdioServerParameters(command=command, args=args, env=environ)
