"""Take over the servers of a client: what would change, and the change itself.

The settings are written first, then the client's file: whatever happens in between, no server is
lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import UpstreamSettings
from ..config.interpolation import VARIABLE_REFERENCE, interpolate_upstream
from .client_documents import find_tables, parse_text, read_table, remove_servers
from .client_kinds import ClientKind, KeyPath, UserPlaces
from .secret_variables import VariableNames, hide_secrets
from .server_entries import (
    TranslatedServer,
    UnusableEntry,
    is_own_entry,
    translate_entry,
)
from .text_files import TextFile, back_up, check_writable, edit_text_file
from .toml_edits import parse_toml, set_table, set_value
from .variable_references import write_reference

SERVERS_KEY = ("mcpServers",)
RULES_KEY = ("policy", "tools")
NameTool = Callable[[str, str], str]  # the rule of [policy.tools] for a server and a tool, or "*"


@dataclass(frozen=True)
class PlannedServer:
    """A server that can be taken over; `entry` refers to variables, `settings` has their values."""

    source: TranslatedServer
    entry: Mapping[str, Any]
    settings: UpstreamSettings | None  # None if a value is not known
    unknown: tuple[str, ...]  # variables whose values are not known here
    is_present: bool  # the settings have it already

    @property
    def name(self) -> str:
        """Its name."""
        return self.source.name

    @property
    def variables(self) -> list[str]:
        """The variables that must be set for it."""
        return find_variables(self.entry)


@dataclass
class ImportPlan:
    """What is taken over from one file."""

    kind: ClientKind
    file: TextFile
    servers: list[PlannedServer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # the reasons, by server
    secrets: dict[str, str] = field(default_factory=dict)  # by the variable that they became
    owners: dict[str, str] = field(default_factory=dict)  # the server of each of these variables

    @property
    def new_servers(self) -> list[PlannedServer]:
        """Those that the settings do not have."""
        return [server for server in self.servers if not server.is_present]

    def select(self, names: Collection[str]) -> None:
        """Leave only the servers of some names."""
        self.servers = [server for server in self.servers if server.name in names]
        self.skipped = {name: why for name, why in self.skipped.items() if name in names}
        needed = {name for server in self.servers for name in server.variables}
        self.secrets = {name: value for name, value in self.secrets.items() if name in needed}

    def list_unset(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that must be set, each with the server that needs it."""
        unset = {
            name: self.owners[name]
            for name, value in self.secrets.items()
            if environ.get(name) != value
        }
        return unset | {name: server.name for server in self.servers for name in server.unknown}

    def client_variables(self) -> dict[str, str]:
        """Return the variables as the client can pass them: values, or its own references."""
        variables = dict(self.secrets)
        for server in self.servers:
            for name in server.unknown:
                if reference := write_reference(self.kind.references, name, self.file.text):
                    variables[name] = reference
        return variables


def plan_import(
    kind: ClientKind,
    file: TextFile,
    settings_text: str,
    settings_path: Path,
    places: UserPlaces,
) -> ImportPlan:
    """Return what would be taken over; raises `ConfigError` for a broken file."""
    plan = ImportPlan(kind, file)
    present = parse_toml(settings_text, settings_path).get("mcpServers", {})
    names = VariableNames(dict(places.environ))
    known = {"userHome": str(places.home), "/": "/", "pathSeparator": "/"}
    for table in find_tables(kind, file.text, file.path, places):
        for name, entry in table.entries.items():
            if is_own_entry(entry):
                continue
            try:
                if name in (server.name for server in plan.servers):
                    raise UnusableEntry("another server of the file has its name")
                source = translate_entry(kind, table.key, name, entry, known)
                plan.servers.append(plan_server(source, names, present))
            except UnusableEntry as reason:
                plan.skipped[name] = str(reason)
    plan.secrets, plan.owners = names.found, names.servers
    return plan


def plan_server(
    source: TranslatedServer, names: VariableNames, present: Mapping[str, Any]
) -> PlannedServer:
    """Return one server with its credentials hidden; raises `UnusableEntry`."""
    entry = hide_secrets(source.name, source.entry, names)
    referenced = find_variables(entry)
    unknown = tuple(name for name in referenced if name not in names.values)
    values = {**names.values, **dict.fromkeys(unknown, "unknown")}
    problems: list[str] = []
    filled = interpolate_upstream(
        source.name, {**entry, "disabled": False}, values, lambda _, text: problems.append(text)
    )
    try:
        settings = UpstreamSettings.from_mapping(filled)
        settings = replace(settings, disabled=entry.get("disabled", False))
    except ValueError as exc:
        problems.append(str(exc))
    if problems:
        raise UnusableEntry(" ".join(problems))
    is_present = source.name in present
    if is_present and without_defaults(present[source.name]) != without_defaults(entry):
        raise UnusableEntry("the settings have another server of this name")
    return PlannedServer(source, entry, None if unknown else settings, unknown, is_present)


def without_defaults(entry: Any) -> Any:
    """Return an entry without what says nothing."""
    if not isinstance(entry, Mapping):
        return entry
    return {name: value for name, value in entry.items() if value not in ({}, [], False)}


def find_variables(value: Any) -> list[str]:
    """Return the names of the variables that must be set for a value, in order."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return list(dict.fromkeys(name for each in value for name in find_variables(each)))
    if not isinstance(value, str):
        return []
    found = VARIABLE_REFERENCE.finditer(value)
    return [each["name"] for each in found if each["name"] and each["default"] is None]


def add_servers(plan: ImportPlan, text: str, path: Path, name_tool: NameTool) -> str:
    """Return the text of the settings with the new servers of a plan in it."""
    for server in plan.new_servers:
        text = set_table(text, SERVERS_KEY, server.name, server.entry, path)
    present = parse_toml(text, path).get("policy", {}).get("tools", {})
    for rule, verdict in list_rules(plan, name_tool).items():
        if rule not in present:
            text = set_value(text, RULES_KEY, rule, verdict, path)
    return text


def list_rules(plan: ImportPlan, name_tool: NameTool) -> dict[str, str]:
    """Return the rules that keep tools away from code which the client keeps from its model."""
    rules: dict[str, str] = {}
    for server in plan.new_servers:
        source = server.source
        if source.allowed_tools:
            rules[name_tool(source.name, "*")] = "deny"
            rules |= {name_tool(source.name, tool): "ask" for tool in source.allowed_tools}
        rules |= {name_tool(source.name, tool): "deny" for tool in source.denied_tools}
    return rules


def remove_from_client(plan: ImportPlan) -> Path:
    """Remove the servers of a plan from the client's file; return the backup made before.

    An entry that has changed since it was read stays.
    """
    check_writable(plan.file)
    backup = back_up(plan.file)
    edit_text_file(plan.file.path, lambda file: without_servers(plan, file))
    return backup


def without_servers(plan: ImportPlan, file: TextFile) -> str:
    """Return the text of a client's file without the servers of a plan that it has unchanged."""
    text = file.text
    then = parse_text(plan.kind, plan.file.text, file.path)
    now = parse_text(plan.kind, text, file.path)
    keys: dict[KeyPath, list[str]] = {}
    for server in plan.servers:
        key, name = server.source.key, server.name
        if read_table(now, key).get(name) == read_table(then, key).get(name):
            keys.setdefault(key, []).append(name)
    for key, names in keys.items():
        text = remove_servers(plan.kind, text, file.path, key, names)
    return text
