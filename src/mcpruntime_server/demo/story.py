"""The demonstration: a client over stdio, real upstream servers, two programs, and what they cost.

It is an MCP client like any other and knows of the server only what a client is told; the costs alone come from the
journal, as the command line prints it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
from mcp import MCPError

from ..config import APP, Config
from ..errors import Unavailable
from . import programs
from .asking import ask_without_key
from .costs import Cost, calls_of, cost_of, figures, total
from .history import make_repository
from .learning import learn_and_reuse
from .screen import Screen
from .servers import find_servers, write_settings
from .stage import SESSION, Stage, Step, connected, open_stage, perform
from .time_travel import rerun, rewind_and_fork

METHOD = (
    "one call a turn: each call's name, arguments and result, as the journal has them. As programs: the code and all "
    "that run_code answered. Left out on both sides: the tools' definitions, and that every further turn has the "
    "whole conversation read again."
)


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
            if not await learn_and_reuse(screen, stage):
                return 1
            write_settings(stage.settings, config, {})
            if not await rerun(screen, stage, steps[0]):
                return 1
            await account(screen, stage, steps[:2])
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
    """Run both programs in one session, then show it moving in time and asking; return what became of them."""
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
        if steps[-1].ok:
            steps += await rewind_and_fork(screen, client)
        if steps[-1].ok:
            steps.append(await ask_without_key(screen, client))
    return steps


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
