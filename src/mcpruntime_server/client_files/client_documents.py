"""A client's file as a document with named servers: reading them, adding one, removing some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from . import json_edits, toml_edits
from .client_kinds import UNKNOWN_KINDS, ClientKind, KeyPath, UserPlaces
from .jsonc_syntax import parse_jsonc

VERSION_2_KEY = "servers"  # in which OpenCode 2 has its servers


@dataclass(frozen=True)
class ServerTable:
    """A table of servers in a file: where it is, and its entries by name."""

    key: KeyPath
    entries: Mapping[str, Any]


def parse_text(kind: ClientKind, text: str, path: Path) -> dict[str, Any]:
    """Return the content of a client's file; raises `ConfigError`, which names the line."""
    if kind.syntax == "toml":
        return toml_edits.parse_toml(text, path)
    content: dict[str, Any] = parse_jsonc(text, path).value
    return content


def find_tables(kind: ClientKind, text: str, path: Path, places: UserPlaces) -> list[ServerTable]:
    """Return the tables of servers in a client's file that apply to the user here."""
    content = parse_text(kind, text, path)
    keys = [server_key(kind, content)]
    if kind.name == "claude-code":  # servers that only one project has
        keys.append(("projects", str(places.folder), *kind.key))
    return [ServerTable(key, entries) for key in keys if (entries := read_table(content, key))]


def server_key(kind: ClientKind, content: Mapping[str, Any]) -> KeyPath:
    """Return where a client's file has its servers."""
    if kind.key == ("mcp",):
        nested = read_table(content, ("mcp", VERSION_2_KEY))
        if nested and "type" not in nested:
            return ("mcp", VERSION_2_KEY)
    return kind.key


def read_table(content: Mapping[str, Any], key: KeyPath) -> Mapping[str, Any]:
    """Return the table at a key; an empty one if there is none."""
    found: Any = content
    for part in key:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def guess_kind(path: Path, text: str) -> ClientKind:
    """Return the form of a file that no known client has; raises `ConfigError`."""
    is_toml = path.suffix == ".toml"
    for kind in UNKNOWN_KINDS:
        if (kind.syntax == "toml") == is_toml:
            content = parse_text(kind, text, path)
            if read_table(content, server_key(kind, content)):
                return kind
    raise ConfigError(
        f"The file {path} names no MCP servers.",
        remedy='Expected is {"mcpServers": {"name": {"command": ...}}}, or the form of a client.',
    )


def set_server(kind: ClientKind, text: str, path: Path, name: str, entry: Mapping[str, Any]) -> str:
    """Return the text of a client's file with a server in it."""
    key = server_key(kind, parse_text(kind, text, path))
    if kind.syntax == "toml":
        return toml_edits.set_table(text, key, name, entry, path)
    return check_json(
        kind, json_edits.set_member(text, key, name, dict(entry), path), path, key, {name: entry}
    )


def remove_servers(
    kind: ClientKind, text: str, path: Path, key: KeyPath, names: Sequence[str]
) -> str:
    """Return the text of a client's file without some servers."""
    if kind.syntax == "toml":
        return toml_edits.remove_tables(text, key, names, path)
    changed = json_edits.remove_members(text, key, names, path)
    return check_json(kind, changed, path, key, dict.fromkeys(names))


def check_json(
    kind: ClientKind, text: str, path: Path, key: KeyPath, wanted: Mapping[str, Any]
) -> str:
    """Return a changed text if it says what was wanted; raises `ConfigError` otherwise."""
    found = read_table(parse_text(kind, text, path), key)
    if all(found.get(name) == entry for name, entry in wanted.items()):
        return text
    raise ConfigError(
        f"The file {path} is written in a way that this program cannot change safely.",
        remedy="Change it by hand. Nothing was changed.",
    )
