"""How sessions, runs and their differences look in a terminal. Nothing here reads anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..journal.events import FileEntry
from ..journal.recording import RecordedCall
from ..journal.rows import AGENT_PURPOSE, UNDONE_FLAG, RunRow, SessionRow
from ..runtime.run_diff import CallChange, FileChange, LineageDiff, RunDiff, ValueChange
from ..runtime.run_history import AgentTree, RecordedRun, RunSummary, SessionTree
from .console import (
    ConsoleWriter,
    count_columns,
    escape_text,
    format_age,
    format_count,
    format_duration,
    format_size,
    format_time,
    pad_text,
    truncate_text,
)

STATUS_STYLES = {
    "ok": "green",
    "running": "cyan",
    "queued": "cyan",
    "waiting": "yellow",
    "cancelled": "yellow",
}  # of statuses; others are red
CALL_MARKS = {"ok": "✓", "started": "…"}  # of calls; others have failed
DIFF_STYLES = {"-": "red", "+": "green", " ": ""}  # colours of what only one of two runs has
MAX_BRANCH_DEPTH = 12  # branches of branches that are drawn
MIN_CODE_COLUMNS = 16  # columns
EMPTY_SESSION_TEXT = "nothing recorded yet"


def session_label(row: SessionRow) -> str:
    """Return what people call a session."""
    return row.name or row.id


# sessions -------------------------------------------------------------------------------------------


def show_sessions(
    screen: ConsoleWriter, rows: Sequence[SessionRow], origins: Mapping[str, str]
) -> None:
    """List sessions; `origins` says, by the run that a fork began at, whose it is."""
    if not rows:
        screen.write_note("There are no sessions in this data folder.")
        return
    names = [escape_text(row.name or "") for row in rows]
    room = min(max(7, *map(count_columns, names)), max(12, screen.width - 64))
    screen.write_note(f"{pad_text('session', room)}  {'id':24}  {'runs':>6}  last used")
    for row, name in zip(rows, names, strict=True):
        text = f"{pad_text(name or '-', room)}  {row.id:24}  {row.run_count:6,}  {format_age(row.last_used_at)}"
        about = describe_origin(row, origins)
        screen.write_line(
            truncate_text(f"{text:{room + 52}}  {about}", screen.width) if about else text
        )


def describe_origin(row: SessionRow, origins: Mapping[str, str]) -> str:
    """Return what is special about a session."""
    if row.purpose == "import":
        return "imported"
    where = escape_text(origins.get(row.origin or "", ""))
    if row.purpose == AGENT_PURPOSE:
        return f"agent of {where}" if where else "agent"
    if row.purpose == "rerun":
        return f"rerun, from {where}" if where else "rerun"
    return f"fork of {where}" if where else ""


# one session ----------------------------------------------------------------------------------------


def show_tree(screen: ConsoleWriter, tree: SessionTree, pins: Mapping[str, str]) -> None:
    """Draw the steps of a session: its line straight down, what was left beside it, the first step on top."""
    session = tree.session
    at = f"at step {len(tree.lineage)}" if tree.lineage else "at the beginning"
    screen.write_heading(
        f"{escape_text(session_label(session))} · {format_count(session.run_count, 'run')} · {at}"
    )
    if not tree.runs:
        screen.write_note(f"  {EMPTY_SESSION_TEXT}")
    lines = list(iterate_tree_rows(tree))
    graph = max((count_columns(prefix) for prefix, _ in lines), default=0)
    figures = max(4, len(str(max((each.row.step for each in tree.runs), default=0))))
    if lines:
        screen.write_note(
            f"{'':{graph}} {'step':>{figures}} {'status':9} {'took':>7} {'calls':>5} {'files':>5}  {'run':14}  code"
        )
    for prefix, each in lines:
        _show_step(screen, tree, each, pad_text(prefix, graph), figures, pins.get(each.row.id))
    for text in tree.damage:
        screen.write_warning(text)


def _show_step(
    screen: ConsoleWriter,
    tree: SessionTree,
    each: RunSummary,
    prefix: str,
    figures: int,
    pin: str | None,
) -> None:
    row, forks = each.row, tree.forks.get(each.row.id, ())
    agents = sum(other.purpose == AGENT_PURPOSE for other in forks)
    words = [
        *(("tip",) if tree.lineage[-1:] == (row.id,) else ()),
        *(("undone",) if UNDONE_FLAG in row.flags else ()),
        *(("files only",) if each.tier == "files-only" else ()),
        *((f"pinned: {escape_text(pin)}" if pin else "pinned",) if pin is not None else ()),
        *(
            f"fork: {escape_text(session_label(other))}"
            for other in forks
            if other.purpose not in ("rerun", AGENT_PURPOSE)
        ),
        *((format_count(agents, "agent"),) if agents else ()),
    ]
    note = f"[{', '.join(words)}] " if words else ""
    facts = f"{row.step:{figures}} {{}} {format_run_duration(row):>7} {each.call_count or '·':>5} {each.file_count or '·':>5}  {row.id:14}  "
    room = max(MIN_CODE_COLUMNS, screen.width - count_columns(prefix) - count_columns(facts) - 8)
    note = truncate_text(note, room)
    code = screen.truncate_line(each.code, max(0, room - count_columns(note)))
    on_line = row.id in tree.lineage
    shown = facts.format(
        screen.style_text(pad_text(escape_text(row.status), 9), status_style(row.status))
    )
    text = (
        f"{screen.style_text(note, 'yellow')}{code if on_line else screen.style_text(code, 'dim')}"
    )
    screen.write_line(f"{screen.style_text(prefix, 'blue' if on_line else 'dim')} {shown}{text}")


def iterate_tree_rows(tree: SessionTree) -> Iterator[tuple[str, RunSummary]]:
    """Yield the runs from top to bottom, each with the branches to the left of it."""
    children, line = tree.children(), set(tree.lineage)
    waiting = list(_order_branches(children.get(None, []), line, 0))
    while waiting:
        each, depth, is_first = waiting.pop()
        mark = "●" if each.row.id in line else "✗" if UNDONE_FLAG in each.row.flags else "○"
        columns = min(depth, MAX_BRANCH_DEPTH)
        yield ("│ " * (columns - 1) + "├─" if is_first and columns else "│ " * columns) + mark, each
        waiting += _order_branches(children.get(each.row.id, []), line, depth)


def _order_branches(
    runs: Sequence[RunSummary], line: set[str], depth: int
) -> Iterator[tuple[RunSummary, int, bool]]:
    """Yield what follows a run, what is to be drawn last first: the line, else the newest branch, goes straight on."""
    if not runs:
        return
    straight = next((each for each in runs if each.row.id in line), runs[-1])
    yield straight, depth, False
    for each in reversed(runs):
        if each is not straight:
            yield each, depth + 1, True


def status_style(status: str) -> str:
    """Return the colour of a status."""
    return STATUS_STYLES.get(status, "red")


def format_run_duration(row: RunRow) -> str:
    """Return how long a run took."""
    return format_duration(row.finished_at - row.started_at if row.finished_at else None)


# one run --------------------------------------------------------------------------------------------


def show_run(screen: ConsoleWriter, past: RecordedRun, agents: Sequence[AgentTree] = ()) -> None:
    """Show everything about a run; `agents` are those that it has begun."""
    row, report = past.row, past.report
    ending = "undone" if UNDONE_FLAG in row.flags else ""
    words = [
        f"step {row.step}",
        report.status,
        ending,
        format_run_duration(row),
        format_time(row.started_at),
        row.id,
    ]
    screen.write_heading(" · ".join(filter(None, words)), status_style(report.status))
    screen.write_program(past.code)
    if past.calls:
        show_calls(screen, [call for call in past.calls if call.in_ledger])
    if agents:
        screen.write_line(f"  {screen.style_text('agents', 'dim')}")
        for line in screen.select_excerpt(list(draw_agents(screen, agents, "    "))):
            screen.write_line(line)
    for name, text, style in (
        ("stdout", report.stdout, "green"),
        ("stderr", report.stderr, "yellow"),
    ):
        if text:
            screen.write_block(name, text, style)
    if report.value is not None:
        screen.write_block(f"value  {report.value.get('type', '')}", format_run_value(report.value))
    if report.error is not None:
        screen.write_block("error", format_error(report.error), "red")
    if past.changed or report.removed_files:
        show_files(screen, past.changed, report.removed_files)
    for text in past.damage:
        screen.write_warning(text)
    screen.write_line()


def show_calls(screen: ConsoleWriter, calls: Sequence[RecordedCall]) -> None:
    """List calls with their arguments and how each ended."""
    if not calls:
        return
    screen.write_line(f"  {screen.style_text('calls', 'dim')}")
    for call in screen.select_excerpt(calls):
        if isinstance(call, str):
            screen.write_note(f"    {call}")
            continue
        status = "started" if call.finished is None else "error" if call.error else "ok"
        style = "cyan" if status == "started" else status_style(status)
        facts = (
            f"{format_duration(call.ms / 1e3)}{f' · line {call.line}' if call.line else ''}"
            if call.finished
            else "no answer"
        )
        room = screen.width - count_columns(facts) - 8
        text = screen.truncate_line(format_call(call.target, call.args), room)
        screen.write_line(
            f"    {screen.style_text(CALL_MARKS.get(status, '✗'), style)} {pad_text(text, max(room, count_columns(text)))}  {facts}"
        )
        if call.finished is not None:
            outcome = format_call_error(call.error) if call.error else format_json(call.value)
            screen.write_note(f"      → {screen.truncate_line(outcome, screen.width - 8)}")


def draw_agents(screen: ConsoleWriter, agents: Sequence[AgentTree], margin: str) -> Iterator[str]:
    """Yield a line for each agent, and under it one for each of its runs, with the agents that this has begun."""
    for agent in agents:
        last = agent is agents[-1]
        yield f"{margin}{'└─' if last else '├─'} {screen.style_text(escape_text(agent.session.id), 'bold')}"
        inner = margin + ("   " if last else "│  ")
        for row in agent.runs:
            status = screen.style_text(
                pad_text(escape_text(row.status), 9), status_style(row.status)
            )
            yield f"{inner}step {row.step:<3} {status} {format_run_duration(row):>7}  {escape_text(row.id)}"
            yield from draw_agents(screen, agent.agents.get(row.id, ()), inner + "  ")


def show_files(
    screen: ConsoleWriter, changed: Mapping[str, FileEntry], removed: Sequence[str]
) -> None:
    """List the files that a run left changed, with their sizes, and those that it removed."""
    screen.write_line(f"  {screen.style_text('files', 'dim')}")
    rows = [
        *((path, format_size(entry["size"])) for path, entry in changed.items()),
        *((path, "removed") for path in removed),
    ]
    for row in screen.select_excerpt(rows, gap=("", "")):
        path, told = row if row[0] != row[1] else (row[0], "")
        style = "red" if told == "removed" else "green"
        screen.write_line(
            f"    {screen.style_text(f'{told:>8}', style)}  {screen.truncate_line(path, screen.width - 14)}"
        )


def format_call(target: str, args: str) -> str:
    """Return a call as Python would have it; `args` is JSON."""
    target = target.removeprefix("tools.")
    try:
        found = json.loads(args)
        return f"{target}({', '.join(f'{name}={format_json(value)}' for name, value in found.items())})"
    except (ValueError, AttributeError, RecursionError):  # in an archive of a stranger's
        return f"{target}({args})"


def format_json(value: Any) -> str:
    """Return JSON data as text for people."""
    return json.dumps(value, ensure_ascii=False)


def format_run_value(value: Mapping[str, Any] | None) -> str:
    """Return a run's value as text."""
    return (
        "(none)" if value is None else f"{value.get('text', '')}{' …' if value.get('cut') else ''}"
    )


def format_error(error: Mapping[str, Any] | None) -> str:
    """Return a run's error as text."""
    if error is None:
        return "(none)"
    return str(
        error.get("traceback") or f"{error.get('type', 'Error')}: {error.get('message', '')}"
    )


def format_call_error(error: Mapping[str, Any]) -> str:
    """Return a call's error on one line."""
    return f"{error.get('kind', 'error')}: {error.get('message', '')}"


# differences ----------------------------------------------------------------------------------------


def show_run_diff(screen: ConsoleWriter, found: RunDiff) -> None:
    """Show how two runs differ."""
    for name, row, style in (("a", found.a, "red"), ("b", found.b, "green")):
        screen.write_line(
            f"{screen.style_text(name, style)}  step {row.step} · {row.id} · {format_time(row.started_at)}"
        )
    show_changes(screen, found)
    if found.is_equal:
        same = (
            "code, calls, output, value, error and files"
            if not found.damage
            else "all that can be read"
        )
        screen.write_note(f"  the same: {same}")
    for text in found.damage:
        screen.write_warning(text)


def show_changes(screen: ConsoleWriter, found: RunDiff) -> None:
    """Show what differs between two runs, and nothing of what does not."""
    _show_change(screen, "status", found.status, str)
    for name in ("code", "stdout", "stderr"):
        if text := getattr(found, name):
            screen.write_line(f"  {screen.style_text(name, 'bold')}")
            screen.write_diff(text)
    if found.calls:
        screen.write_line(f"  {screen.style_text('calls', 'bold')}")
        for call in screen.select_excerpt(found.calls):
            _show_call_change(screen, call)
    _show_change(screen, "value", found.value, format_run_value)
    _show_change(screen, "error", found.error, format_error)
    show_file_changes(screen, found.files)


def _show_change(
    screen: ConsoleWriter, name: str, change: ValueChange | None, format_side: Any
) -> None:
    if change is not None:
        screen.write_line(f"  {screen.style_text(name, 'bold')}")
        sides = [
            (mark, line)
            for mark, side in (("-", change.a), ("+", change.b))
            for line in format_side(side).split("\n")
        ]
        screen.write_diff("\n".join(f"{mark}{line}" for mark, line in sides))


def _show_call_change(screen: ConsoleWriter, change: CallChange | str) -> None:
    if isinstance(change, str):
        screen.write_note(f"    {change}")
        return
    mark = (
        " " if change.a is not None and change.b is not None else "-" if change.b is None else "+"
    )
    text = screen.truncate_line(format_call(change.target, change.args), screen.width - 8)
    screen.write_line(screen.style_text(f"    {mark} {text}", DIFF_STYLES[mark]))
    for mark, outcome in (("-", change.a), ("+", change.b)):
        if outcome is not None:
            line = screen.truncate_line(f"{mark}   → {format_outcome(outcome)}", screen.width - 6)
            screen.write_line(screen.style_text(f"    {line}", DIFF_STYLES[mark]))


def format_outcome(outcome: Mapping[str, Any]) -> str:
    """Return how a call ended."""
    if outcome["error"]:
        return format_call_error(outcome["error"])
    return "no answer" if outcome["status"] == "started" else format_json(outcome["value"])


def show_file_changes(screen: ConsoleWriter, changes: Sequence[FileChange]) -> None:
    """Show how files differ."""
    if changes:
        screen.write_line(f"  {screen.style_text('files', 'bold')}")
    for change in screen.select_excerpt(changes):
        if isinstance(change, str):
            screen.write_note(f"    {change}")
            continue
        mark, style = (
            ("+", "green")
            if change.a is None
            else ("-", "red")
            if change.b is None
            else ("~", "yellow")
        )
        sizes = " → ".join(
            format_size(entry["size"]) for entry in (change.a, change.b) if entry is not None
        )
        screen.write_line(
            f"    {screen.style_text(mark, style)} {screen.truncate_line(change.path, screen.width - 24)}  {sizes}"
        )
        if change.text:
            screen.write_diff(change.text, margin="      ")


def show_line_diff(screen: ConsoleWriter, found: LineageDiff) -> None:
    """Show how two lines differ, from where they part."""
    count = len(found.common)
    screen.write_note(f"{format_count(count, 'step')} in common" if count else "no steps in common")
    for step in found.steps:
        state = "the same" if step.is_equal else "differs"
        screen.write_heading(
            f"step {step.a.step} · {step.a.id} → {step.b.id} · {state}",
            "green" if step.is_equal else "yellow",
        )
        show_changes(screen, step)
    for mark, rows, style in (("-", found.only_a, "red"), ("+", found.only_b, "green")):
        for row in rows:
            screen.write_line(
                screen.style_text(
                    f"{mark} step {row.step} · {row.id} · {escape_text(row.status)}", style
                )
            )
    if found.files:
        screen.write_heading("workspaces at the ends")
        show_file_changes(screen, found.files)
    if found.is_equal:
        screen.write_note(
            "  the same" if not found.damage else "  the same, as far as it can be read"
        )
    for text in found.damage:
        screen.write_warning(text)
