"""An MCP client of a real server process, which the SDK starts and speaks to over stdio."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import tomli_w
from mcp import StdioServerParameters
from mcp.client.client import Client
from mcp.types import CallToolResult

from .forking import forked_command
from .loop_watch import IS_MEASURED

COMMAND = str(Path(sys.executable).parent / "mcpruntime-server")
TEST_TIMEOUT_S = 60.0  # seconds; only a test that fails waits so long
SMALL_LIMITS = {"memory_mb": 256, "workspace_mb": 32, "tmp_mb": 16, "output_mb": 4, "pids": 64}


@dataclass(frozen=True)
class ToolAnswer:
    """The answer to one request: typed data (empty if it is an error) and text."""

    data: dict[str, Any]
    text: str
    is_error: bool

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(f"{name} is not in the answer: {self.text}") from None


def parse_answer(result: CallToolResult) -> ToolAnswer:
    """Return the answer in the result of a request."""
    content, *_ = result.content  # links and pictures follow
    assert content.type == "text"
    return ToolAnswer(result.structured_content or {}, content.text, bool(result.is_error))


class ServerConnection:
    """A client with a server of its own."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.data_dir = folder

    @property
    def server_pids(self) -> list[int]:
        """The ids of the server processes on this data folder."""
        return [int(path.read_text()) for path in (self.data_dir / "servers").glob("*.lock")]

    async def run(self, code: str, session: str | None = None, **more: Any) -> ToolAnswer:
        """Run `code` and return the answer."""
        progress = more.pop("progress_callback", None)
        arguments = {"code": code, **({} if session is None else {"session": session}), **more}
        result = await self.client.call_tool("run_code", arguments, progress_callback=progress)
        return parse_answer(result)

    async def run_request(self, run: str, **more: Any) -> ToolAnswer:
        """Wait for a run, or answer it, and return the answer."""
        return parse_answer(await self.client.call_tool("run_code", {"run": run, **more}))

    async def replay(self, action: str, session: str | None = None, **more: Any) -> ToolAnswer:
        """Use the tool `replay` and return the answer."""
        arguments = {"action": action, **({} if session is None else {"session": session}), **more}
        return parse_answer(await self.client.call_tool("replay", arguments))

    async def evaluate(self, code: str, session: str | None = None) -> Any:
        """Run `code`, which must succeed, and return its value."""
        answer = await self.run(code, session)
        assert answer.data.get("status") == "ok", answer.text
        return answer.value


def write_settings(folder: Path, **sections: Any) -> Path:
    """Write a settings file with small limits, which `sections` may change; return its path.

    No sandbox is prepared in advance, because most tests would never use it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    server = {"data_dir": str(folder / "data"), **sections.pop("server", {})}
    defaults = {"backend": "docker", "pool_size": int(IS_MEASURED), **SMALL_LIMITS}
    sandbox = {**defaults, **sections.pop("sandbox", {})}
    path = folder / "server.toml"
    path.write_text(tomli_w.dumps({"server": server, "sandbox": sandbox, **sections}))
    return path


def write_local_settings(folder: Path, **sections: Any) -> Path:
    """Write settings whose sandboxes are processes, which start quickly."""
    sandbox = {"backend": "local", **sections.pop("sandbox", {})}
    return write_settings(folder, sandbox=sandbox, **sections)


def server_parameters(
    settings: Path, env: dict[str, str] | None = None, *, is_forked: bool = True
) -> StdioServerParameters:
    """Return how a client starts the server with these settings; forked, it starts quickly."""
    known = {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    options = ("--config", str(settings), "--stdio")
    command, *args = forked_command(*options) if is_forked else [COMMAND, *options]
    return StdioServerParameters(command=command, args=args, env={**known, **(env or {})})


@asynccontextmanager
async def connect_server(
    settings: Path,
    env: dict[str, str] | None = None,
    *,
    limit_s: float = 600.0,
    is_forked: bool = True,
    **options: Any,
) -> AsyncIterator[ServerConnection]:
    """Start a server with `settings` and be its client, for at most `limit_s`."""
    parameters = server_parameters(settings, env, is_forked=is_forked)
    async with Client(parameters, **options) as client:
        with anyio.fail_after(limit_s):
            yield ServerConnection(client, settings.parent / "data")
