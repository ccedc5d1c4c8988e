"""Change tables of a TOML document, and nothing else of its text.

A new table is text at the end of the document. Only where that is not possible, because its parent
is written on one line, does tomlkit change the document. Every result is read again and compared
with what it should be, because a wrong text would be somebody else's broken settings.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from ..config.diagnostics import iter_leaves, next_statement
from ..errors import ConfigError

TomlPath = Sequence[str]


def parse_toml(text: str, where: object) -> dict[str, Any]:
    """Return a document; raises `ConfigError`, which names the line."""
    try:
        return tomllib.loads(text.replace("\r\n", "\n"))
    except (ValueError, RecursionError) as exc:  # also for an integer of thousands of digits
        raise ConfigError(
            f"The file {where} is not TOML: {exc}.", remedy="Correct it. Nothing was changed."
        ) from exc


def set_table(text: str, path: TomlPath, name: str, value: Mapping[str, Any], where: object) -> str:
    """Return the text with `value` as the table `name` in the table at `path`.

    Raises `ConfigError` if something else than a table is there.
    """
    wanted = parse_toml(text, where)
    parent = wanted
    for key in path:
        parent = parent.setdefault(key, {})
        if not isinstance(parent, dict):
            raise ConfigError(
                f"The file {where} has no table as {'.'.join(path)!r}.",
                remedy="Correct it. Nothing was changed.",
            )
    is_new = name not in parent
    parent[name] = dict(value)
    if is_new and parses_as(found := append_table(text, path, name, value), wanted):
        return found
    return check_result(edit_with_tomlkit(text, path, {name: value}), wanted, where)


def set_value(text: str, path: TomlPath, name: str, value: Any, where: object) -> str:
    """Return the text with a value, which is not a table, in the table at `path`."""
    wanted = parse_toml(text, where)
    parent = wanted
    for key in path:
        parent = parent.setdefault(key, {})
    parent[name] = value
    return check_result(edit_with_tomlkit(text, path, {name: value}), wanted, where)


def remove_tables(text: str, path: TomlPath, names: Sequence[str], where: object) -> str:
    """Return the text without some tables of the table at `path`; absent ones are ignored."""
    wanted = parse_toml(text, where)
    parent: Any = wanted
    for key in path:
        parent = parent.get(key, {}) if isinstance(parent, dict) else {}
    present = [name for name in names if name in parent]
    if not present:
        return text
    for name in present:
        del parent[name]
    # A table that is empty now may be left as a header, or not at all.
    for remove in (cut_tables, cut_members):
        changed = remove(text, path, present)
        if parses_as(changed, wanted, ignores_empty=not parent):
            return changed
    return check_result("", wanted, where)


def cut_tables(text: str, path: TomlPath, names: Sequence[str]) -> str:
    """Return the text without the lines of some tables; comments behind a table stay.

    They mostly belong to what follows, and tomlkit would remove them with the table.
    """
    doomed = {(*path, name) for name in names}
    lines = text.split("\n")
    plain = [line.removesuffix("\r") for line in lines]
    kept: list[str] = []
    pending: list[str] = []  # lines without a statement
    table: tuple[str | int, ...] = ()
    start, is_cutting = 0, False
    while start < len(lines):
        end, statement = next_statement(plain, start)
        block, start = lines[start:end], end
        if not statement:
            pending += block
            continue
        keys = [key for key, _ in iter_leaves(statement)]
        if block[0].lstrip().startswith("["):
            table, keys = keys[0], [()]
        was_cutting = is_cutting
        is_cutting = (*table, *keys[0])[: len(path) + 1] in doomed
        if not is_cutting:
            kept += [*pending, *block]
        elif not was_cutting:
            kept += strip_blank_end(pending)
        pending = []
    return "\n".join([*kept, *pending])


def strip_blank_end(lines: Sequence[str]) -> list[str]:
    """Return lines without the empty ones at their end."""
    count = len(lines)
    while count and not lines[count - 1].strip():
        count -= 1
    return [*lines[:count]]


def cut_members(text: str, path: TomlPath, names: Sequence[str]) -> str:
    """Return the text without some members of a table that is written on one line."""
    return edit_with_tomlkit(text, path, dict.fromkeys(names))


def drop_empty_tables(value: Any) -> Any:
    """Return a document without its empty tables."""
    if not isinstance(value, Mapping):
        return value
    kept = {name: drop_empty_tables(item) for name, item in value.items()}
    return {name: item for name, item in kept.items() if item != {}}


def append_table(text: str, path: TomlPath, name: str, value: Mapping[str, Any]) -> str:
    """Return the text with a table at its end."""
    newline = "\r\n" if "\r\n" in text else "\n"
    nested: dict[str, Any] = {name: value}
    for key in reversed(path):
        nested = {key: nested}
    lines = tomli_w.dumps(nested).strip("\n").replace("\n", newline)
    gap = "" if not text else newline * (1 if text.endswith("\n") else 2)
    return f"{text}{gap}{lines}{newline}"


def edit_with_tomlkit(text: str, path: TomlPath, values: Mapping[str, Any]) -> str:
    """Return the text with members of a table set, or removed where the value is None."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        parent: Any = document
        for key in path:
            if key not in parent:
                parent[key] = tomlkit.table()
            parent = parent[key]
        for name, value in values.items():
            if value is None:
                del parent[name]
            else:
                parent[name] = value
        return tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError):  # `check_result` refuses what cannot be edited
        return ""


def parses_as(text: str, wanted: Mapping[str, Any], *, ignores_empty: bool = False) -> bool:
    """Return whether a text is a TOML document with this content."""
    try:
        found = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError:
        return False
    if ignores_empty:
        return bool(drop_empty_tables(found) == drop_empty_tables(wanted))
    return found == wanted


def check_result(text: str, wanted: Mapping[str, Any], where: object) -> str:
    """Return the text if it is what was wanted; raises `ConfigError` otherwise."""
    if text and parses_as(text, wanted):
        return text
    raise ConfigError(
        f"The tables of {where} are written in a way that this program cannot change safely.",
        remedy="Change the file by hand. Nothing was changed.",
    )
