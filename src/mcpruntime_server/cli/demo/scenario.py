"""The demo from start to end: an MCP client, real upstream servers, and what they cost.

The demo knows about the server only what any client gets. The costs come from the journal, as the
command line prints it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
from mcp import MCPError

from ... import APP_NAME
from ...config import Config
from ...errors import Unavailable
from . import programs
from .costs import StepCost, compute_cost, format_amount, load_calls, sum_amounts
from .demo_client import (
    SESSION_NAME,
    DemoFolder,
    DemoStep,
    connect_client,
    open_demo_folder,
    run_program,
)
from .demo_console import DemoConsole
from .model_requests import ask_client_model
from .sample_repository import make_repository
from .skill_reuse import learn_and_reuse
from .time_travel import rerun_offline, rewind_and_fork
from .upstream_servers import find_servers, write_demo_settings

COUNTING_METHOD = (
    "one call a turn: name, arguments and result of each call, from the journal. As programs: the "
    "code, and everything that run_code answered. Left out on both sides: the definitions of the "
    "tools, and that a model reads the whole conversation again in each turn."
)


async def run_demo(config: Config) -> int:
    """Run the demo and return the exit code; raises `Unavailable` if something is missing."""
    screen = DemoConsole(sys.stdout)
    try:
        with open_demo_folder() as folder:
            servers = find_servers(folder.repository, folder.reports)
            write_demo_settings(folder.settings, config, servers)
            await show_introduction(screen, folder, "files" in servers)
            steps = await run_session_acts(
                screen, folder, folder.reports / "hotfixes.md" if "files" in servers else None
            )
            if not all(step.ok for step in steps):
                return 1
            if not await learn_and_reuse(screen, folder):
                return 1
            write_demo_settings(folder.settings, config, {})
            if not await rerun_offline(screen, folder, steps[0]):
                return 1
            await show_costs(screen, folder, steps[:2])
    except* MCPError as group:
        raise Unavailable(
            "The demo's server ended early.", remedy="`mcpruntime-server doctor` may say why."
        ) from group
    return 0


async def show_introduction(screen: DemoConsole, folder: DemoFolder, has_files: bool) -> None:
    """Show the question, the material and the servers."""
    screen.write_heading(f"{APP_NAME} demo")
    commits = await make_repository(folder.repository)
    screen.write_fact("question", programs.QUESTION)
    material = f"{commits:,} commits in three years, by five authors"
    screen.write_fact("material", f"lantern, a git repository created just now: {material}")
    if has_files:
        screen.write_fact("servers", "mcp-server-git, mcp-server-time, server-filesystem")
    else:
        screen.write_fact("servers", "mcp-server-git, mcp-server-time")
        screen.write_fact("", "(without Node, the report goes into the session's workspace)")


async def run_session_acts(
    screen: DemoConsole, folder: DemoFolder, report: Path | None
) -> list[DemoStep]:
    """Run two programs in one session, then rewind, fork and ask; return the steps.

    The last step failed if it is not `ok`; then the rest is left out.
    """
    async with connect_client(screen, folder) as client:
        screen.write_heading("step 1: walk through the history, keep what matters")
        steps = [await run_program(screen, client, programs.collection_program(folder.repository))]
        if steps[0].ok:
            screen.write_heading("step 2: the variable `hotfixes` is still there")
            steps.append(await run_program(screen, client, programs.report_program(report)))
        if report is not None and steps[-1].ok:
            screen.write_line()
            written = await anyio.Path(report).read_text("utf-8")
            lines = len(written.splitlines())
            screen.write_line(f"(also in {report.name}, by server-filesystem: {lines} lines)")
        if steps[-1].ok:
            steps += await rewind_and_fork(screen, client)
        if steps[-1].ok:
            steps.append(await ask_client_model(screen, client))
    return steps


async def show_costs(screen: DemoConsole, folder: DemoFolder, steps: list[DemoStep]) -> None:
    """Show what the steps cost."""
    costs = [await compute_step_cost(folder, step) for step in steps]
    screen.write_heading("what it cost")
    show_durations(screen, costs)
    screen.write_line()
    show_text_amounts(screen, costs)


async def compute_step_cost(folder: DemoFolder, step: DemoStep) -> StepCost:
    """Return what one step cost, according to its events in the journal."""
    printed = await anyio.run_process(
        folder.command_line("runs", SESSION_NAME, step.result["run"], "--json"), stderr=None
    )
    events = map(json.loads, printed.stdout.splitlines())
    return compute_cost(
        load_calls(events), step.result["usage"], step.total_ms, step.program, step.text
    )


def show_durations(screen: DemoConsole, costs: Sequence[StepCost]) -> None:
    """Show where the time went, with a column for each step."""
    phases = (
        ("a sandbox for the session", [cost.session_ms for cost in costs]),
        ("starting upstream servers, making shims", [cost.catalog_ms for cost in costs]),
        ("upstream calls under way", [cost.upstream_ms for cost in costs]),
        ("everything else: code, relay, protocol", [cost.code_ms for cost in costs]),
        ("total, as the client saw it", [cost.total_ms for cost in costs]),
    )
    rows = []
    for name, values in phases:
        rows.append((name, *(f"{ms:,.0f}" for ms in (*values, sum(values)))))
    steps = [f"step {number}" for number in range(1, len(costs) + 1)]
    screen.write_table(["milliseconds", *steps, "both"], rows)


def show_text_amounts(screen: DemoConsole, costs: Sequence[StepCost]) -> None:
    """Show how much text a model had to read and write, and how much with one call a turn."""
    turns = sum_amounts([cost.as_turns for cost in costs])
    text = sum_amounts([cost.as_code for cost in costs])
    calls = sum(cost.call_count for cost in costs)
    rows = [
        ("one call a turn", f"{calls:,}", *format_amount(turns)),
        (f"{len(costs)} programs", str(len(costs)), *format_amount(text)),
        ("kept out of the context", "", *format_amount(turns - text)),
    ]
    screen.write_table(["", "turns", "characters", "cl100k tokens"], rows)
    screen.write_line()
    screen.write_fact("counted", COUNTING_METHOD)
