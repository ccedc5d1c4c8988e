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
    "one call a turn: each call's name, arguments and result, as the journal has them. As programs: the code and all "
    "that run_code answered. Left out on both sides: the tools' definitions, and that every further turn has the "
    "whole conversation read again."
)


async def run_demo(config: Config) -> int:
    """Show the main job on real servers; return the exit code. Raises `Unavailable` where something is missing."""
    screen = DemoConsole(sys.stdout)
    try:
        with open_demo_folder() as stage:
            servers = find_servers(stage.repository, stage.reports)
            write_demo_settings(stage.settings, config, servers)
            await show_introduction(screen, stage, "files" in servers)
            steps = await run_session_acts(
                screen, stage, stage.reports / "hotfixes.md" if "files" in servers else None
            )
            if not all(step.ok for step in steps):
                return 1
            if not await learn_and_reuse(screen, stage):
                return 1
            write_demo_settings(stage.settings, config, {})
            if not await rerun_offline(screen, stage, steps[0]):
                return 1
            await show_costs(screen, stage, steps[:2])
    except* MCPError as group:
        raise Unavailable(
            "The demo's server ended early.", remedy="`mcpruntime-server doctor` may say why."
        ) from group
    return 0


async def show_introduction(screen: DemoConsole, stage: DemoFolder, has_files: bool) -> None:
    """Say what is asked, of what, and with what."""
    screen.write_heading(f"{APP_NAME} demo")
    commits = await make_repository(stage.repository)
    screen.write_fact("question", programs.QUESTION)
    screen.write_fact(
        "material",
        f"lantern, a git repository made just now: {commits:,} commits in three years, by five authors",
    )
    screen.write_fact(
        "servers", "mcp-server-git, mcp-server-time" + (", server-filesystem" if has_files else "")
    )
    if not has_files:
        screen.write_fact(
            "",
            "(no Node here, so no server-filesystem: the report goes into the session's workspace)",
        )


async def run_session_acts(
    screen: DemoConsole, stage: DemoFolder, report: Path | None
) -> list[DemoStep]:
    """Run both programs in one session, then show it moving in time and asking; return what became of them."""
    async with connect_client(screen, stage) as client:
        screen.write_heading("step 1: walk through the history, keep what matters")
        steps = [await run_program(screen, client, programs.collection_program(stage.repository))]
        if steps[0].ok:
            screen.write_heading("step 2: the variable `hotfixes` is still there")
            steps.append(await run_program(screen, client, programs.report_program(report)))
        if report is not None and steps[-1].ok:
            screen.write_line()
            written = await anyio.Path(report).read_text("utf-8")
            screen.write_line(
                f"(and in {report.name}, written by server-filesystem: {len(written.splitlines())} lines)"
            )
        if steps[-1].ok:
            steps += await rewind_and_fork(screen, client)
        if steps[-1].ok:
            steps.append(await ask_client_model(screen, client))
    return steps


async def show_costs(screen: DemoConsole, stage: DemoFolder, steps: list[DemoStep]) -> None:
    """Show what the steps cost."""
    costs = [await compute_step_cost(stage, step) for step in steps]
    screen.write_heading("what it cost")
    show_durations(screen, costs)
    screen.write_line()
    show_text_amounts(screen, costs)


async def compute_step_cost(stage: DemoFolder, step: DemoStep) -> StepCost:
    """Return what one step cost, by the journal, which the command line prints."""
    printed = await anyio.run_process(
        stage.command_line("runs", SESSION_NAME, step.result["run"], "--json"), stderr=None
    )
    events = map(json.loads, printed.stdout.splitlines())
    return compute_cost(
        load_calls(events), step.result["usage"], step.total_ms, step.program, step.text
    )


def show_durations(screen: DemoConsole, costs: Sequence[StepCost]) -> None:
    """Write where the time went, a column a step."""
    phases = (
        ("a sandbox for the session", [cost.session_ms for cost in costs]),
        ("starting upstream servers, making shims", [cost.catalog_ms for cost in costs]),
        ("upstream calls under way", [cost.upstream_ms for cost in costs]),
        ("everything else: code, relay, protocol", [cost.code_ms for cost in costs]),
        ("total, as the client saw it", [cost.total_ms for cost in costs]),
    )
    rows = [
        (name, *(f"{ms:,.0f}" for ms in values), f"{sum(values):,.0f}") for name, values in phases
    ]
    screen.write_table(
        ["milliseconds", *(f"step {n}" for n in range(1, len(costs) + 1)), "both"], rows
    )


def show_text_amounts(screen: DemoConsole, costs: Sequence[StepCost]) -> None:
    """Write what a model had to read and write, and what it would have had to with one call a turn."""
    turns, code = (
        sum_amounts([cost.as_turns for cost in costs]),
        sum_amounts([cost.as_code for cost in costs]),
    )
    screen.write_table(
        ["", "turns", "characters", "cl100k tokens"],
        [
            (
                "one call a turn",
                f"{sum(cost.call_count for cost in costs):,}",
                *format_amount(turns),
            ),
            (f"{len(costs)} programs", str(len(costs)), *format_amount(code)),
            ("kept out of the context", "", *format_amount(turns - code)),
        ],
    )
    screen.write_line()
    screen.write_fact("counted", COUNTING_METHOD)
