"""A client of the server as users have it: the real command, started by the MCP SDK, spoken to over stdio."""

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

COMMAND = str(Path(sys.executable).parent / "mcpruntime-server")
SOON = 60.0  # seconds; only a test that fails waits so long
SMALL = {"memory_mb": 256, "workspace_mb": 32, "tmp_mb": 16, "output_mb": 4, "pids": 64}


@dataclass(frozen=True)
class Answer:
    """What one request was answered with: typed data (empty if it is an error) and text."""

    data: dict[str, Any]
    text: str
    failed: bool

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(f"{name} is not in the answer: {self.text}") from None


def answer_of(result: CallToolResult) -> Answer:
    """Return what a request was answered with."""
    [content] = result.content
    assert content.type == "text"
    return Answer(result.structured_content or {}, content.text, bool(result.is_error))


class Connection:
    """A client that has one server of its own."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.folder = folder

    @property
    def pids(self) -> list[int]:
        """The processes of the servers on this data folder."""
        return [int(path.read_text()) for path in (self.folder / "servers").glob("*.lock")]

    async def run(self, code: str, session: str | None = None, **more: Any) -> Answer:
        """Run `code` and return the answer."""
        progress = more.pop("progress_callback", None)
        arguments = {"code": code, **({} if session is None else {"session": session}), **more}
        result = await self.client.call_tool("run_code", arguments, progress_callback=progress)
        return answer_of(result)

    async def replay(self, action: str, session: str | None = None, **more: Any) -> Answer:
        """Use the tool `replay` and return the answer."""
        arguments = {"action": action, **({} if session is None else {"session": session}), **more}
        return answer_of(await self.client.call_tool("replay", arguments))

    async def value(self, code: str, session: str | None = None) -> Any:
        """Run `code`, which must succeed, and return its value."""
        answer = await self.run(code, session)
        assert answer.data.get("status") == "ok", answer.text
        return answer.value


def write_settings(folder: Path, **sections: Any) -> Path:
    """Write a settings file into `folder`, with small limits unless `sections` says otherwise; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    server = {"data_dir": str(folder / "data"), **sections.pop("server", {})}
    sandbox = {"backend": "docker", **SMALL, **sections.pop("sandbox", {})}
    path = folder / "server.toml"
    path.write_text(tomli_w.dumps({"server": server, "sandbox": sandbox, **sections}))
    return path


def parameters(settings: Path, env: dict[str, str] | None = None) -> StdioServerParameters:
    """Return how a client starts the server with these settings."""
    known = {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    return StdioServerParameters(
        command=COMMAND, args=["--config", str(settings), "--stdio"], env={**known, **(env or {})}
    )


@asynccontextmanager
async def connect(
    settings: Path, env: dict[str, str] | None = None, *, limit_s: float = 600.0, **options: Any
) -> AsyncIterator[Connection]:
    """Start a server with `settings` and be its client, for so long at most."""
    async with Client(parameters(settings, env), **options) as client:
        with anyio.fail_after(limit_s):
            yield Connection(client, settings.parent / "data")
