"""Whether data from a stranger has the types that a dataclass declares for its fields."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import isfinite
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

MAX_INT = 2**53  # beyond it, programs do not agree about integers in JSON, and SQLite takes none beyond 2**63


def fits(value: Any, cls: Any, field: str) -> bool:
    """Say whether JSON data may be the value of a field of `cls`."""
    return _is(value, _hints(cls)[field])


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _is(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_is(value, each) for each in get_args(hint))
    if hint is Any:
        return True
    if is_typeddict(hint):
        items = _hints(hint)
        return isinstance(value, dict) and value.keys() == items.keys() and all(_is(value[k], items[k]) for k in items)
    origin = get_origin(hint)
    if origin is Mapping:
        return isinstance(value, dict) and all(_is(each, get_args(hint)[1]) for each in value.values())
    if origin is list:
        return isinstance(value, list) and all(_is(each, get_args(hint)[0]) for each in value)
    return _is_plain(value, hint)


def _is_plain(value: Any, hint: Any) -> bool:
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, int):
        return hint in (int, float) and abs(value) <= MAX_INT
    if isinstance(value, float):
        return hint is float and isfinite(value)
    return isinstance(value, hint)
