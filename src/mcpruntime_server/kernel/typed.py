"""Types as JSON schemas, and JSON values as those types: for answers that code wants typed.

Rule: standard library only, Python >= 3.9. It is imported when somebody needs it; nothing here is part of a start.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
import typing
from typing import Any, Dict

PLAIN: Dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))


def schema_of(wanted: Any) -> Dict[str, Any]:
    """Return the JSON schema of a type; raises `TypeError` for what has none."""
    return _schema(wanted, ())


def _schema(wanted: Any, above: tuple) -> Dict[str, Any]:  # type: ignore[type-arg]
    if wanted is Any:
        return {}
    if wanted is None:
        return {"type": "null"}
    if isinstance(wanted, type) and wanted in PLAIN:
        return {"type": PLAIN[wanted]}
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in UNIONS:
        return {"anyOf": [_schema(each, above) for each in arguments]}
    if wanted in (list, tuple, set) or origin in (list, tuple, set, frozenset):
        items = [each for each in arguments if each is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            raise TypeError(f"{wanted!r} has no schema here: use a dataclass, or tuple[T, ...].")
        return {"type": "array", "items": _schema(items[0], above) if items else {}}
    if wanted is dict or origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], above) if arguments else {}}
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return {"enum": [each.value for each in wanted]}
    if wanted in above:
        raise TypeError(f"{wanted.__name__} holds itself: its schema would have no end.")
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        needed = [each.name for each in dataclasses.fields(wanted) if _is_needed(each)]
        return _object(
            {each.name: hints(wanted)[each.name] for each in dataclasses.fields(wanted)}, needed, above, wanted
        )
    if isinstance(wanted, type) and hasattr(wanted, "__total__"):
        return _object(hints(wanted), sorted(wanted.__required_keys__), above, wanted)  # type: ignore[attr-defined]
    raise TypeError(f"{wanted!r} has no schema: give a dict with one, a TypedDict, a dataclass or plain types.")


def _is_needed(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _object(fields: Dict[str, Any], needed: list, above: tuple, wanted: Any) -> Dict[str, Any]:  # type: ignore[type-arg]
    properties = {name: _schema(each, (*above, wanted)) for name, each in fields.items()}
    found = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
    text = (wanted.__doc__ or "").strip()
    return {**found, "description": text} if text and not text.startswith(f"{wanted.__name__}(") else found


def hints(wanted: Any) -> Dict[str, Any]:
    """Return the types of the fields of a class."""
    module = sys.modules.get(wanted.__module__)
    return typing.get_type_hints(wanted, vars(module) if module else None)


def made(wanted: Any, value: Any) -> Any:
    """Return a JSON value that follows the schema of `wanted` as that type."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in UNIONS:
        return _made_of_union(arguments, value)
    if isinstance(value, list):
        items = [each for each in arguments if each is not Ellipsis]
        values = [made(items[0], each) for each in value] if items else value
        kind = origin or wanted
        return kind(values) if kind in (tuple, set, frozenset) else values
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return wanted(value)
    if isinstance(value, dict):
        if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
            types_of = hints(wanted)
            return wanted(**{name: made(types_of[name], each) for name, each in value.items()})
        if origin is dict and arguments:
            return {name: made(arguments[1], each) for name, each in value.items()}
        if isinstance(wanted, type) and hasattr(wanted, "__total__"):
            types_of = hints(wanted)
            return {name: made(types_of[name], each) if name in types_of else each for name, each in value.items()}
    if wanted is float and isinstance(value, int):
        return float(value)
    return value


def _made_of_union(kinds: Any, value: Any) -> Any:
    for kind in kinds:
        is_plain = isinstance(kind, type) and kind in PLAIN
        if is_plain and type(value) is kind:
            return value
        if is_plain or (isinstance(value, dict) != _is_object(kind)):
            continue
        try:
            return made(kind, value)
        except (TypeError, ValueError, KeyError):
            continue
    return value


def _is_object(kind: Any) -> bool:
    return (
        kind is dict or typing.get_origin(kind) is dict or hasattr(kind, "__total__") or dataclasses.is_dataclass(kind)
    )
