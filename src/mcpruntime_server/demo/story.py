"""The demonstration: a client over stdio, real upstream servers, two programs, and what they cost.

It is an MCP client like any other and knows of the server only what a client is told; the costs alone come from the
journal, as the command line prints it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import TextContent

from ..config import APP, Config
from ..errors import Unavailable
from . import programs
from .costs import Cost, Text, calls_of, cost_of, total
from .history import make_repository
from .screen import Screen
from .servers import find_servers, write_settings

SESSION = "demo"
METHOD = (
    "one call a turn: each call's name, arguments and result, as the journal has them. As programs: the code and all "
    "that run_code answered. Left out on both sides: the tools' definitions, and that every further turn has the "
    "whole conversation read again."
)


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


async def run_demo(config: Config) -> int:
    """Show the main job on real servers; return the exit code. Raises `Unavailable` where something is missing."""
    screen = Screen(sys.stdout)
    try:
        with open_stage() as stage:
            servers = find_servers(stage.repository, stage.reports)
            write_settings(stage.settings, config, servers)
            await introduce(screen, stage, "files" in servers)
            steps = await play(screen, stage, stage.reports / "hotfixes.md" if "files" in servers else None)
            if not all(step.ok for step in steps):
                return 1
            await account(screen, stage, steps)
    except* MCPError as group:
        raise Unavailable("The demo's server ended early.", remedy="`mcpruntime-server doctor` may say why.") from group
    return 0


async def introduce(screen: Screen, stage: Stage, has_files: bool) -> None:
    """Say what is asked, of what, and with what."""
    screen.heading(f"{APP} demo")
    commits = await make_repository(stage.repository)
    screen.fact("question", programs.QUESTION)
    screen.fact(
        "material", f"lantern, a git repository made just now: {commits:,} commits in three years, by five authors"
    )
    screen.fact("servers", "mcp-server-git, mcp-server-time" + (", server-filesystem" if has_files else ""))
    if not has_files:
        screen.fact("", "(no Node here, so no server-filesystem: the report goes into the session's workspace)")


async def play(screen: Screen, stage: Stage, report: Path | None) -> list[Step]:
    """Run both programs in one session; return what became of them."""
    async with connected(screen, stage) as client:
        screen.heading("step 1: walk through the history, keep what matters")
        steps = [await perform(screen, client, programs.collect(stage.repository))]
        if steps[0].ok:
            screen.heading("step 2: the variable `hotfixes` is still there")
            steps.append(await perform(screen, client, programs.answer(report)))
    if report is not None and steps[-1].ok:
        screen.line()
        written = await anyio.Path(report).read_text("utf-8")
        screen.line(f"(and in {report.name}, written by server-filesystem: {len(written.splitlines())} lines)")
    return steps


@asynccontextmanager
async def connected(screen: Screen, stage: Stage) -> AsyncIterator[Client]:
    """Start the server as an MCP client would, and yield the client."""
    command, *arguments = stage.command("--stdio")
    parameters = StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
    began = time.perf_counter()
    async with Client(parameters) as client:
        tools = (await client.list_tools()).tools
        names = ", ".join(tool.name for tool in tools)
        screen.fact(
            "client", f"connected over stdio in {time.perf_counter() - began:.2f} s; the model is offered {names}"
        )
        yield client


async def perform(screen: Screen, client: Client, program: str) -> Step:
    """Run one program, showing what it prints as it prints it."""

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        screen.streamed(message or "")

    screen.program(program)
    screen.start_clock()
    began = time.perf_counter()
    answer = await client.call_tool("run_code", {"code": program, "session": SESSION}, progress_callback=on_progress)
    total_ms = (time.perf_counter() - began) * 1e3
    text = "\n".join(part.text for part in answer.content if isinstance(part, TextContent))
    step = Step(program, answer.structured_content or {}, text, total_ms)
    screen.streamed("done" if step.ok else "failed")
    screen.line()
    screen.block(str(step.result["value"]) if step.ok else text, "green" if step.ok else "red")
    return step


async def account(screen: Screen, stage: Stage, steps: list[Step]) -> None:
    """Show what the steps cost."""
    costs = [await cost_of_step(stage, step) for step in steps]
    screen.heading("what it cost")
    show_times(screen, costs)
    screen.line()
    show_text(screen, costs)


async def cost_of_step(stage: Stage, step: Step) -> Cost:
    """Return what one step cost, by the journal, which the command line prints."""
    printed = await anyio.run_process(stage.command("runs", SESSION, step.result["run"], "--json"), stderr=None)
    events = map(json.loads, printed.stdout.splitlines())
    return cost_of(calls_of(events), step.result["usage"], step.total_ms, step.program, step.text)


def show_times(screen: Screen, costs: Sequence[Cost]) -> None:
    """Write where the time went, a column a step."""
    phases = (
        ("a sandbox for the session", [cost.session_ms for cost in costs]),
        ("starting upstream servers, making shims", [cost.tools_ms for cost in costs]),
        ("upstream calls under way", [cost.calls_ms for cost in costs]),
        ("everything else: code, relay, protocol", [cost.code_ms for cost in costs]),
        ("total, as the client saw it", [cost.total_ms for cost in costs]),
    )
    rows = [(name, *(f"{ms:,.0f}" for ms in values), f"{sum(values):,.0f}") for name, values in phases]
    screen.table(["milliseconds", *(f"step {n}" for n in range(1, len(costs) + 1)), "both"], rows)


def show_text(screen: Screen, costs: Sequence[Cost]) -> None:
    """Write what a model had to read and write, and what it would have had to with one call a turn."""
    turns, code = total([cost.as_turns for cost in costs]), total([cost.as_code for cost in costs])
    screen.table(
        ["", "turns", "characters", "cl100k tokens"],
        [
            ("one call a turn", f"{sum(cost.calls for cost in costs):,}", *figures(turns)),
            (f"{len(costs)} programs", str(len(costs)), *figures(code)),
            ("kept out of the context", "", *figures(turns - code)),
        ],
    )
    screen.line()
    screen.fact("counted", METHOD)


def figures(text: Text) -> tuple[str, str]:
    """Return an amount of text as two cells of a table."""
    return f"{text.characters:,}", "not counted" if text.tokens is None else f"{text.tokens:,}"
