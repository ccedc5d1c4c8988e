"""Translate the entries of clients into entries of `mcpServers`, and this server into theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import APP_NAME
from .client_kinds import ClientKind, KeyPath
from .variable_references import (
    UnknownReference,
    has_references,
    remove_references,
    translate_references,
)

URL_KEYS = ("url", "httpUrl", "serverUrl")
OFF_KEYS = (("disabled", True), ("enabled", False))
DENIED_KEYS = ("disabledTools", "excludeTools", "disabled_tools")
ALLOWED_KEYS = ("includeTools", "enabled_tools")
TRANSPORT_KEYS = ("type", "transport", "source")
COMMAND_KEYS = ("command", "args", "env", "environment", "env_vars", "cwd")
HEADER_KEYS = ("headers", "http_headers", "env_http_headers", "bearer_token_env_var")
TIME_KEYS = (("timeout_s", 1.0), ("tool_timeout_sec", 1.0), ("timeout", 0.001))  # and their units
USED_KEYS = frozenset(
    (
        *(*COMMAND_KEYS, *HEADER_KEYS, *URL_KEYS, *TRANSPORT_KEYS, *DENIED_KEYS, *ALLOWED_KEYS),
        *(name for name, _ in TIME_KEYS),
        *("settings", "credentials", "disabled", "enabled"),
    )
)
MAX_VALUES = 1_000  # arguments, variables or headers of one server


class UnusableEntry(Exception):
    """An entry that this program cannot take over; the argument is the reason."""


@dataclass(frozen=True)
class TranslatedServer:
    """One server of a client, as an entry of `mcpServers`."""

    name: str
    key: KeyPath  # of the table that it is in
    entry: dict[str, Any]
    denied_tools: tuple[str, ...] = ()
    allowed_tools: tuple[str, ...] = ()  # if there are any, all others are denied
    ignored_keys: tuple[str, ...] = ()


def translate_entry(
    kind: ClientKind, key: KeyPath, name: str, entry: Any, known: Mapping[str, str]
) -> TranslatedServer:
    """Return a client's entry as one of this program; raises `UnusableEntry`."""
    if not isinstance(entry, Mapping):
        raise UnusableEntry("it is no table")
    texts = ReferenceTranslator(kind, known)
    found: dict[str, Any] = {}
    if entry.get("type") == "sse" or entry.get("transport") == "sse":
        raise UnusableEntry("it speaks SSE; this program speaks streamable HTTP and stdio")
    url = next((entry[each] for each in URL_KEYS if entry.get(each)), None)
    if entry.get("command"):
        found |= translate_command(entry, texts)
    elif url is not None:
        found["url"] = texts.translate(expect_text(url, "url"))
        if headers := translate_headers(entry, texts):
            found["headers"] = headers
    elif "settings" in entry:
        raise UnusableEntry(f"an extension of {kind.title} starts it")
    else:
        raise UnusableEntry("it has neither a command nor a url")
    timeout_s = find_timeout_s(entry)
    if timeout_s:
        found["timeout_s"] = timeout_s
    if entry.get("credentials") == "per-principal":
        found["credentials"] = "per-principal"
    if any(entry.get(each) is value for each, value in OFF_KEYS):
        found["disabled"] = True
    return TranslatedServer(
        name,
        key,
        found,
        denied_tools=tuple(iterate_names(entry, DENIED_KEYS)),
        allowed_tools=tuple(iterate_names(entry, ALLOWED_KEYS)),
        ignored_keys=tuple(sorted(str(each) for each in entry if each not in USED_KEYS)),
    )


class ReferenceTranslator:
    """Translates the references in the texts of one entry."""

    def __init__(self, kind: ClientKind, known: Mapping[str, str]) -> None:
        self._kind = kind
        self._known = known

    def translate(self, text: str) -> str:
        """Return a text with this program's references; raises `UnusableEntry`."""
        try:
            return translate_references(text, self._kind.references, self._known)
        except UnknownReference as exc:
            raise UnusableEntry(f"it uses {exc}, which only {self._kind.title} knows") from exc


def expect_text(value: Any, name: str) -> str:
    """Return a value that is text; raises `UnusableEntry`."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UnusableEntry(f"its {name} is no text")


def translate_command(entry: Mapping[str, Any], texts: ReferenceTranslator) -> dict[str, Any]:
    """Return the fields of a stdio server."""
    if isinstance(entry["command"], Mapping):  # of an older Zed
        entry = {**entry["command"], "command": entry["command"].get("path")}
    command: Any = entry["command"]
    more = entry.get("args") or []
    if not isinstance(more, list) or len(more) > MAX_VALUES:
        raise UnusableEntry("its args are no list")
    if isinstance(command, list):
        command, more = (command[0] if command else ""), [*command[1:], *more]
    found: dict[str, Any] = {"command": texts.translate(expect_text(command, "command"))}
    if more:
        found["args"] = [texts.translate(expect_text(each, "args")) for each in more]
    env = {
        name: texts.translate(expect_text(value, f"variable {name!r:.60}"))
        for field_name in ("env", "environment")
        for name, value in read_fields(entry, field_name)
    }
    for each in entry.get("env_vars") or []:  # those that Codex passes on
        name = each.get("name") if isinstance(each, Mapping) else each
        env.setdefault(expect_text(name, "env_vars"), f"${{{name}}}")
    if env:
        found["env"] = env
    if entry.get("cwd"):
        found["cwd"] = expect_folder(texts.translate(expect_text(entry["cwd"], "cwd")))
    return found


def expect_folder(text: str) -> str:
    """Return a folder, in which this program knows no variables; raises `UnusableEntry`."""
    if has_references(text):
        raise UnusableEntry("its cwd has a variable in it")
    return remove_references(text)


def translate_headers(entry: Mapping[str, Any], texts: ReferenceTranslator) -> dict[str, str]:
    """Return the headers of an HTTP server."""
    headers = {
        name: texts.translate(expect_text(value, f"header {name!r:.60}"))
        for field_name in ("headers", "http_headers")
        for name, value in read_fields(entry, field_name)
    }
    for name, variable in read_fields(entry, "env_http_headers"):
        headers[name] = f"${{{expect_text(variable, 'env_http_headers')}}}"
    if variable := entry.get("bearer_token_env_var"):
        headers["Authorization"] = f"Bearer ${{{expect_text(variable, 'bearer_token_env_var')}}}"
    return headers


def read_fields(entry: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    """Return the fields of a table in an entry; raises `UnusableEntry` if it is no table."""
    table = entry.get(name) or {}
    if not isinstance(table, Mapping) or len(table) > MAX_VALUES:
        raise UnusableEntry(f"its {name} is no table")
    return [(str(each), value) for each, value in table.items() if value is not None]


def find_timeout_s(entry: Mapping[str, Any]) -> float | None:
    """Return how long one call may take, if the entry says so; clients count milliseconds."""
    for name, unit_s in TIME_KEYS:
        value = entry.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value * unit_s)
    return None


def iterate_names(entry: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """Yield the names in some lists of an entry."""
    for key in keys:
        value = entry.get(key)
        if isinstance(value, list):
            yield from (each for each in value[:MAX_VALUES] if isinstance(each, str))


def read_command(entry: Any) -> list[str]:
    """Return the words of the command in a client's entry; none if it has no command."""
    if not isinstance(entry, Mapping):
        return []
    command, more = entry.get("command"), entry.get("args")
    words = [
        *(command if isinstance(command, list) else [command]),
        *(more if isinstance(more, list) else []),
    ]
    return [word for word in words if isinstance(word, str)]


def is_own_entry(entry: Any) -> bool:
    """Return whether an entry of a client starts this program."""
    names = {Path(word).name.removesuffix(".exe") for word in read_command(entry)}
    return APP_NAME in names


def make_own_entry(
    kind: ClientKind, key: KeyPath, command: Sequence[str], env: Mapping[str, str]
) -> dict[str, Any]:
    """Return the entry with which a client starts this program."""
    program, *arguments = command
    variables = {"env": dict(env)} if env else {}
    if kind.name == "opencode":
        entry: dict[str, Any] = {"type": "local", "command": [*command]}
        if key == kind.key:  # OpenCode 2 has no `enabled`
            entry["enabled"] = True
        return {**entry, **({"environment": dict(env)} if env else {})}
    stdio = {"type": "stdio"} if kind.name in ("claude-code", "vscode") else {}
    return {**stdio, "command": program, "args": arguments, **variables}
