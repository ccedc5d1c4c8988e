"""The demo from start to end: an MCP client, real upstream servers, and what they cost.

The demo knows about the server only what any client gets. The costs come from the journal, as the
command line prints it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from mcp import MCPError

from ... import APP_NAME
from ...config import Config
from ...errors import Unavailable
from . import ACT_NAMES, programs
from .costs import StepCost, compute_cost, format_amount, load_calls, sum_amounts
from .demo_client import SESSION_NAME, DemoFolder, DemoStep, connect_client, open_demo_folder
from .demo_console import DemoConsole
from .model_requests import ask_client_model
from .sample_repository import COMMIT_COUNT, make_repository
from .skill_reuse import learn_and_reuse
from .stage import DemoStage
from .time_travel import rerun_offline, rewind_and_fork
from .upstream_servers import find_servers, write_demo_settings

COUNTING_METHOD = (
    "one call a turn: name, arguments and result of each call, from the journal. As programs: the "
    "code, and everything that run_code answered. Left out on both sides: the definitions of the "
    "tools, and that a model reads the whole conversation again in each turn."
)


@dataclass(frozen=True)
class Act:
    """A part of the demo; `why` says in one sentence what it is about."""

    title: str
    why: str
    perform: Callable[[DemoStage], Awaitable[bool]]  # returns whether it succeeded


async def run_demo(config: Config, act_names: Sequence[str] = ()) -> int:
    """Run all acts, or those named, and return the exit code.

    Raises `Unavailable` if something is missing.
    """
    screen = DemoConsole(sys.stdout)
    names = [name for name in ACT_NAMES if name in (act_names or ACT_NAMES)]
    try:
        with open_demo_folder() as folder:
            servers = find_servers(folder.repository, folder.reports)
            write_demo_settings(folder.settings, config, servers)
            write_demo_settings(folder.offline_settings, config, {})
            await show_introduction(screen, folder, "files" in servers)
            report = folder.reports / "hotfixes.md" if "files" in servers else None
            return await perform_acts(screen, folder, report, names)
    except* MCPError as group:
        raise Unavailable(
            "The demo's server ended early.", remedy="`mcpruntime-server doctor` may say why."
        ) from group
    return 1


async def perform_acts(
    screen: DemoConsole, folder: DemoFolder, report: Path | None, names: Sequence[str]
) -> int:
    """Perform acts in their order, until one fails; return the exit code."""
    async with connect_client(screen, folder) as client:
        stage = DemoStage(screen, folder, client, report)
        for number, name in enumerate(names, 1):
            act = ACTS[name]
            screen.write_heading(f"{number}/{len(names)}  {name}: {act.title}")
            screen.write_paragraph(act.why)
            if not await act.perform(stage):
                return 1
    screen.write_line()
    screen.write_fact("one act", f"{APP_NAME} demo --act {names[-1]}")
    screen.write_fact("your own", "the tutorial in docs/tutorial.md, with your own MCP servers")
    return 0


async def show_introduction(screen: DemoConsole, folder: DemoFolder, has_files: bool) -> None:
    """Make the material, and show it with the question and the servers."""
    screen.write_heading(f"{APP_NAME} demo")
    screen.write_fact("question", programs.QUESTION)
    with screen.show_wait(f"making a git repository with {COMMIT_COUNT:,} commits"):
        commits = await make_repository(folder.repository)
    material = f"{commits:,} commits in three years, by five authors"
    screen.write_fact("material", f"lantern, a git repository created just now: {material}")
    if has_files:
        screen.write_fact("servers", "mcp-server-git, mcp-server-time, server-filesystem")
    else:
        screen.write_fact("servers", "mcp-server-git, mcp-server-time")
        screen.write_fact("", "(without Node, the report goes into the session's workspace)")


async def run_main_programs(stage: DemoStage) -> bool:
    """Run two programs in one session and show what they cost; return whether they succeeded."""
    if not await stage.collect(is_shown=True):
        return False
    if stage.report is not None:
        stage.screen.write_line()
        written = await anyio.Path(stage.report).read_text("utf-8")
        lines = len(written.splitlines())
        by = "by server-filesystem, after a person had approved it"
        stage.screen.write_line(f"(also in {stage.report.name}, {by}: {lines} lines)")
    stage.screen.write_line()
    costs = [await compute_step_cost(stage.folder, step) for step in stage.collected]
    show_text_amounts(stage.screen, costs)
    return True


async def compute_step_cost(folder: DemoFolder, step: DemoStep) -> StepCost:
    """Return what one step cost, according to its events in the journal."""
    printed = await anyio.run_process(
        folder.command_line("runs", SESSION_NAME, step.result["run"], "--json"), stderr=None
    )
    events = map(json.loads, printed.stdout.splitlines())
    return compute_cost(load_calls(events), step.program, step.text)


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


ACTS = {
    "program": Act(
        "three years of history, and only the answer comes back",
        "With one tool call a turn, a model would read every commit; a program reads them for it.",
        run_main_programs,
    ),
    "undo": Act(
        "a step destroys what was collected",
        "Code makes mistakes: each step can be undone, with its variables and files.",
        rewind_and_fork,
    ),
    "ask": Act(
        "code asks the model of the client that runs it",
        "Some questions need judgement: code asks all of them at once, without an API key.",
        ask_client_model,
    ),
    "skill": Act(
        "a run becomes a function of the next conversation",
        "What worked is worth keeping: it is tested in a clean sandbox, and imported from then on.",
        learn_and_reuse,
    ),
    "replay": Act(
        "the first program once more, with every MCP server off",
        "What an agent did can be proven: a run repeats itself from the journal alone.",
        rerun_offline,
    ),
}
