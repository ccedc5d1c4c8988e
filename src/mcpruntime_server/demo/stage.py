"""Where the demo plays: its folder, its server, and the client that runs programs there, showing what they do."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, ElicitRequestFormParams, ElicitRequestParams, ElicitResult, TextContent

from ..config import APP
from .screen import Screen

SESSION = "demo"
ASKED_CHARS = 150  # of a line that a person is asked with


@dataclass(frozen=True)
class Stage:
    """Where the demo plays."""

    folder: Path

    @property
    def repository(self) -> Path:
        """The git repository that is asked about."""
        return self.folder / "lantern"

    @property
    def reports(self) -> Path:
        """The only folder that the filesystem server may write to."""
        return self.folder / "reports"

    @property
    def settings(self) -> Path:
        """The settings of the demo's server."""
        return self.folder / "server.toml"

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of our own program on these settings."""
        return [str(Path(sys.executable).with_name(APP)), "--config", str(self.settings), *arguments]


@dataclass(frozen=True)
class Step:
    """A program that was run: what it answered, as data and as the text that a model reads."""

    program: str
    result: dict[str, Any]
    text: str
    total_ms: float

    @property
    def ok(self) -> bool:
        """Whether it ran to its end."""
        return self.result.get("status") == "ok"


@contextmanager
def open_stage() -> Iterator[Stage]:
    """Make the folder for it all, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"{APP}-demo-", ignore_cleanup_errors=True) as folder:
        stage = Stage(Path(folder).resolve())
        stage.reports.mkdir()
        yield stage


@asynccontextmanager
async def connected(screen: Screen, stage: Stage) -> AsyncIterator[Client]:
    """Start the server as an MCP client would, and yield the client."""
    command, *arguments = stage.command("--stdio")
    parameters = StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
    began = time.perf_counter()
    async with Client(parameters, elicitation_callback=partial(allow, screen)) as client:
        tools = (await client.list_tools()).tools
        names = ", ".join(tool.name for tool in tools)
        screen.fact(
            "client", f"connected over stdio in {time.perf_counter() - began:.2f} s; the model is offered {names}"
        )
        yield client


async def allow(screen: Screen, context: Any, asked: ElicitRequestParams) -> ElicitResult:
    """Show what a person would be asked, and allow it in their stead."""
    assert isinstance(asked, ElicitRequestFormParams), "the server asks with forms only"
    screen.streamed("a person is asked, and in this demo always says yes:")
    screen.streamed("\n".join(f"  {line[:ASKED_CHARS]}" for line in asked.message.splitlines() if line))
    return ElicitResult(action="accept", content=dict.fromkeys(asked.requested_schema["properties"], "allow"))


async def perform(screen: Screen, client: Client, program: str, session: str = SESSION) -> Step:
    """Run one program, showing what it prints as it prints it."""
    screen.program(program)
    screen.start_clock()
    step = await request(screen, client, program, code=program, session=session)
    screen.streamed("done" if step.ok else "failed")
    screen.line()
    screen.block(str(step.result["value"]) if step.ok else step.text, "green" if step.ok else "red")
    return step


async def request(screen: Screen, client: Client, written: str, **arguments: Any) -> Step:
    """Use `run_code` once, for which the model has `written` something; show what is printed meanwhile."""

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        screen.streamed(message or "")

    began = time.perf_counter()
    answer = await client.call_tool("run_code", arguments, progress_callback=on_progress)
    total_ms = (time.perf_counter() - began) * 1e3
    return Step(written, answer.structured_content or {}, text_of(answer), total_ms)


async def replay(screen: Screen, client: Client, action: str, session: str, **more: Any) -> Step:
    """Use the tool `replay`, showing what is asked and what it answers."""
    arguments = {"action": action, "session": session, **more}
    call = f"replay({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    screen.line(call)
    began = time.perf_counter()
    answer = await client.call_tool("replay", arguments)
    total_ms = (time.perf_counter() - began) * 1e3
    text = text_of(answer)
    step = Step(
        call, {"status": "error" if answer.is_error else "ok", **(answer.structured_content or {})}, text, total_ms
    )
    screen.block(step.result.get("note", text) if step.ok else text, "green" if step.ok else "red")
    return step


def text_of(answer: CallToolResult) -> str:
    """Return an answer as a model reads it."""
    return "\n".join(part.text for part in answer.content if isinstance(part, TextContent))
