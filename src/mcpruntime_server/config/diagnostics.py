"""Where a setting was given, what is wrong with it, and what would be right, in words.

A value that may be a secret is never repeated.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from .interpolation import INTERPOLATED_FIELDS
from .models import SETTINGS_TABLES, Config, KnowledgeSettings, SettingKey, SettingsTable

T = TypeVar("T")

EXPECTED_BY_ERROR = {
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than_equal": "a number of at most {le}",
    "finite_number": "a finite number",
    "literal_error": "one of {expected}",
    "string_type": "text in quotes",
    "path_type": "a path in quotes",
    "tuple_type": "a list: [...]",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    **dict.fromkeys(("model_type", "mapping_type", "dict_type"), "a table"),
}

SECRET_KEYS = (("llm", "api_key"), ("llm", "api_base"))


class SettingLocations:
    """Knows where each setting was given."""

    def __init__(self, file: Path | None, text: str, origins: Mapping[SettingKey, str]) -> None:
        self._file = file
        self._text = text
        self._origins = origins

    def label(self, key: SettingKey) -> str:
        """Return the place and the name of a setting: `server.toml, line 3: sandbox.pids`."""
        return (
            f"{self._locate(key)}: {dotted_key(key)}"
            if self._file or self._origins
            else dotted_key(key)
        )

    def describe_error(self, error: Mapping[str, Any]) -> str:
        """Return what pydantic found as a line for people."""
        key: SettingKey = tuple(error["loc"])
        kind, context = error["type"], error.get("ctx", {})
        if kind == "extra_forbidden":
            known: Mapping[str, type[SettingsTable]] = {
                **SETTINGS_TABLES,
                "knowledge": KnowledgeSettings,
            }
            model = known.get(str(key[0])) if len(key) > 1 else Config
            allowed = list(model.model_fields) if model else []
            return f"{self.label(key)} is not a setting.{suggest_names(str(key[-1]), allowed)}"
        if kind == "value_error":
            at = key[:-1] if key[-1] == "[key]" else key  # pydantic's mark of a mistake in a name
            return f"{self.label(at)}: {context['error']}."
        may_be_secret = key[:2] in SECRET_KEYS or (
            key[0] == "mcpServers" and key[2:3] != () and key[2] in INTERPOLATED_FIELDS
        )
        given = "is not usable" if may_be_secret else f"is {error['input']!r:.100}"
        wanted = (
            EXPECTED_BY_ERROR[kind].format(**context) if kind in EXPECTED_BY_ERROR else error["msg"]
        )
        return f"{self.label(key)} {given}; it must be {wanted}."

    def _locate(self, key: SettingKey) -> str:
        origin = (
            _nearest_ancestor(self._origins, key, "")
            or find_table_origin(self._origins, key)
            or "file"
        )
        if origin == "file":
            return f"{self._file}, line {_nearest_ancestor(find_key_lines(self._text), key, 1)}"
        return origin


def _nearest_ancestor(known: Mapping[SettingKey, T], key: SettingKey, otherwise: T) -> T:
    """Return what is known of `key`, or else of the table that it is in."""
    return next(
        (known[key[:end]] for end in range(len(key), 0, -1) if key[:end] in known), otherwise
    )


def find_table_origin(origins: Mapping[SettingKey, str], key: SettingKey) -> str | None:
    """Return where the first setting in the table `key`, or the setting `key` itself, was given."""
    return next((origin for at, origin in origins.items() if at[: len(key)] == key), None)


def suggest_names(name: str, allowed: Iterable[str]) -> str:
    """Return what may have been meant by `name`, as a sentence to append."""
    choices = list(allowed)
    close = get_close_matches(name, choices, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else f" Allowed are: {', '.join(choices)}."


def iter_leaves(tree: Mapping[str, Any], at: SettingKey = ()) -> Iterator[tuple[SettingKey, Any]]:
    """Yield every value that is not a table, and every empty table."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from iter_leaves(value, (*at, name))
        else:
            yield (*at, name), value


def dotted_key(key: SettingKey) -> str:
    """Return a key as TOML writes it."""
    return ".".join(tomli_w.dumps({str(part): 0}).removesuffix(" = 0\n") for part in key)


def find_key_lines(text: str) -> dict[SettingKey, int]:
    """Return the line of every table and key of a TOML document that can be parsed.

    A statement is the shortest run of lines that is a document in itself, so this needs no grammar of its own.
    """
    lines = text.split("\n")
    found: dict[SettingKey, int] = {}
    table: SettingKey = ()
    start = 0
    while start < len(lines):
        end, statement = _next_statement(lines, start)
        keys = [key for key, _ in iter_leaves(statement)]
        if lines[start].lstrip().startswith("["):
            table, keys = keys[0], [()]
        for key in keys:
            whole = (*table, *key)
            for depth in range(len(whole)):
                found.setdefault(whole[: depth + 1], start + 1)
        start = end
    return found


def _next_statement(lines: list[str], start: int) -> tuple[int, dict[str, Any]]:
    for end in range(start + 1, len(lines) + 1):
        try:
            return end, tomllib.loads("\n".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
    return len(lines), {}
