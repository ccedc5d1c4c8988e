"""Build the frozen dataclasses of the settings from untyped values, and report every mistake.

The checks follow the annotations of the fields, so that a setting is declared in one place.
A value that may hold a credential (a field with `repr=False`) is never repeated.

pydantic would do the same, but importing it takes longer than a command that only reads the
journal may take altogether.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from .diagnostics import ReportProblem, SettingKey, dotted_key, suggest_names

INTERNAL = "internal"  # metadata of a field that is not a setting
INVALID: Any = object()  # stands for a value whose problem has been reported
TRUTH_VALUES = {"true": True, "false": False}
MAX_VALUE_CHARS = 100  # of a value that is repeated in a message


@dataclass(frozen=True)
class Bounds:
    """Limits of a number, as metadata of its type."""

    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    def expectation(self, number: float) -> str:
        """Return what `number` must be instead, "" if it is within the limits."""
        if not isfinite(number):
            return "a finite number"
        if self.above is not None and number <= self.above:
            return f"a number greater than {self.above}"
        if self.at_least is not None and number < self.at_least:
            return f"a number of at least {self.at_least}"
        if self.at_most is not None and number > self.at_most:
            return f"a number of at most {self.at_most}"
        return ""


@dataclass(frozen=True)
class Check:
    """A further check of a value, as metadata of its type: it raises `ValueError` with a reason.

    It sees the value as it was given, before the conversion to the type.
    """

    function: Callable[[Any], None]


@dataclass(frozen=True, repr=False)
class SecretText:
    """Text that no `repr`, log or traceback shows."""

    _text: str

    def get_secret_value(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        """Return a mask, or nothing for an empty text."""
        return f"SecretText({'********' if self._text else ''!r})"


@dataclass(frozen=True, kw_only=True)
class SettingsTable:
    """Base of every table of settings: immutable, and an unknown key is an error."""

    ignores_unknown_keys: ClassVar[bool] = False

    @classmethod
    def check_table(cls, values: Mapping[str, Any]) -> None:
        """Raise `ValueError` if the table cannot be used, before its values are looked at."""

    @classmethod
    def from_mapping(cls: type[Table], values: Any) -> Table:
        """Return the table that `values` describe; raises `ValueError` with every problem."""
        problems: list[str] = []
        table = parse_table(
            cls, values, (), lambda key, text: problems.append(f"{dotted_key(key)} {text}".strip())
        )
        if table is None or problems:
            raise ValueError(" ".join(problems))
        return table

    def non_default_values(self) -> dict[str, Any]:
        """Return the settings of this table that differ from their defaults, by name."""
        return {
            item.name: value
            for item in fields(self)
            if (value := getattr(self, item.name)) != _default_value(item)
        }


Table = TypeVar("Table", bound=SettingsTable)


def _default_value(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


class WrongType(Exception):
    """A value does not have its type; the argument names what was expected."""


def setting_types(table: type[SettingsTable]) -> Mapping[str, Any]:
    """Return the annotation of every setting of a table, by name and in order."""
    hints = get_type_hints(table, include_extras=True)
    return {item.name: hints[item.name] for item in fields(table) if INTERNAL not in item.metadata}


def iter_setting_keys(table: type[SettingsTable], key: SettingKey) -> Iterator[SettingKey]:
    """Yield the keys of all settings of a table, those of the tables in it too."""
    for name, hint in setting_types(table).items():
        if is_table(hint):
            yield from iter_setting_keys(hint, (*key, name))
        else:
            yield (*key, name)


def is_table(hint: Any) -> bool:
    """Say whether the type of a setting is a table of settings."""
    return isinstance(hint, type) and issubclass(hint, SettingsTable)


def parse_table(
    table: type[Table], values: Any, key: SettingKey, report: ReportProblem
) -> Table | None:
    """Return the table at `key` that `values` describe, None if a problem was reported."""
    if not isinstance(values, Mapping):
        report(key, f"is {_quote_value(values)}; it must be a table.")
        return None
    hints = setting_types(table)
    if not table.ignores_unknown_keys:
        for name in values:
            if name not in hints:
                report((*key, name), f"is not a setting.{suggest_names(str(name), hints)}")
    hidden = {item.name for item in fields(table) if not item.repr}
    parsed = {
        name: parse_value(values[name], hint, (*key, name), report, hide=name in hidden)
        for name, hint in hints.items()
        if name in values
    }
    if any(value is INVALID for value in parsed.values()):
        return None
    try:
        table.check_table(values)
        return table(**parsed)
    except ValueError as exc:
        report(key, f"is not usable: {exc}.")
        return None


def parse_value(
    value: Any, hint: Any, key: SettingKey, report: ReportProblem, *, hide: bool
) -> Any:
    """Return `value` converted to the type `hint`, or `INVALID` once its problem is reported."""
    try:
        return _convert_value(value, hint, key, report, hide=hide)
    except WrongType as exc:
        shown = "is not usable" if hide else f"is {_quote_value(value)}"
        report(key, f"{shown}; it must be {exc}.")
    except ValueError as exc:
        report(key, f"is not usable: {exc}.")
    return INVALID


def _convert_value(
    value: Any, hint: Any, key: SettingKey, report: ReportProblem, *, hide: bool
) -> Any:
    """Return `value` converted to `hint`; raises `WrongType`, or `ValueError` from a check."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_table(hint):
        table = parse_table(hint, value, key, report)
        return INVALID if table is None else table
    if origin is Annotated:
        return _convert_annotated(value, arguments[0], arguments[1:], key, report, hide=hide)
    if origin in (Union, types.UnionType):  # of a type and None
        return (
            None if value is None else _convert_value(value, arguments[0], key, report, hide=hide)
        )
    if origin is Literal:
        return _convert_literal(value, arguments)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise WrongType("a list: [...]")
        items = [
            parse_value(item, arguments[0], (*key, index), report, hide=hide)
            for index, item in enumerate(value)
        ]
        return INVALID if any(item is INVALID for item in items) else tuple(items)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise WrongType("a table")
        return _convert_mapping(value, arguments, key, report, hide=hide)
    return CONVERTERS[hint](value)


def _convert_annotated(
    value: Any,
    hint: Any,
    metadata: tuple[Any, ...],
    key: SettingKey,
    report: ReportProblem,
    *,
    hide: bool,
) -> Any:
    for item in metadata:
        if isinstance(item, Check):
            item.function(value)
    converted = _convert_value(value, hint, key, report, hide=hide)
    for item in metadata:
        if isinstance(item, Bounds) and (expectation := item.expectation(converted)):
            raise WrongType(expectation)
    return converted


def _convert_literal(value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise WrongType(f"one of {', '.join(others)} or {last}")
    return value


def _convert_mapping(
    value: Mapping[Any, Any],
    arguments: tuple[Any, ...],
    key: SettingKey,
    report: ReportProblem,
    *,
    hide: bool,
) -> Any:
    items = {
        name: (
            parse_value(name, arguments[0], (*key, name), report, hide=hide),
            parse_value(item, arguments[1], (*key, name), report, hide=hide),
        )
        for name, item in value.items()
    }
    if any(INVALID in pair for pair in items.values()):
        return INVALID
    return dict(items.values())


def _to_int(value: Any) -> int:
    try:
        if isinstance(value, int | str) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    except ValueError:
        pass
    raise WrongType("a whole number")


def _to_float(value: Any) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise WrongType("a number")


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in TRUTH_VALUES:
        return TRUTH_VALUES[value.lower()]
    raise WrongType("true or false")


def _to_text(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongType("text in quotes")
    return value


def _to_secret(value: Any) -> SecretText:
    return SecretText(_to_text(value))


def _to_path(value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise WrongType("a path in quotes")
    return Path(value)


CONVERTERS: Mapping[Any, Callable[[Any], Any]] = {
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    str: _to_text,
    SecretText: _to_secret,
    Path: _to_path,
}


def _quote_value(value: Any) -> str:
    return f"{value!r:.{MAX_VALUE_CHARS}}"
