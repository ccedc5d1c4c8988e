"""How sessions, runs and their differences look in a terminal. Nothing here reads anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..journal.events import FileEntry
from ..journal.replay import UNDONE, RecordedCall
from ..journal.rows import AGENT, RunRow, SessionRow
from ..runtime.diff import CallChange, Change, FileChange, LineDiff, RunDiff
from ..runtime.history import AgentTree, PastRun, Summary, Tree
from .printing import Screen, ago, columns_of, fit, many, pad, safe, size, took, when

COLOURS = {
    "ok": "green",
    "running": "cyan",
    "queued": "cyan",
    "waiting": "yellow",
    "cancelled": "yellow",
}  # of statuses; others are red
MARKS = {"ok": "✓", "started": "…"}  # of calls; others have failed
SIDES = {"-": "red", "+": "green", " ": ""}  # colours of what only one of two runs has
MAX_DEPTH = 12  # branches of branches that are drawn
MIN_CODE = 16  # columns
EMPTY = "nothing recorded yet"


def handle_of(row: SessionRow) -> str:
    """Return what people call a session."""
    return row.name or row.id


# sessions -------------------------------------------------------------------------------------------


def show_sessions(screen: Screen, rows: Sequence[SessionRow], origins: Mapping[str, str]) -> None:
    """List sessions; `origins` says, by the run that a fork began at, whose it is."""
    if not rows:
        screen.note("There are no sessions in this data folder.")
        return
    names = [safe(row.name or "") for row in rows]
    room = min(max(7, *map(columns_of, names)), max(12, screen.width - 64))
    screen.note(f"{pad('session', room)}  {'id':24}  {'runs':>6}  last used")
    for row, name in zip(rows, names, strict=True):
        text = f"{pad(name or '-', room)}  {row.id:24}  {row.runs:6,}  {ago(row.used)}"
        about = about_session(row, origins)
        screen.line(fit(f"{text:{room + 52}}  {about}", screen.width) if about else text)


def about_session(row: SessionRow, origins: Mapping[str, str]) -> str:
    """Return what is special about a session."""
    if row.purpose == "import":
        return "imported"
    where = safe(origins.get(row.origin or "", ""))
    if row.purpose == AGENT:
        return f"agent of {where}" if where else "agent"
    if row.purpose == "rerun":
        return f"rerun, from {where}" if where else "rerun"
    return f"fork of {where}" if where else ""


# one session ----------------------------------------------------------------------------------------


def show_tree(screen: Screen, tree: Tree, pins: Mapping[str, str]) -> None:
    """Draw the steps of a session: its line straight down, what was left beside it, the first step on top."""
    session = tree.session
    at = f"at step {len(tree.line)}" if tree.line else "at the beginning"
    screen.heading(f"{safe(handle_of(session))} · {many(session.runs, 'run')} · {at}")
    if not tree.runs:
        screen.note(f"  {EMPTY}")
    lines = list(drawn(tree))
    graph = max((columns_of(prefix) for prefix, _ in lines), default=0)
    figures = max(4, len(str(max((each.row.step for each in tree.runs), default=0))))
    if lines:
        screen.note(
            f"{'':{graph}} {'step':>{figures}} {'status':9} {'took':>7} {'calls':>5} {'files':>5}  {'run':14}  code"
        )
    for prefix, each in lines:
        _show_step(screen, tree, each, pad(prefix, graph), figures, pins.get(each.row.id))
    for text in tree.damage:
        screen.warn(text)


def _show_step(screen: Screen, tree: Tree, each: Summary, prefix: str, figures: int, pin: str | None) -> None:
    row, forks = each.row, tree.forks.get(each.row.id, ())
    agents = sum(other.purpose == AGENT for other in forks)
    words = [
        *(("tip",) if tree.line[-1:] == (row.id,) else ()),
        *(("undone",) if UNDONE in row.flags else ()),
        *(("files only",) if each.tier == "files-only" else ()),
        *((f"pinned: {safe(pin)}" if pin else "pinned",) if pin is not None else ()),
        *(f"fork: {safe(handle_of(other))}" for other in forks if other.purpose not in ("rerun", AGENT)),
        *((many(agents, "agent"),) if agents else ()),
    ]
    note = f"[{', '.join(words)}] " if words else ""
    facts = f"{row.step:{figures}} {{}} {duration(row):>7} {each.calls or '·':>5} {each.files or '·':>5}  {row.id:14}  "
    room = max(MIN_CODE, screen.width - columns_of(prefix) - columns_of(facts) - 8)
    note = fit(note, room)
    code = screen.one_line(each.code, max(0, room - columns_of(note)))
    on_line = row.id in tree.line
    shown = facts.format(screen.paint(pad(safe(row.status), 9), colour_of(row.status)))
    text = f"{screen.paint(note, 'yellow')}{code if on_line else screen.paint(code, 'dim')}"
    screen.line(f"{screen.paint(prefix, 'blue' if on_line else 'dim')} {shown}{text}")


def drawn(tree: Tree) -> Iterator[tuple[str, Summary]]:
    """Yield the runs from top to bottom, each with the branches to the left of it."""
    children, line = tree.children(), set(tree.line)
    waiting = list(_branches(children.get(None, []), line, 0))
    while waiting:
        each, depth, is_first = waiting.pop()
        mark = "●" if each.row.id in line else "✗" if UNDONE in each.row.flags else "○"
        columns = min(depth, MAX_DEPTH)
        yield ("│ " * (columns - 1) + "├─" if is_first and columns else "│ " * columns) + mark, each
        waiting += _branches(children.get(each.row.id, []), line, depth)


def _branches(runs: Sequence[Summary], line: set[str], depth: int) -> Iterator[tuple[Summary, int, bool]]:
    """Yield what follows a run, what is to be drawn last first: the line, else the newest branch, goes straight on."""
    if not runs:
        return
    straight = next((each for each in runs if each.row.id in line), runs[-1])
    yield straight, depth, False
    for each in reversed(runs):
        if each is not straight:
            yield each, depth + 1, True


def colour_of(status: str) -> str:
    """Return the colour of a status."""
    return COLOURS.get(status, "red")


def duration(row: RunRow) -> str:
    """Return how long a run took."""
    return took(row.finished - row.started if row.finished else None)


# one run --------------------------------------------------------------------------------------------


def show_run(screen: Screen, past: PastRun, agents: Sequence[AgentTree] = ()) -> None:
    """Show everything about a run; `agents` are those that it has begun."""
    row, report = past.row, past.report
    ending = "undone" if UNDONE in row.flags else ""
    words = [f"step {row.step}", report.status, ending, duration(row), when(row.started), row.id]
    screen.heading(" · ".join(filter(None, words)), colour_of(report.status))
    screen.program(past.code)
    if past.calls:
        show_calls(screen, [call for call in past.calls if call.listed])
    if agents:
        screen.line(f"  {screen.paint('agents', 'dim')}")
        for line in screen.excerpt(list(drawn_agents(screen, agents, "    "))):
            screen.line(line)
    for name, text, style in (("stdout", report.stdout, "green"), ("stderr", report.stderr, "yellow")):
        if text:
            screen.block(name, text, style)
    if report.value is not None:
        screen.block(f"value  {report.value.get('type', '')}", value_text(report.value))
    if report.error is not None:
        screen.block("error", error_text(report.error), "red")
    if past.changed or report.removed:
        show_files(screen, past.changed, report.removed)
    for text in past.damage:
        screen.warn(text)
    screen.line()


def show_calls(screen: Screen, calls: Sequence[RecordedCall]) -> None:
    """List calls with their arguments and how each ended."""
    if not calls:
        return
    screen.line(f"  {screen.paint('calls', 'dim')}")
    for call in screen.excerpt(calls):
        if isinstance(call, str):
            screen.note(f"    {call}")
            continue
        status = "started" if call.finished is None else "error" if call.error else "ok"
        style = "cyan" if status == "started" else colour_of(status)
        facts = f"{took(call.ms / 1e3)}{f' · line {call.line}' if call.line else ''}" if call.finished else "no answer"
        room = screen.width - columns_of(facts) - 8
        text = screen.one_line(call_text(call.target, call.args), room)
        screen.line(
            f"    {screen.paint(MARKS.get(status, '✗'), style)} {pad(text, max(room, columns_of(text)))}  {facts}"
        )
        if call.finished is not None:
            outcome = error_line(call.error) if call.error else as_json(call.value)
            screen.note(f"      → {screen.one_line(outcome, screen.width - 8)}")


def drawn_agents(screen: Screen, agents: Sequence[AgentTree], margin: str) -> Iterator[str]:
    """Yield a line for each agent, and under it one for each of its runs, with the agents that this has begun."""
    for agent in agents:
        last = agent is agents[-1]
        yield f"{margin}{'└─' if last else '├─'} {screen.paint(safe(agent.session.id), 'bold')}"
        inner = margin + ("   " if last else "│  ")
        for row in agent.runs:
            status = screen.paint(pad(safe(row.status), 9), colour_of(row.status))
            yield f"{inner}step {row.step:<3} {status} {duration(row):>7}  {safe(row.id)}"
            yield from drawn_agents(screen, agent.agents.get(row.id, ()), inner + "  ")


def show_files(screen: Screen, changed: Mapping[str, FileEntry], removed: Sequence[str]) -> None:
    """List the files that a run left changed, with their sizes, and those that it removed."""
    screen.line(f"  {screen.paint('files', 'dim')}")
    rows = [*((path, size(entry["size"])) for path, entry in changed.items()), *((path, "removed") for path in removed)]
    for row in screen.excerpt(rows, gap=("", "")):
        path, told = row if row[0] != row[1] else (row[0], "")
        style = "red" if told == "removed" else "green"
        screen.line(f"    {screen.paint(f'{told:>8}', style)}  {screen.one_line(path, screen.width - 14)}")


def call_text(target: str, args: str) -> str:
    """Return a call as Python would have it; `args` is JSON."""
    target = target.removeprefix("tools.")
    try:
        found = json.loads(args)
        return f"{target}({', '.join(f'{name}={as_json(value)}' for name, value in found.items())})"
    except (ValueError, AttributeError, RecursionError):  # in an archive of a stranger's
        return f"{target}({args})"


def as_json(value: Any) -> str:
    """Return JSON data as text for people."""
    return json.dumps(value, ensure_ascii=False)


def value_text(value: Mapping[str, Any] | None) -> str:
    """Return a run's value as text."""
    return "(none)" if value is None else f"{value.get('text', '')}{' …' if value.get('cut') else ''}"


def error_text(error: Mapping[str, Any] | None) -> str:
    """Return a run's error as text."""
    if error is None:
        return "(none)"
    return str(error.get("traceback") or f"{error.get('type', 'Error')}: {error.get('message', '')}")


def error_line(error: Mapping[str, Any]) -> str:
    """Return a call's error on one line."""
    return f"{error.get('kind', 'error')}: {error.get('message', '')}"


# differences ----------------------------------------------------------------------------------------


def show_run_diff(screen: Screen, found: RunDiff) -> None:
    """Show how two runs differ."""
    for name, row, style in (("a", found.a, "red"), ("b", found.b, "green")):
        screen.line(f"{screen.paint(name, style)}  step {row.step} · {row.id} · {when(row.started)}")
    show_changes(screen, found)
    if found.equal:
        same = "code, calls, output, value, error and files" if not found.damage else "all that can be read"
        screen.note(f"  the same: {same}")
    for text in found.damage:
        screen.warn(text)


def show_changes(screen: Screen, found: RunDiff) -> None:
    """Show what differs between two runs, and nothing of what does not."""
    _show_change(screen, "status", found.status, str)
    for name in ("code", "stdout", "stderr"):
        if text := getattr(found, name):
            screen.line(f"  {screen.paint(name, 'bold')}")
            screen.difference(text)
    if found.calls:
        screen.line(f"  {screen.paint('calls', 'bold')}")
        for call in screen.excerpt(found.calls):
            _show_call_change(screen, call)
    _show_change(screen, "value", found.value, value_text)
    _show_change(screen, "error", found.error, error_text)
    show_file_changes(screen, found.files)


def _show_change(screen: Screen, name: str, change: Change | None, text_of: Any) -> None:
    if change is not None:
        screen.line(f"  {screen.paint(name, 'bold')}")
        sides = [
            (mark, line) for mark, side in (("-", change.a), ("+", change.b)) for line in text_of(side).split("\n")
        ]
        screen.difference("\n".join(f"{mark}{line}" for mark, line in sides))


def _show_call_change(screen: Screen, change: CallChange | str) -> None:
    if isinstance(change, str):
        screen.note(f"    {change}")
        return
    mark = " " if change.a is not None and change.b is not None else "-" if change.b is None else "+"
    text = screen.one_line(call_text(change.target, change.args), screen.width - 8)
    screen.line(screen.paint(f"    {mark} {text}", SIDES[mark]))
    for mark, outcome in (("-", change.a), ("+", change.b)):
        if outcome is not None:
            line = screen.one_line(f"{mark}   → {outcome_text(outcome)}", screen.width - 6)
            screen.line(screen.paint(f"    {line}", SIDES[mark]))


def outcome_text(outcome: Mapping[str, Any]) -> str:
    """Return how a call ended."""
    if outcome["error"]:
        return error_line(outcome["error"])
    return "no answer" if outcome["status"] == "started" else as_json(outcome["value"])


def show_file_changes(screen: Screen, changes: Sequence[FileChange]) -> None:
    """Show how files differ."""
    if changes:
        screen.line(f"  {screen.paint('files', 'bold')}")
    for change in screen.excerpt(changes):
        if isinstance(change, str):
            screen.note(f"    {change}")
            continue
        mark, style = ("+", "green") if change.a is None else ("-", "red") if change.b is None else ("~", "yellow")
        sizes = " → ".join(size(entry["size"]) for entry in (change.a, change.b) if entry is not None)
        screen.line(f"    {screen.paint(mark, style)} {screen.one_line(change.path, screen.width - 24)}  {sizes}")
        if change.text:
            screen.difference(change.text, margin="      ")


def show_line_diff(screen: Screen, found: LineDiff) -> None:
    """Show how two lines differ, from where they part."""
    count = len(found.common)
    screen.note(f"{many(count, 'step')} in common" if count else "no steps in common")
    for step in found.steps:
        state = "the same" if step.equal else "differs"
        screen.heading(f"step {step.a.step} · {step.a.id} → {step.b.id} · {state}", "green" if step.equal else "yellow")
        show_changes(screen, step)
    for mark, rows, style in (("-", found.only_a, "red"), ("+", found.only_b, "green")):
        for row in rows:
            screen.line(screen.paint(f"{mark} step {row.step} · {row.id} · {safe(row.status)}", style))
    if found.files:
        screen.heading("workspaces at the ends")
        show_file_changes(screen, found.files)
    if found.equal:
        screen.note("  the same" if not found.damage else "  the same, as far as it can be read")
    for text in found.damage:
        screen.warn(text)
