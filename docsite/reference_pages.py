"""The parts of the documentation that are generated from the code.

Each function returns Markdown. The docs build puts it in the place of `<!-- generated: NAME -->`,
so that no page can be older than the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import click
from prometheus_client import CollectorRegistry

from mcpruntime_server import APP_NAME, errors
from mcpruntime_server.cli.command_line import command_line
from mcpruntime_server.sandboxed.library import input_source, models, skills, tools
from mcpruntime_server.service.metrics import (
    PREFIX,
    FigureSources,
    RuntimeMetrics,
    ServerFigures,
    sample_loop_lag,
)

ROOT = Path(__file__).parents[1]
SETTINGS_FILE = ROOT / "server.toml"
MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
TABLE_LINE = re.compile(r"^(?P<comment># )?\[(?P<name>[\w.]+)\]\s*(?:#\s*(?P<note>.*))?$")
SETTING_LINE = re.compile(
    r"^(?P<comment># )?(?P<name>[a-z_]+) = "
    r'(?P<default>"(?:[^"\\]|\\.)*"|\[[^]]*\]|\{.*?\}(?=\s*(?:#|$))|[^\s#]+)\s*(?:#\s*(?P<reason>.*))?$'
)
CONTINUED_LINE = re.compile(r"^(?:\s+#|#\s{4,})\s*(?P<reason>\S.*)$")


def fill_marks(text: str) -> str:
    """Return a page with the generated parts in the place of their marks."""
    return MARK.sub(lambda found: GENERATORS[found[1]](), text)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escape_cell(text: str) -> str:
    """Return a text that can stand in a cell of a table, as one line."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# settings -----------------------------------------------------------------------------------------


@dataclass
class ListedSetting:
    """A line of `server.toml`, with the comment beside it."""

    table: str
    name: str
    default: str
    reason: str

    @property
    def variable(self) -> str:
        """The environment variable that overrides it; "" if its table has a name of the user's."""
        if "NAME" in self.table:
            return ""
        return f"MCPRUNTIME_{self.table.replace('.', '__').upper()}__{self.name.upper()}"


def list_settings() -> dict[str, tuple[str, list[ListedSetting]]]:
    """Return the note and the settings of each table of `server.toml`.

    Entries of the user's own, such as `[mcpServers.time]`, are one table: `mcpServers.NAME`.
    """
    tables: dict[str, tuple[str, list[ListedSetting]]] = {}
    table = ""
    for line in SETTINGS_FILE.read_text("utf-8").splitlines():
        if found := TABLE_LINE.match(line):
            table = re.sub(r"^(mcpServers|knowledge)\..*", r"\1.NAME", found["name"])
            tables.setdefault(table, (found["note"] or "", []))
        elif (found := SETTING_LINE.match(line)) and table:
            listed = tables[table][1]
            if found["name"] not in [each.name for each in listed]:
                setting = (table, found["name"], found["default"], found["reason"] or "")
                listed.append(ListedSetting(*setting))
        elif (found := CONTINUED_LINE.match(line)) and table and tables[table][1]:
            tables[table][1][-1].reason += f" {found['reason']}"
    return tables


def render_settings() -> str:
    """Return all settings, a table for each table of the settings file."""
    parts = []
    for table, (note, settings) in list_settings().items():
        is_entry = "NAME" in table
        rows = [
            [
                f"`{each.name}`",
                f"`{escape_cell(each.default)}`",
                escape_cell(each.reason),
            ]
            for each in settings
        ]
        header = ("key", "example or default" if is_entry else "default", "meaning")
        intro = f"{note[:1].upper()}{note[1:]}.\n\n" if note else ""
        variable = "" if is_entry else f"Variables: `{settings[0].variable}` and so on.\n\n"
        parts.append(f"## `[{table}]`\n\n{intro}{variable}{format_table(header, rows)}")
    return "\n".join(parts)


# command line -------------------------------------------------------------------------------------


def walk_commands(
    command: click.Command = command_line, parent: click.Context | None = None
) -> Iterator[tuple[click.Context, click.Command]]:
    """Yield each command with its context, groups before what they contain."""
    name = APP_NAME if parent is None else command.name
    context = click.Context(command, info_name=name, parent=parent)
    yield context, command
    if isinstance(command, click.Group):
        for child in sorted(command.list_commands(context)):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from walk_commands(found, context)


def render_commands() -> str:
    """Return all commands with their arguments and options."""
    parts = []
    for context, command in walk_commands():
        depth = len(context.command_path.split())
        name = context.command_path.partition(" ")[2] or context.command_path
        title = f"{'#' * min(depth + 1, 4)} `{name}`\n"
        usage = " ".join(command.collect_usage_pieces(context))
        parts += [title, f"```text\n{context.command_path} {usage}\n```\n"]
        parts.append(format_help(command.help or command.short_help or ""))
        rows = [
            [f"`{escape_cell(names)}`", escape_cell(text)]
            for names, text in list_options(context, command)
        ]
        if rows:
            parts.append(format_table(("option", "meaning"), rows))
    return "\n".join(parts)


def format_help(text: str) -> str:
    """Return the help text of a command as Markdown paragraphs."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\b", "").strip())
    return "\n\n".join(escape_cell(each).replace("\\|", "|") for each in paragraphs) + "\n"


def list_options(context: click.Context, command: click.Command) -> list[tuple[str, str]]:
    """Return the names and the meaning of each option, without `--help`."""
    records = [each.get_help_record(context) for each in command.params]
    return [record for record in records if record is not None and record[1]]


# errors -------------------------------------------------------------------------------------------


def list_error_classes() -> list[type[errors.McpRuntimeError]]:
    """Return all classes of errors, each once, in the order of their definition."""
    found: list[type[errors.McpRuntimeError]] = []
    queue = list(errors.McpRuntimeError.__subclasses__())
    while queue:
        each = queue.pop(0)
        found.append(each)
        queue += each.__subclasses__()
    return found


def render_errors() -> str:
    """Return all error codes with their statuses and meanings."""
    by_code: dict[str, list[type[errors.McpRuntimeError]]] = {}
    for each in list_error_classes():
        by_code.setdefault(each.code, []).append(each)
    rows = []
    for code, classes in sorted(by_code.items()):
        summary = (classes[0].__doc__ or "").partition("\n\n")[0]
        statuses = " or ".join(dict.fromkeys(str(each.http_status) for each in classes))
        rows.append([f"`{code}`", escape_cell(summary), statuses, str(classes[0].exit_code)])
    return format_table(("code", "meaning", "HTTP status", "exit code"), rows)


def render_exceptions() -> str:
    """Return the exceptions that sandboxed code gets."""
    rows = []
    for module in (tools, models, input_source, skills):
        for each in vars(module).values():
            if is_public_exception(each):
                home = "" if each.__module__ == "__main__" else f"{each.__module__}."
                summary = (each.__doc__ or "").partition("\n\n")[0]
                rows.append([f"`{home}{each.__name__}`", escape_cell(summary)])
    return format_table(("exception", "meaning"), rows)


def is_public_exception(value: Any) -> bool:
    """Return whether a value of a module is an exception that code can catch by a name."""
    is_exception = isinstance(value, type) and issubclass(value, Exception)
    return is_exception and not value.__module__.startswith(("mcpruntime_server", "builtins"))


# metrics ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListedMetric:
    """One metric as a scraper sees it."""

    name: str
    kind: str
    labels: Sequence[str]
    meaning: str


def list_metrics() -> list[ListedMetric]:
    """Return all metrics of the runtime, those of the process left out."""
    registry = CollectorRegistry()
    RuntimeMetrics(registry, lambda target: ("", ""))
    families = anyio.run(collect_families, registry)
    listed = [
        ListedMetric(name, family.type, find_labels(registry, family), family.documentation)
        for family in families
        for name in [f"{family.name}_total" if family.type == "counter" else family.name]
    ]
    return sorted(listed, key=lambda each: each.name)


async def collect_families(registry: CollectorRegistry) -> list[Any]:
    """Return what a registry has, with the figures that are asked for and the event loop's lag."""

    async def find_no_problem() -> list[Any]:
        return []

    def count_one() -> Mapping[str, int]:
        return {"": 1}

    sources = FigureSources(
        count_one, count_one, count_one, count_one, count_one, find_no_problem, ROOT
    )
    figures = ServerFigures(sources)
    await figures.refresh()
    with anyio.move_on_after(0):
        await sample_loop_lag(registry)
    return [*registry.collect(), *figures.collect()]


def find_labels(registry: CollectorRegistry, family: Any) -> Sequence[str]:
    """Return the names of the labels of a family, which may have no value yet."""
    for collector, names in registry._collector_to_names.items():
        if family.name in names:
            return tuple(getattr(collector, "_labelnames", ()))
    if family.samples:
        return tuple(family.samples[0].labels)
    return tuple(family._labelnames)


def render_metrics() -> str:
    """Return all metrics with their types and labels."""
    rows = [
        [
            f"`{each.name}`",
            each.kind,
            ", ".join(f"`{label}`" for label in each.labels) or "-",
            escape_cell(each.meaning),
        ]
        for each in list_metrics()
        if each.name.startswith(PREFIX)
    ]
    return format_table(("metric", "type", "labels", "meaning"), rows)


GENERATORS: Mapping[str, Callable[[], str]] = {
    "settings": render_settings,
    "command-line": render_commands,
    "error-codes": render_errors,
    "exceptions": render_exceptions,
    "metrics": render_metrics,
}
