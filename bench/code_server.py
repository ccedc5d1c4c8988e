"""The server that is measured: any MCP server with a tool that runs code."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.types import Tool

from .harness import SERVER_COMMAND, USAGE_META_KEY, first_text, server_parameters, write_settings

CONFIG_MARK = "{config}"
DEFAULT_TOOL = "run_code"
UNFINISHED = ("queued", "running")
CODE_PARAMETERS = ("code", "source", "script")


@dataclass(frozen=True)
class ProgramAnswer:
    """What a program came to: its value, and the text that a model sees."""

    is_ok: bool
    value: Any
    text: str
    session: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)


class CodeServer:
    """A client of the server that is measured."""

    def __init__(self, client: Client, tool: Tool, prelude: str) -> None:
        self.client = client
        self.tool = tool
        self._prelude = prelude
        properties = tool.input_schema.get("properties", {})
        self._code_key = next(
            (key for key in ("code", "source", "script") if key in properties), ""
        )
        self._has_sessions = "session" in properties
        self.last_run = ""  # the id of the last run that ended, if the server has ids
        if not self._code_key:
            raise ValueError(f"The tool {tool.name} has no parameter for code: {list(properties)}.")

    async def run_program(self, code: str, session: str = "") -> ProgramAnswer:
        """Run a program to its end."""
        arguments: dict[str, Any] = {self._code_key: self._prelude + code}
        if session and self._has_sessions:
            arguments["session"] = session
        while True:
            result = await self.client.call_tool(self.tool.name, arguments)
            data: dict[str, Any] = result.structured_content or {}
            if data.get("status") not in UNFINISHED:
                break
            arguments = {"run": data["run"]}
        self.last_run = str(data.get("run", ""))
        text = first_text(result)
        is_ok = not result.is_error and data.get("status", "ok") == "ok"
        value = data["value"] if "value" in data else parse_text(text if not data else "null")
        usage = (result.meta or {}).get(USAGE_META_KEY, {})
        return ProgramAnswer(is_ok, value, text, data.get("session", session), usage)


def parse_text(text: str) -> Any:
    """Return a text as JSON data, or as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@asynccontextmanager
async def open_code_server(
    target: str,
    folder: Path,
    upstreams: Mapping[str, Any],
    *,
    tool: str = "",
    prelude: str = "",
    sections: Mapping[str, Any] | None = None,
    sandbox: Mapping[str, Any] | None = None,
) -> AsyncIterator[CodeServer]:
    """Yield a client of `target`, which knows `upstreams`.

    `target` is a URL, a command in which `{config}` is the path of a JSON file with `mcpServers`,
    or empty for our own server. `prelude` is put before each program.
    """
    config = folder / "mcp.json"
    config.write_text(json.dumps({"mcpServers": dict(upstreams)}, indent=1), "utf-8")
    connection: Any = target
    if not target:
        tables = {**(sections or {}), "mcpServers": dict(upstreams)}
        settings = write_settings(folder, tables, **(sandbox or {}))
        connection = server_parameters(SERVER_COMMAND, "--config", str(settings), "--stdio")
    elif not target.startswith(("http://", "https://")):
        command, *arguments = shlex.split(target.replace(CONFIG_MARK, str(config)))
        connection = server_parameters(command, *arguments)
    async with Client(connection) as client:
        tools = {each.name: each for each in (await client.list_tools()).tools}
        name = tool or DEFAULT_TOOL
        if name not in tools:
            raise ValueError(f"The server has no tool {name!r}, but {', '.join(tools)}.")
        yield CodeServer(client, tools[name], prelude)
