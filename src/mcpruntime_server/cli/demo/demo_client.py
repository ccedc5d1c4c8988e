"""The demo's folder, its server, and the MCP client that runs programs there and shows them."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
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
from ...protocol.payloads import JsonObject
from ...server.result_format import USAGE_META_KEY
from .demo_console import DemoConsole

SESSION_NAME = "demo"
HEARTBEAT = "still running"  # the progress of a run that prints nothing
MAX_FORM_LINE_CHARS = 150  # of a line that a person is asked with


@dataclass(frozen=True)
class DemoFolder:
    """The folder with everything that the demo needs."""

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

    @property
    def offline_settings(self) -> Path:
        """The same without MCP servers."""
        return self.folder / "offline.toml"

    def command_line(self, *arguments: str, settings: Path | None = None) -> list[str]:
        """Return a command line of this program, by default with the demo's settings."""
        program = str(Path(sys.executable).with_name(APP_NAME))
        return [program, "--config", str(settings or self.settings), *arguments]


@dataclass(frozen=True)
class DemoStep:
    """What a model wrote, and the answer: as data, and as the text that a model reads."""

    program: str
    result: JsonObject
    text: str
    total_ms: float

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.result.get("status") == "ok"


@contextmanager
def open_demo_folder() -> Iterator[DemoFolder]:
    """Create the demo's folder, and remove it afterwards."""
    prefix = f"{APP_NAME}-demo-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as path:
        folder = DemoFolder(Path(path).resolve())
        folder.reports.mkdir()
        yield folder


@asynccontextmanager
async def connect_client(
    screen: DemoConsole, folder: DemoFolder, settings: Path | None = None
) -> AsyncIterator[Client]:
    """Start the server as an MCP client would, and yield the client."""
    command, *arguments = folder.command_line("--stdio", settings=settings)
    parameters = StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
    started = time.perf_counter()
    async with AsyncExitStack() as stack:
        with screen.show_wait("starting a server, as a client does"):
            connection = Client(parameters, elicitation_callback=partial(approve_request, screen))
            client = await stack.enter_async_context(connection)
            tools = (await client.list_tools()).tools
        names = ", ".join(tool.name for tool in tools)
        seconds = time.perf_counter() - started
        connected = f"connected over stdio in {seconds:.2f} s"
        screen.write_fact("client", f"{connected}; the model is offered {names}")
        yield client


async def approve_request(
    screen: DemoConsole, context: Any, request: ElicitRequestParams
) -> ElicitResult:
    """Show the form that a person would get, and allow the call in their place."""
    assert isinstance(request, ElicitRequestFormParams), "the server asks only with forms"
    screen.write_streamed("a person is asked, and in this demo always says yes:")
    for line in filter(None, request.message.splitlines()):
        screen.write_streamed(f"  {line[:MAX_FORM_LINE_CHARS]}")
    answers: Any = dict.fromkeys(request.requested_schema["properties"], "allow")
    return ElicitResult(action="accept", content=answers)


async def run_program(
    screen: DemoConsole, client: Client, program: str, session: str = SESSION_NAME
) -> DemoStep:
    """Run one program and show its output as it arrives."""
    screen.write_program(program)
    screen.start_clock()
    with screen.show_wait("running"):
        step = await call_run_code(screen, client, program, code=program, session=session)
    screen.write_streamed("done" if step.ok else "failed")
    screen.write_line()
    show_outcome(screen, step)
    return step


def show_outcome(screen: DemoConsole, step: DemoStep) -> None:
    """Show the value of a program, or why it failed."""
    if step.ok:
        screen.write_block(str(step.result["value"]))
    else:
        screen.write_block(step.text, "red")


async def call_run_code(
    screen: DemoConsole, client: Client, written: str, *, is_quiet: bool = False, **arguments: Any
) -> DemoStep:
    """Call `run_code` and show its output, unless `is_quiet`.

    `written` is what the model wrote for it.
    """

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        if message and not is_quiet and not message.startswith(HEARTBEAT):
            screen.write_streamed(message)

    started = time.perf_counter()
    answer = await client.call_tool("run_code", arguments, progress_callback=on_progress)
    total_ms = (time.perf_counter() - started) * 1e3
    result = {
        **(answer.structured_content or {}),
        "usage": (answer.meta or {}).get(USAGE_META_KEY, {}),
    }
    return DemoStep(written, result, join_text(answer), total_ms)


async def call_replay(
    screen: DemoConsole, client: Client, action: str, session: str, **more: Any
) -> DemoStep:
    """Call the tool `replay`; show the call and its answer."""
    arguments = {"action": action, "session": session, **more}
    call = f"replay({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    screen.write_line(call)
    started = time.perf_counter()
    with screen.show_wait("replaying"):
        answer = await client.call_tool("replay", arguments)
    total_ms = (time.perf_counter() - started) * 1e3
    text = join_text(answer)
    result = {"status": "error" if answer.is_error else "ok", **(answer.structured_content or {})}
    step = DemoStep(call, result, text, total_ms)
    if step.ok:
        screen.write_block(result.get("note", text))
    else:
        screen.write_block(text, "red")
    return step


def join_text(answer: CallToolResult) -> str:
    """Return the text of an answer, which a model reads."""
    return "\n".join(part.text for part in answer.content if isinstance(part, TextContent))
