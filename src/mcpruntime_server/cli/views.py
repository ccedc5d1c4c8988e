"""How sessions, runs and their differences look in a terminal. Nothing here reads the journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.text import Text

from ..journal.events import CallError, FileEntry, RunError, RunValue
from ..journal.recording import RecordedCall
from ..journal.rows import AGENT_PURPOSE, UNDONE_FLAG, RunRow, SessionRow
from ..protocol import presentation
from ..runtime.run_history import AgentTree, ListedRun, RecordedRun, SessionTree
from .console import (
    ConsoleWriter,
    Omission,
    PlainTable,
    StyledPart,
    assemble_line,
    format_age,
    format_count,
    format_duration,
    format_size,
    format_time,
    pad_text,
)

if TYPE_CHECKING:
    from ..runtime.run_diff import (
        CallChange,
        DiffOutcome,
        FileChange,
        LineageDiff,
        RunDiff,
        ValueChange,
    )

STATUS_STYLES = {
    "ok": "green",
    "running": "cyan",
    "queued": "cyan",
    "waiting": "yellow",
    "cancelled": "yellow",
}  # every other status is red
CALL_MARKS = {"ok": "✓", "error": "✗", "started": "…"}
DIFF_STYLES = {"-": "red", "+": "green", " ": ""}
MAX_CALL_CHARS = 2_000  # of one call's arguments
MAX_BRANCH_DEPTH = 12  # deeper branches are drawn at this depth
SESSIONS_COLUMNS = 64  # the least that keeps session ids whole
STEPS_COLUMNS = 76  # the least that keeps run ids whole
STATUS_COLUMNS = 9
MIN_CODE_COLUMNS = 16
EMPTY_SESSION_TEXT = "nothing recorded yet"


def session_label(row: SessionRow) -> str:
    """Return the name of a session, or its id if it has none."""
    return row.name or row.id


# sessions -----------------------------------------------------------------------------------------


def show_sessions(
    writer: ConsoleWriter, rows: Sequence[SessionRow], origins: Mapping[str, str]
) -> None:
    """List sessions; `origins` maps the run that a fork started at to SESSION:STEP."""
    if not rows:
        writer.write_note("There are no sessions in this data folder.")
        return
    table = PlainTable()
    table.add_column("session", min_width=7)
    table.add_column("id", no_wrap=True)
    table.add_column("runs", justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    table.add_column("")
    for row in rows:
        name, origin = row.name or "-", describe_origin(row, origins)
        age = format_age(row.last_used_at)
        table.add_cells(one_line(name), row.id, f"{row.run_count:,}", age, one_line(origin))
    writer.write_table(table, SESSIONS_COLUMNS)


def one_line(*parts: StyledPart) -> Text:
    """Return a cell that is cut instead of wrapped where its column is too narrow."""
    line = assemble_line(*parts)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def describe_origin(row: SessionRow, origins: Mapping[str, str]) -> str:
    """Return how a session came about, "" if a client just started it."""
    if row.purpose == "import":
        return "imported"
    origin = origins.get(row.origin or "", "")
    if row.purpose == AGENT_PURPOSE:
        return f"agent of {origin}" if origin else "agent"
    if row.purpose == "rerun":
        return f"rerun, from {origin}" if origin else "rerun"
    return f"fork of {origin}" if origin else ""


# one session --------------------------------------------------------------------------------------


def show_tree(writer: ConsoleWriter, tree: SessionTree, pins: Mapping[str, str]) -> None:
    """Draw the runs of a session, the first on top: its lineage straight down, branches beside."""
    session = tree.session
    position = f"at step {len(tree.lineage)}" if tree.lineage else "at the beginning"
    runs = format_count(session.run_count, "run")
    writer.write_heading(f"{session_label(session)} · {runs} · {position}")
    if tree.runs:
        table = PlainTable()
        for name, justify in (("", "left"), ("step", "right"), ("status", "left")):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for name in ("took", "calls", "files"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("run", no_wrap=True)
        table.add_column("code", min_width=MIN_CODE_COLUMNS)
        for graph, summary in iterate_tree_rows(tree):
            add_step_row(writer, table, tree, graph, summary, pins.get(summary.row.id))
        writer.write_table(table, STEPS_COLUMNS)
    else:
        writer.write_note(f"  {EMPTY_SESSION_TEXT}")
    for text in tree.damage:
        writer.write_warning(text)


def add_step_row(
    writer: ConsoleWriter,
    table: PlainTable,
    tree: SessionTree,
    graph: str,
    summary: ListedRun,
    pin: str | None,
) -> None:
    """Add a run to the table; `pin` is the reason for keeping it, None if it is not pinned."""
    row = summary.row
    is_in_lineage = row.id in tree.lineage
    labels = step_labels(tree, summary, pin)
    code = writer.truncate_line(summary.code, writer.width)
    table.add_cells(
        Text(graph, "blue" if is_in_lineage else "dim"),
        str(row.step),
        Text(row.status, status_style(row.status)),
        format_run_duration(row),
        str(summary.call_count or "·"),
        str(summary.file_count or "·"),
        row.id,
        one_line(
            (f"[{', '.join(labels)}] " if labels else "", "yellow"),
            (code, "" if is_in_lineage else "dim"),
        ),
    )


def step_labels(tree: SessionTree, summary: ListedRun, pin: str | None) -> list[str]:
    """Return what is special about a run of a session."""
    row, forks = summary.row, tree.forks.get(summary.row.id, ())
    labels = []
    if tree.lineage[-1:] == (row.id,):
        labels.append("tip")
    if UNDONE_FLAG in row.flags:
        labels.append("undone")
    if summary.tier == "files-only":
        labels.append("files only")
    if pin is not None:
        labels.append(f"pinned: {pin}" if pin else "pinned")
    named = [fork for fork in forks if fork.purpose not in ("rerun", AGENT_PURPOSE)]
    labels += [f"fork: {session_label(fork)}" for fork in named]
    agents = sum(fork.purpose == AGENT_PURPOSE for fork in forks)
    if agents:
        labels.append(format_count(agents, "agent"))
    return labels


def iterate_tree_rows(tree: SessionTree) -> Iterator[tuple[str, ListedRun]]:
    """Yield the runs from top to bottom, each with its part of the graph of branches."""
    children, lineage = tree.children(), set(tree.lineage)
    stack = list(_order_branches(children.get(None, []), lineage, 0))
    while stack:
        summary, depth, is_first = stack.pop()
        columns = min(depth, MAX_BRANCH_DEPTH)
        margin = "│ " * (columns - 1) + "├─" if is_first and columns else "│ " * columns
        yield margin + graph_mark(summary.row, lineage), summary
        stack += _order_branches(children.get(summary.row.id, []), lineage, depth)


def graph_mark(row: RunRow, lineage: set[str]) -> str:
    """Return the mark of a run in the graph."""
    if row.id in lineage:
        return "●"
    return "✗" if UNDONE_FLAG in row.flags else "○"


def _order_branches(
    runs: Sequence[ListedRun], lineage: set[str], depth: int
) -> Iterator[tuple[ListedRun, int, bool]]:
    """Yield the runs that follow a run as (run, depth, whether a branch starts), bottom first.

    The run on the lineage, else the newest one, continues straight down.
    """
    if not runs:
        return
    straight = next((run for run in runs if run.row.id in lineage), runs[-1])
    yield straight, depth, False
    for run in reversed(runs):
        if run is not straight:
            yield run, depth + 1, True


def status_style(status: str) -> str:
    """Return the style of a run's or a call's status."""
    return STATUS_STYLES.get(status, "red")


def format_run_duration(row: RunRow) -> str:
    """Return how long a run took; "" while it is running."""
    return format_duration(row.finished_at - row.started_at if row.finished_at else None)


# one run ------------------------------------------------------------------------------------------


def show_run(writer: ConsoleWriter, run: RecordedRun, agents: Sequence[AgentTree] = ()) -> None:
    """Show everything about a run; `agents` are those that it started."""
    row, report = run.row, run.report
    facts = [
        f"step {row.step}",
        report.status,
        "undone" if UNDONE_FLAG in row.flags else "",
        format_run_duration(row),
        format_time(row.started_at),
        row.id,
    ]
    writer.write_heading(" · ".join(filter(None, facts)), status_style(report.status))
    writer.write_program(run.code)
    show_calls(writer, [call for call in run.calls if call.in_ledger])
    if agents:
        writer.write_line(("  agents", "dim"))
        for line in writer.select_excerpt(list(draw_agents(agents, "    "))):
            writer.write_line(str(line) if isinstance(line, Omission) else line)
    if report.stdout:
        writer.write_block("stdout", report.stdout, "green")
    if report.stderr:
        writer.write_block("stderr", report.stderr, "yellow")
    if report.value is not None:
        title = f"value  {report.value.get('type', '')}"
        writer.write_block(title, format_run_value(report.value))
    if report.error is not None:
        writer.write_block("error", format_run_error(report.error), "red")
    if run.changed or report.removed_files:
        show_files(writer, run.changed, report.removed_files)
    for text in run.damage:
        writer.write_warning(text)
    writer.write_line()


def show_calls(writer: ConsoleWriter, calls: Sequence[RecordedCall]) -> None:
    """List calls with their arguments and how each ended."""
    if calls:
        writer.write_line(("  calls", "dim"))
    for call in writer.select_excerpt(calls):
        if isinstance(call, Omission):
            writer.write_note(f"    {call}")
        else:
            show_call(writer, call)


def show_call(writer: ConsoleWriter, call: RecordedCall) -> None:
    """Show one call and its result."""
    if call.finished_sequence is None:
        status, style, facts = "started", "cyan", "no answer"
    else:
        status = "error" if call.error else "ok"
        style, facts = status_style(status), format_duration(call.duration_ms / 1e3)
        if call.line_number:
            facts += f" · line {call.line_number}"
    columns = writer.width - cell_len(facts) - 8
    text = writer.truncate_line(format_recorded_call(call), columns)
    text = pad_text(text, max(columns, cell_len(text)))
    writer.write_line("    ", (CALL_MARKS[status], style), f" {text}  {facts}")
    if call.finished_sequence is not None:
        outcome = call.summary["outcome"] if call.summary else format_json(call.value)
        if call.error:
            outcome = format_call_error(call.error)
        writer.write_note(f"      → {writer.truncate_line(outcome, writer.width - 8)}")


def draw_agents(agents: Sequence[AgentTree], margin: str) -> Iterator[Text]:
    """Yield a line for each agent, then one for each of its runs with the agents below it."""
    for agent in agents:
        is_last = agent is agents[-1]
        branch = "└─" if is_last else "├─"
        yield assemble_line(f"{margin}{branch} ", (agent.session.id, "bold"))
        inner = f"{margin}{' ' if is_last else '│'}  "
        for row in agent.runs:
            status = pad_text(row.status, STATUS_COLUMNS)
            yield assemble_line(
                f"{inner}step {row.step:<3} ",
                (status, status_style(row.status)),
                f" {format_run_duration(row):>7}  {row.id}",
            )
            yield from draw_agents(agent.agents.get(row.id, ()), f"{inner}  ")


def show_files(
    writer: ConsoleWriter, changed: Mapping[str, FileEntry], removed: Sequence[str]
) -> None:
    """List the files that a run changed, with their sizes, and those that it removed."""
    writer.write_line(("  files", "dim"))
    files = [(path, format_size(entry["size"]), "green") for path, entry in changed.items()]
    files += [(path, "removed", "red") for path in removed]
    for file in writer.select_excerpt(files):
        if isinstance(file, Omission):
            writer.write_note(f"              {file}")
            continue
        path, fact, style = file
        path = writer.truncate_line(path, writer.width - 14)
        writer.write_line("    ", (f"{fact:>8}", style), f"  {path}")


def format_recorded_call(call: RecordedCall) -> str:
    """Return a call of a run in Python's notation, as the ledger shows it."""
    if call.summary is None:
        return presentation.format_stored_call(call.target, call.args, MAX_CALL_CHARS)
    return presentation.format_call(call.target, call.summary["args"], MAX_CALL_CHARS)


def format_json(value: Any) -> str:
    """Return a JSON value as text for people."""
    return json.dumps(value, ensure_ascii=False)


def format_run_value(value: RunValue | None) -> str:
    """Return a run's value as text."""
    if value is None:
        return "(none)"
    return f"{value['text']}{' …' if value['cut'] else ''}"


def format_run_error(error: RunError | None) -> str:
    """Return a run's error as text."""
    if error is None:
        return "(none)"
    return error["traceback"] or f"{error['type']}: {error['message']}"


def format_call_error(error: CallError) -> str:
    """Return a call's error on one line."""
    return f"{error['kind']}: {error['message']}"


# differences --------------------------------------------------------------------------------------


def show_run_diff(writer: ConsoleWriter, diff: RunDiff) -> None:
    """Show how two runs differ."""
    for name, row, style in (("a", diff.a, "red"), ("b", diff.b, "green")):
        started = format_time(row.started_at)
        writer.write_line((name, style), f"  step {row.step} · {row.id} · {started}")
    show_changes(writer, diff)
    if diff.is_equal and diff.damage:
        writer.write_note("  the same: all that can be read")
    elif diff.is_equal:
        writer.write_note("  the same: code, calls, output, value, error and files")
    for text in diff.damage:
        writer.write_warning(text)


def show_changes(writer: ConsoleWriter, diff: RunDiff) -> None:
    """Show only what differs between two runs."""
    _show_change(writer, "status", diff.status, str)
    for name, text in (("code", diff.code), ("stdout", diff.stdout), ("stderr", diff.stderr)):
        if text:
            writer.write_line((f"  {name}", "bold"))
            writer.write_diff(text)
    if diff.calls:
        writer.write_line(("  calls", "bold"))
    for call in writer.select_excerpt(diff.calls):
        if isinstance(call, Omission):
            writer.write_note(f"    {call}")
        else:
            _show_call_change(writer, call)
    _show_change(writer, "value", diff.value, format_run_value)
    _show_change(writer, "error", diff.error, format_run_error)
    show_file_changes(writer, diff.files)


def _show_change(
    writer: ConsoleWriter, name: str, change: ValueChange | None, format_side: Callable[[Any], str]
) -> None:
    if change is not None:
        writer.write_line((f"  {name}", "bold"))
        removed = [f"-{line}" for line in format_side(change.a).split("\n")]
        added = [f"+{line}" for line in format_side(change.b).split("\n")]
        writer.write_diff("\n".join([*removed, *added]))


def _show_call_change(writer: ConsoleWriter, change: CallChange) -> None:
    mark = " "
    if change.b is None:
        mark = "-"
    elif change.a is None:
        mark = "+"
    text = writer.truncate_line(
        presentation.format_stored_call(change.target, change.args, MAX_CALL_CHARS),
        writer.width - 8,
    )
    writer.write_line(f"    {mark} {text}", style=DIFF_STYLES[mark])
    for side, outcome in (("-", change.a), ("+", change.b)):
        if outcome is not None:
            line = f"{side}   → {format_outcome(outcome)}"
            shown = writer.truncate_line(line, writer.width - 6)
            writer.write_line(f"    {shown}", style=DIFF_STYLES[side])


def format_outcome(outcome: DiffOutcome) -> str:
    """Return how a call ended."""
    if outcome["error"]:
        return format_call_error(outcome["error"])
    return "no answer" if outcome["status"] == "started" else format_json(outcome["value"])


def show_file_changes(writer: ConsoleWriter, changes: Sequence[FileChange]) -> None:
    """Show how files differ."""
    if changes:
        writer.write_line(("  files", "bold"))
    for change in writer.select_excerpt(changes):
        if isinstance(change, Omission):
            writer.write_note(f"    {change}")
            continue
        sides = [entry for entry in (change.a, change.b) if entry is not None]
        sizes = " → ".join(format_size(entry["size"]) for entry in sides)
        path = writer.truncate_line(change.path, writer.width - 24)
        writer.write_line("    ", file_change_mark(change), f" {path}  {sizes}")
        if change.text:
            writer.write_diff(change.text, margin="      ")


def file_change_mark(change: FileChange) -> StyledPart:
    """Return the mark of a file that was added, removed or changed."""
    if change.a is None:
        return "+", "green"
    if change.b is None:
        return "-", "red"
    return "~", "yellow"


def show_lineage_diff(writer: ConsoleWriter, diff: LineageDiff) -> None:
    """Show how two lineages differ after the runs that they share."""
    count = len(diff.common)
    writer.write_note(f"{format_count(count, 'step') if count else 'no steps'} in common")
    for step in diff.steps:
        state, style = ("the same", "green") if step.is_equal else ("differs", "yellow")
        heading = f"step {step.a.step} · {step.a.id} → {step.b.id} · {state}"
        writer.write_heading(heading, style)
        show_changes(writer, step)
    for mark, rows in (("-", diff.only_a), ("+", diff.only_b)):
        for row in rows:
            text = f"{mark} step {row.step} · {row.id} · {row.status}"
            writer.write_line(text, style=DIFF_STYLES[mark])
    if diff.files:
        writer.write_heading("workspaces at the tips")
        show_file_changes(writer, diff.files)
    if diff.is_equal and diff.damage:
        writer.write_note("  the same, as far as it can be read")
    elif diff.is_equal:
        writer.write_note("  the same")
    for text in diff.damage:
        writer.write_warning(text)
