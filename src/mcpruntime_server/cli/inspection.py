"""The actions `probe`, `ask` and `variables` of `replay`: look into a step without changing it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from ..config import Config
from ..journal.rows import RunRow, SessionRow
from ..protocol.payloads import JsonObject
from .console import ConsoleWriter, PlainTable
from .journal_access import resolve_run
from .options import full_option, json_option, pass_config, principal_option
from .progress import show_progress
from .signals import run_until_signal
from .terminal_text import print_json
from .time_travel import open_standalone_app

if TYPE_CHECKING:
    from ..protocol.payloads import ShownValue
    from ..runtime.inspector import Inspector, ProbeResult, Variable, VariableList
    from ..runtime.run_report import RunReport

T = TypeVar("T")

VALUE_COLUMNS = 60  # the least that keeps a table of values readable
CHANGE_MARKS = {"added": "+", "changed": "~", "unchanged": " "}


def inspect_run(
    config: Config,
    name: str,
    principal: str,
    look: Callable[[Inspector, RunRow, str], Awaitable[T]],
) -> T:
    """Return what `look` finds out about the run with this name."""

    async def find_and_look() -> T:
        from ..runtime.inspector import Inspector

        async with open_standalone_app(config) as app:
            row = await resolve_run(app.journal, name, principal)
            owner: SessionRow = await app.journal.load_session(row.session_id)
            return await look(Inspector(app.runtime), row, owner.principal)

    with show_progress(f"Replaying {name}"):
        return run_until_signal(find_and_look)


@click.command("probe")
@click.argument("run")
@click.argument("line", type=click.IntRange(min=1))
@click.argument("expression")
@click.option(
    "--from",
    "first_hit",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Count the executions before this one only.",
)
@click.option(
    "--count",
    "max_hits",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="How many values to show.",
)
@principal_option
@json_option
@full_option
@pass_config
def probe_command(
    config: Config,
    *,
    run: str,
    line: int,
    expression: str,
    first_hit: int,
    max_hits: int,
    principal: str,
    as_json: bool,
    show_full: bool,
) -> int:
    """Show EXPRESSION each time that LINE of a finished RUN is about to be executed.

    RUN is a run id (r_...) or SESSION:STEP. It is executed again with recorded answers; nothing
    outside is touched. Exits with 1 if that differs from the recording.
    """

    async def look(inspector: Inspector, row: RunRow, owner: str) -> ProbeResult:
        from ..runtime.inspector import ProbeRequest

        request = ProbeRequest(line, expression, first_hit, max_hits)
        return await inspector.probe(row, owner, request)

    found = inspect_run(config, run, principal, look)
    if as_json:
        print_json(
            {
                "line": found.line,
                "hits": [{"number": hit.number, **hit.value} for hit in found.hits],
                "hit_count": found.hit_count,
                "faithful": found.is_faithful,
                "differences": list(found.differences),
                "divergence": found.divergence,
                "notes": list(found.notes),
            }
        )
    else:
        show_probe(ConsoleWriter(show_full=show_full), found)
    return 0 if found.is_faithful else 1


def show_probe(writer: ConsoleWriter, found: ProbeResult) -> None:
    """Show the values that a probe saw, and whether they can be trusted."""
    table = PlainTable()
    table.add_column(justify="right")
    table.add_column()
    for hit in found.hits:
        table.add_cells(str(hit.number), format_value(hit.value))
    writer.write_table(table, VALUE_COLUMNS)
    if found.hit_count is None:
        writer.write_warning("The interpreter died before the end of the step.")
    elif found.hit_count > len(found.hits):
        times = f"Line {found.line} was executed {found.hit_count:,} times"
        writer.write_note(f"{times}; --from and --count show others.")
    elif not found.hits:
        writer.write_note(f"Line {found.line} was not executed.")
    if found.differences:
        writer.write_warning(f"The replay differs in: {', '.join(found.differences)}.")
    for note in filter(None, [found.divergence, *found.notes]):
        writer.write_warning(note)
    writer.write_footer()


def format_value(value: ShownValue) -> str:
    """Return a shown value on one line."""
    return " ".join(value["text"].split())


@click.command("ask")
@click.argument("run")
@click.argument("code")
@principal_option
@json_option
@full_option
@pass_config
def ask_command(
    config: Config, *, run: str, code: str, principal: str, as_json: bool, show_full: bool
) -> int:
    """Execute CODE in the state after a RUN, which stays as it is; calls are refused.

    RUN is a run id (r_...) or SESSION:STEP. Exits with 1 if the code fails.
    """

    async def look(inspector: Inspector, row: RunRow, owner: str) -> RunReport:
        return await inspector.ask(row, owner, code)

    report = inspect_run(config, run, principal, look)
    if as_json:
        print_json(
            {
                "status": report.status,
                "value": report.value,
                "stdout": report.stdout,
                "stderr": report.stderr,
                "error": report.error,
                "notes": report.notes,
            }
        )
        return 0 if report.status == "ok" else 1
    from . import views

    writer = ConsoleWriter(show_full=show_full)
    for title, text in (
        ("stdout", report.stdout),
        ("stderr", report.stderr),
        ("value", views.format_run_value(report.value) if report.value else ""),
        ("error", views.format_run_error(report.error) if report.error else ""),
    ):
        if text:
            writer.write_block(title, text, "red" if title == "error" else "cyan")
    for note in report.notes:
        writer.write_note(note)
    writer.write_footer()
    return 0 if report.status == "ok" else 1


@click.command("variables")
@click.argument("run")
@principal_option
@json_option
@pass_config
def variables_command(config: Config, *, run: str, principal: str, as_json: bool) -> int:
    """List the variables after a RUN; + is new, ~ has changed in it.

    RUN is a run id (r_...) or SESSION:STEP.
    """

    async def look(inspector: Inspector, row: RunRow, owner: str) -> VariableList:
        return await inspector.list_variables(row, owner)

    found = inspect_run(config, run, principal, look)
    if as_json:
        print_json(
            {
                "variables": [serialize_variable(each) for each in found.variables],
                "removed": list(found.removed),
                "notes": list(found.notes),
            }
        )
        return 0
    writer = ConsoleWriter()
    table = PlainTable()
    for _ in range(4):
        table.add_column()
    for each in found.variables:
        table.add_cells(
            f"{CHANGE_MARKS[each.change]} {each.name}",
            each.value["type"],
            describe_size(each),
            format_value(each.value),
        )
    for name in found.removed:
        table.add_cells(f"- {name}", "", "", "")
    writer.write_table(table, VALUE_COLUMNS)
    for note in found.notes:
        writer.write_note(note)
    return 0


def describe_size(variable: Variable) -> str:
    """Return the shape of a variable, or its number of items; "" if it has none."""
    if variable.shape is not None:
        return " x ".join(f"{each:,}" for each in variable.shape)
    return "" if variable.length is None else f"{variable.length:,}"


def serialize_variable(variable: Variable) -> JsonObject:
    """Return a variable as JSON data."""
    return {
        "name": variable.name,
        "value": dict(variable.value),
        "length": variable.length,
        "shape": variable.shape and list(variable.shape),
        "change": variable.change,
    }
