"""Where a setting was given, for messages about it, and what its author may have meant."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

MAX_COMPARED_CHARS = 100  # of a name that may be a misspelled one

SettingKey = tuple[str | int, ...]  # where a setting is in the tree: ("sandbox", "memory_mb")
ReportProblem = Callable[[SettingKey, str], None]  # the key, and the rest of a sentence about it

T = TypeVar("T")


class SettingLocations:
    """Finds where each setting was given: in the file, by a variable or by a flag."""

    def __init__(self, file: Path | None, text: str, origins: Mapping[SettingKey, str]) -> None:
        self._file = file
        self._text = text
        self._origins = origins

    def label(self, key: SettingKey) -> str:
        """Return where a setting was given, and its name: `server.toml, line 3: sandbox.pids`."""
        if self._file is None and not self._origins:
            return dotted_key(key)
        return f"{self._locate(key)}: {dotted_key(key)}"

    def _locate(self, key: SettingKey) -> str:
        origin = _nearest_ancestor(self._origins, key, "")
        origin = origin or find_table_origin(self._origins, key) or "file"
        if origin == "file":
            return f"{self._file}, line {_nearest_ancestor(find_key_lines(self._text), key, 1)}"
        return origin


def _nearest_ancestor(known: Mapping[SettingKey, T], key: SettingKey, default: T) -> T:
    """Return what is known of `key`, or else of the innermost table around it."""
    for end in range(len(key), 0, -1):
        if key[:end] in known:
            return known[key[:end]]
    return default


def find_table_origin(origins: Mapping[SettingKey, str], key: SettingKey) -> str | None:
    """Return the origin of the setting `key`, or of the first setting in the table `key`."""
    return next((origin for at, origin in origins.items() if at[: len(key)] == key), None)


def suggest_names(name: str, allowed: Iterable[str]) -> str:
    """Return a sentence, with a space before it, that names what `name` may have meant."""
    choices = list(allowed)
    is_comparable = len(name) <= MAX_COMPARED_CHARS  # a stranger's name may be very long
    close = get_close_matches(name, choices, n=1, cutoff=0.6) if is_comparable else []
    return f" Did you mean {close[0]}?" if close else f" Allowed are: {', '.join(choices)}."


def iter_leaves(tree: Mapping[str, Any], key: SettingKey = ()) -> Iterator[tuple[SettingKey, Any]]:
    """Yield the key and the value of everything that is not a table, and of every empty table."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from iter_leaves(value, (*key, name))
        else:
            yield (*key, name), value


def dotted_key(key: SettingKey) -> str:
    """Return a key as TOML writes it."""
    return ".".join(tomli_w.dumps({str(part): 0}).removesuffix(" = 0\n") for part in key)


def find_key_lines(text: str) -> dict[SettingKey, int]:
    """Return the line of every table and key of a valid TOML document.

    A statement is the shortest run of lines that is a document by itself, so this needs no
    grammar of its own.
    """
    lines = text.split("\n")
    found: dict[SettingKey, int] = {}
    table: SettingKey = ()
    start = 0
    while start < len(lines):
        end, statement = next_statement(lines, start)
        keys = [key for key, _ in iter_leaves(statement)]
        if lines[start].lstrip().startswith("["):
            table, keys = keys[0], [()]
        for key in keys:
            whole = (*table, *key)
            for depth in range(len(whole)):
                found.setdefault(whole[: depth + 1], start + 1)
        start = end
    return found


def next_statement(lines: list[str], start: int) -> tuple[int, dict[str, Any]]:
    """Return the line after the statement that begins at `start`, and its content."""
    for end in range(start + 1, len(lines) + 1):
        try:
            return end, tomllib.loads("\n".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
    return len(lines), {}
