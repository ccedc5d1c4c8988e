"""The commands that read the journal: `sessions`, `runs`, and `replay` with its actions.

A session is named by its id or name, a run by its id, or by its step in the session's lineage. They
are those of the local user, or of the principal that an option names. Nothing here needs a sandbox
or the runtime.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import click

from ..config import Config
from ..errors import InvalidRequest
from ..journal.rows import AGENT_PURPOSE, RunRow, SessionRow, StoredEvent
from ..journal.store import Journal
from ..protocol.payloads import JsonObject
from ..runtime.run_history import (
    AgentTree,
    RecordedRun,
    SessionTree,
    find_any_session,
    find_run,
    load_agents,
    load_recorded_run,
    load_tree,
    row_fields,
)
from .archives import export_session_command, import_session_command, pin_command, unpin_command
from .cancellation import cancel_command
from .console import ConsoleWriter, format_count, format_time
from .inspection import ask_command, probe_command, variables_command
from .journal_access import read_journal, resolve_run_or_session
from .options import ActionGroup, full_option, json_option, pass_config, principal_option
from .terminal_text import print_json, print_text
from .time_travel import delete_command, fork_command, rerun_command, rewind_command

HIDDEN_PURPOSES = {"rerun": "rerun", AGENT_PURPOSE: "agent"}  # purpose of a session -> its name
EMPTY_VALUES: tuple[Any, ...] = (None, "", {}, [])

all_option = click.option(
    "--all", "show_all", is_flag=True, help="List the sessions of reruns and agents, too."
)


@click.group("replay", cls=ActionGroup)
def replay_command() -> None:
    """List, show and compare what sessions did; rewind, fork and rerun them.

    `replay` alone is `replay list`; `replay SESSION [STEP]` is `replay show SESSION [STEP]`.
    A session is named by its id or name, a run by its step in the session's lineage or by its
    id, r_...
    """


replay_command.add_actions(rewind_command, fork_command, rerun_command, delete_command)
replay_command.add_actions(cancel_command)
replay_command.add_actions(probe_command, ask_command, variables_command)
replay_command.add_actions(
    export_session_command, import_session_command, pin_command, unpin_command
)


# lists --------------------------------------------------------------------------------------------


@click.command("sessions")
@all_option
@principal_option
@json_option
@pass_config
def sessions_command(config: Config, *, show_all: bool, principal: str, as_json: bool) -> int:
    """List the sessions, the one used last on top; the same as `replay list`."""
    return print_sessions(config, principal, show_all=show_all, as_json=as_json)


@click.command("runs")
@click.argument("session")
@click.argument("run", required=False)
@principal_option
@json_option
@pass_config
def runs_command(
    config: Config, *, session: str, run: str | None, principal: str, as_json: bool
) -> int:
    """Draw the runs of SESSION, or show the journaled events of RUN, an id or a step."""
    if run is None:
        return list_steps(config, principal, session, as_json=as_json)
    return show_events(config, principal, session, run, as_json=as_json)


@replay_command.command("list")
@click.argument("session", required=False)
@all_option
@principal_option
@json_option
@full_option
@pass_config
def list_sessions_command(
    config: Config,
    *,
    session: str | None,
    show_all: bool,
    principal: str,
    as_json: bool,
    show_full: bool,
) -> int:
    """List the sessions, or draw the steps of one."""
    if session is None:
        return print_sessions(
            config, principal, show_all=show_all, as_json=as_json, show_full=show_full
        )
    return list_steps(config, principal, session, as_json=as_json, show_full=show_full)


def print_sessions(
    config: Config, principal: str, *, show_all: bool, as_json: bool, show_full: bool = False
) -> int:
    """List the sessions, the one used last on top."""

    async def load(journal: Journal) -> tuple[list[SessionRow], dict[str, str]]:
        rows = await journal.list_sessions(principal)
        labels = {row.id: row.name or row.id for row in rows}
        origins = {}
        for row in rows:
            if row.origin:
                run = await journal.load_run(row.origin)
                origins[row.origin] = f"{labels[run.session_id]}:{run.step}"
        return rows, origins

    rows, origins = read_journal(config, load)
    if as_json:
        print_json([row_fields(row) for row in rows])
        return 0
    from . import views

    writer = ConsoleWriter(show_full=show_full)
    shown = [row for row in rows if show_all or row.purpose not in HIDDEN_PURPOSES]
    views.show_sessions(writer, shown, origins)
    hidden = Counter(row.purpose for row in rows if row not in shown)
    if hidden:
        counts = (
            format_count(count, HIDDEN_PURPOSES[purpose]) for purpose, count in hidden.items()
        )
        writer.write_note(f"… and {' and '.join(counts)}, which --all lists")
    return 0


def list_steps(
    config: Config, principal: str, name: str, *, as_json: bool, show_full: bool = False
) -> int:
    """Draw the steps of one session."""

    async def load(journal: Journal) -> tuple[SessionTree, dict[str, str]]:
        tree = await load_tree(journal, await find_any_session(journal, name, principal))
        return tree, await journal.load_pins()

    tree, pins = read_journal(config, load)
    if as_json:
        print_json(serialize_tree(tree, pins))
    else:
        from . import views

        views.show_tree(ConsoleWriter(show_full=show_full), tree, pins)
    return 0


def serialize_tree(tree: SessionTree, pins: Mapping[str, str]) -> JsonObject:
    """Return a session's runs as JSON data."""
    runs = []
    for summary in tree.runs:
        run_id = summary.row.id
        forks = tree.forks.get(run_id, ())
        runs.append(
            {
                **row_fields(summary.row),
                "code": summary.code,
                "calls": summary.call_count,
                "files": summary.file_count,
                "tier": summary.tier,
                "in_lineage": run_id in tree.lineage,
                "forks": [fork.id for fork in forks if fork.purpose != AGENT_PURPOSE],
                "agents": [fork.id for fork in forks if fork.purpose == AGENT_PURPOSE],
                "pinned": pins.get(run_id),
            }
        )
    return {
        "session": row_fields(tree.session),
        "lineage": list(tree.lineage),
        "runs": runs,
        "damage": list(tree.damage),
    }


# events -------------------------------------------------------------------------------------------


def show_events(config: Config, principal: str, name: str, run: str, *, as_json: bool) -> int:
    """Print the events of one run; what is damaged is named on stderr."""
    damage: list[str] = []

    async def load(journal: Journal) -> list[StoredEvent]:
        row = await find_run(journal, await find_any_session(journal, name, principal), run)
        return await journal.load_events(row.session_id, run_id=row.id, damage=damage)

    events = read_journal(config, load)
    if as_json:
        for stored in events:
            print_json(serialize_event(stored), indent=None)
    else:
        writer = ConsoleWriter()
        for stored in events:
            show_run_event(writer, stored)
        writer.write_footer()
    for text in damage:
        print_text(f"damaged: {text}", sys.stderr)
    return 0


def serialize_event(stored: StoredEvent) -> JsonObject:
    """Return an event as JSON data."""
    head = {"n": stored.sequence, "at": stored.recorded_at, "kind": type(stored.event).__name__}
    return {**head, **row_fields(stored.event)}


def show_run_event(writer: ConsoleWriter, stored: StoredEvent) -> None:
    """Show an event with those of its fields that have a value."""
    kind = type(stored.event).__name__
    writer.write_line(f"{format_time(stored.recorded_at)}  ", (kind, "bold"))
    for name, value in row_fields(stored.event).items():
        if value not in EMPTY_VALUES:
            is_text = isinstance(value, str)
            writer.write_block(name, value if is_text else json.dumps(value, ensure_ascii=False))


# steps --------------------------------------------------------------------------------------------


@replay_command.command("show")
@click.argument("session")
@click.argument("step", required=False)
@principal_option
@json_option
@full_option
@pass_config
def show_run_command(
    config: Config,
    *,
    session: str,
    step: str | None,
    principal: str,
    as_json: bool,
    show_full: bool,
) -> int:
    """Show the steps of a session, or one of them: code, calls, output, value, files."""
    writer = ConsoleWriter(show_full=show_full)

    async def show(journal: Journal) -> None:
        row = await find_any_session(journal, session, principal)
        if step is None:
            rows = await journal.load_lineage(row.tip)
        else:
            rows = [await find_run(journal, row, step)]
        if as_json:
            print_json(
                [
                    await serialize_run(journal, await load_recorded_run(journal, row))
                    for row in rows
                ]
            )
        else:
            await show_runs(writer, journal, rows)

    read_journal(config, show)
    writer.write_footer()
    return 0


async def show_runs(writer: ConsoleWriter, journal: Journal, rows: list[RunRow]) -> None:
    """Load and show runs one at a time, because together they may be large."""
    from . import views

    for row in rows:
        run = await load_recorded_run(journal, row)
        views.show_run(writer, run, await load_agents(journal, run))
    if not rows:
        writer.write_note(views.EMPTY_SESSION_TEXT)


async def serialize_run(journal: Journal, run: RecordedRun) -> JsonObject:
    """Return a run and the agents that it started as JSON data."""
    report = run.report
    data = {
        **row_fields(run.row),
        "status": report.status,
        "code": run.code,
        "calls": [row_fields(call) for call in run.calls],
        "stdout": report.stdout,
        "stderr": report.stderr,
        "value": report.value,
        "error": report.error,
        "usage": report.usage,
        "files": dict(run.changed),
        "removed": report.removed_files,
        "damage": list(run.damage),
    }
    agents = await load_agents(journal, run)
    if agents:
        data["agents"] = [serialize_agent(agent) for agent in agents]
    return data


def serialize_agent(agent: AgentTree) -> JsonObject:
    """Return an agent, its runs and the agents that these started as JSON data."""
    runs = []
    for row in agent.runs:
        below = [serialize_agent(child) for child in agent.agents.get(row.id, ())]
        runs.append({"run": row.id, "step": row.step, "status": row.status, "agents": below})
    return {"session": agent.session.id, "runs": runs}


# differences --------------------------------------------------------------------------------------


@replay_command.command("diff")
@click.argument("a")
@click.argument("b")
@principal_option
@json_option
@full_option
@pass_config
def diff_runs_command(
    config: Config, *, a: str, b: str, principal: str, as_json: bool, show_full: bool
) -> int:
    """Compare two runs, or the lineages of two sessions; exit with 1 if they differ.

    A and B are run ids (r_...), SESSION:STEP, or sessions.
    """
    from ..runtime.run_diff import LineageDiff, RunDiff, diff_lineages, diff_runs, diff_to_json
    from . import views

    async def compare(journal: Journal) -> RunDiff | LineageDiff:
        left = await resolve_run_or_session(journal, a, principal)
        right = await resolve_run_or_session(journal, b, principal)
        if isinstance(left, RunRow) and isinstance(right, RunRow):
            return await diff_runs(journal, left, right)
        if isinstance(left, SessionRow) and isinstance(right, SessionRow):
            return await diff_lineages(journal, left.tip, right.tip)
        raise InvalidRequest(
            "A run cannot be compared with a session.",
            remedy="Name a step of the session: SESSION:STEP.",
        )

    found = read_journal(config, compare)
    if as_json:
        print_json(diff_to_json(found))
        return 0 if found.is_equal else 1
    writer = ConsoleWriter(show_full=show_full)
    if isinstance(found, RunDiff):
        views.show_run_diff(writer, found)
    else:
        views.show_lineage_diff(writer, found)
    writer.write_footer()
    return 0 if found.is_equal else 1
