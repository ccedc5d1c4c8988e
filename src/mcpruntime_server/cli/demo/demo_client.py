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
from mcp.types import (
    CallToolResult,
    ElicitRequestFormParams,
    ElicitRequestParams,
    ElicitResult,
    TextContent,
)

from ... import APP_NAME
from .demo_console import DemoConsole

SESSION_NAME = "demo"
MAX_FORM_LINE_CHARS = 150  # of a line that a person is asked with


@dataclass(frozen=True)
class DemoFolder:
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

    def command_line(self, *arguments: str) -> list[str]:
        """Return the command line of our own program on these settings."""
        return [
            str(Path(sys.executable).with_name(APP_NAME)),
            "--config",
            str(self.settings),
            *arguments,
        ]


@dataclass(frozen=True)
class DemoStep:
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
def open_demo_folder() -> Iterator[DemoFolder]:
    """Make the folder for it all, which is gone afterwards."""
    with tempfile.TemporaryDirectory(
        prefix=f"{APP_NAME}-demo-", ignore_cleanup_errors=True
    ) as folder:
        stage = DemoFolder(Path(folder).resolve())
        stage.reports.mkdir()
        yield stage


@asynccontextmanager
async def connect_client(screen: DemoConsole, stage: DemoFolder) -> AsyncIterator[Client]:
    """Start the server as an MCP client would, and yield the client."""
    command, *arguments = stage.command_line("--stdio")
    parameters = StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
    began = time.perf_counter()
    async with Client(parameters, elicitation_callback=partial(approve_request, screen)) as client:
        tools = (await client.list_tools()).tools
        names = ", ".join(tool.name for tool in tools)
        screen.write_fact(
            "client",
            f"connected over stdio in {time.perf_counter() - began:.2f} s; the model is offered {names}",
        )
        yield client


async def approve_request(
    screen: DemoConsole, context: Any, request: ElicitRequestParams
) -> ElicitResult:
    """Show what a person would be asked, and allow it in their stead."""
    assert isinstance(request, ElicitRequestFormParams), "the server asks with forms only"
    screen.write_streamed("a person is asked, and in this demo always says yes:")
    screen.write_streamed(
        "\n".join(
            f"  {line[:MAX_FORM_LINE_CHARS]}" for line in request.message.splitlines() if line
        )
    )
    return ElicitResult(
        action="accept", content=dict.fromkeys(request.requested_schema["properties"], "allow")
    )


async def run_program(
    screen: DemoConsole, client: Client, program: str, session: str = SESSION_NAME
) -> DemoStep:
    """Run one program, showing what it prints as it prints it."""
    screen.write_program(program)
    screen.start_clock()
    step = await call_run_code(screen, client, program, code=program, session=session)
    screen.write_streamed("done" if step.ok else "failed")
    screen.write_line()
    screen.write_block(
        str(step.result["value"]) if step.ok else step.text, "green" if step.ok else "red"
    )
    return step


async def call_run_code(
    screen: DemoConsole, client: Client, written: str, **arguments: Any
) -> DemoStep:
    """Use `run_code` once, for which the model has `written` something; show what is printed meanwhile."""

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        screen.write_streamed(message or "")

    began = time.perf_counter()
    answer = await client.call_tool("run_code", arguments, progress_callback=on_progress)
    total_ms = (time.perf_counter() - began) * 1e3
    return DemoStep(written, answer.structured_content or {}, join_text(answer), total_ms)


async def call_replay(
    screen: DemoConsole, client: Client, action: str, session: str, **more: Any
) -> DemoStep:
    """Use the tool `replay`, showing what is asked and what it answers."""
    arguments = {"action": action, "session": session, **more}
    call = f"replay({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    screen.write_line(call)
    began = time.perf_counter()
    answer = await client.call_tool("replay", arguments)
    total_ms = (time.perf_counter() - began) * 1e3
    text = join_text(answer)
    step = DemoStep(
        call,
        {"status": "error" if answer.is_error else "ok", **(answer.structured_content or {})},
        text,
        total_ms,
    )
    screen.write_block(
        step.result.get("note", text) if step.ok else text, "green" if step.ok else "red"
    )
    return step


def join_text(answer: CallToolResult) -> str:
    """Return an answer as a model reads it."""
    return "\n".join(part.text for part in answer.content if isinstance(part, TextContent))
