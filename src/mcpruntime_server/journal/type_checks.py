"""Check JSON data from outside against the types that a dataclass declares for its fields."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import isfinite
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

MAX_SAFE_INTEGER = 2**53  # JSON programs disagree about larger integers; SQLite ends at 2**63


def matches_field_type(value: Any, cls: Any, field: str) -> bool:
    """Say whether JSON data may be the value of a field of `cls`."""
    return _matches_hint(value, _type_hints(cls)[field])


@cache
def _type_hints(cls: Any) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _matches_hint(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(hint, UnionType):
        return any(_matches_hint(value, each) for each in get_args(hint))
    if is_typeddict(hint):
        hints = _type_hints(hint)
        has_keys = isinstance(value, dict) and value.keys() == hints.keys()
        return has_keys and all(_matches_hint(value[name], hints[name]) for name in hints)
    origin = get_origin(hint)
    if origin is Mapping:
        item_hint = get_args(hint)[1]
        return isinstance(value, dict) and all(
            _matches_hint(item, item_hint) for item in value.values()
        )
    if origin is list:
        (item_hint,) = get_args(hint)
        return isinstance(value, list) and all(_matches_hint(item, item_hint) for item in value)
    return _matches_scalar(value, hint)


def _matches_scalar(value: Any, hint: Any) -> bool:
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, int):
        return hint in (int, float) and abs(value) <= MAX_SAFE_INTEGER
    if isinstance(value, float):
        return hint is float and isfinite(value)
    return isinstance(value, hint)
