"""Types as JSON schemas, and JSON values as those types: for answers that code wants typed.

Rule: standard library only, Python >= 3.9. It is imported when somebody needs it; nothing here is part of a start.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import types
import typing
from typing import Any, Dict, List, Optional, Tuple

JSON_TYPE_NAMES: Dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
SEQUENCE_TYPES = (list, tuple, set, frozenset)
UNION_ORIGINS = (typing.Union, getattr(types, "UnionType", typing.Union))


def build_schema(requested_type: Any) -> Dict[str, Any]:
    """Return the JSON schema of a type; raises `TypeError` for what has none."""
    return _build_schema(requested_type, ())


def _build_schema(wanted: Any, above: tuple) -> Dict[str, Any]:  # type: ignore[type-arg]
    if wanted is Any:
        return {}
    if wanted is None:
        return {"type": "null"}
    if isinstance(wanted, type) and wanted in JSON_TYPE_NAMES:
        return {"type": JSON_TYPE_NAMES[wanted]}
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in UNION_ORIGINS:
        return {"anyOf": [_build_schema(each, above) for each in arguments]}
    if (origin or wanted) in SEQUENCE_TYPES:
        items = [each for each in arguments if each is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            raise TypeError(f"{wanted!r} has no schema here: use a dataclass, or tuple[T, ...].")
        return {"type": "array", "items": _build_schema(items[0], above) if items else {}}
    if wanted is dict or origin is dict:
        return _build_mapping_schema(arguments, above)
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return {"enum": [each.value for each in wanted]}
    if wanted in above:
        raise TypeError(f"{wanted.__name__} holds itself: its schema would have no end.")
    if (found := get_fields(wanted)) is not None:
        check_constructible(wanted, found[0])
        return _build_object_schema(*found, above, wanted)
    raise TypeError(
        f"{wanted!r} has no schema: give a dict with one, a TypedDict, a dataclass or plain types."
    )


def _build_mapping_schema(arguments: tuple, above: tuple) -> Dict[str, Any]:  # type: ignore[type-arg]
    found: Dict[str, Any] = {
        "type": "object",
        "additionalProperties": _build_schema(arguments[1], above) if arguments else {},
    }
    if not arguments or arguments[0] in (str, Any):
        return found
    keys = _build_schema(arguments[0], above)
    if not all(isinstance(each, str) for each in keys.get("enum", [None])):
        raise TypeError(
            f"{arguments[0]!r} cannot be the keys: those of JSON objects are texts. Use a list of objects."
        )
    return {**found, "propertyNames": keys}


def _build_object_schema(
    fields: Dict[str, Any], needed: List[str], above: Tuple[Any, ...], wanted: Any
) -> Dict[str, Any]:
    properties = {name: _build_schema(each, (*above, wanted)) for name, each in fields.items()}
    found = {
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
    }
    text = (wanted.__doc__ or "").strip()
    return (
        {**found, "description": text}
        if text and not text.startswith(f"{wanted.__name__}(")
        else found
    )


def resolve_type_hints(wanted: Any, *, extras: bool = False) -> Dict[str, Any]:
    """Return the types of the fields of a class, with what stands around them if `extras`."""
    module = sys.modules.get(wanted.__module__)
    return typing.get_type_hints(wanted, vars(module) if module else None, include_extras=extras)


def get_fields(wanted: Any) -> Optional[Tuple[Dict[str, Any], List[str]]]:
    """Return the types of what an object of a class is made from, and what it needs of that; None if it has none."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        given, kinds = (
            [each for each in dataclasses.fields(wanted) if each.init],
            resolve_type_hints(wanted),
        )
        return {each.name: kinds[each.name] for each in given}, [
            each.name for each in given if _is_required(each)
        ]
    if isinstance(wanted, type) and hasattr(wanted, "__total__"):
        # Where annotations are texts, `__required_keys__` knows nothing of what they say about that.
        says = {
            name: _get_required_marker(each)
            for name, each in resolve_type_hints(wanted, extras=True).items()
        }
        usual = dict.fromkeys(wanted.__required_keys__, "Required")  # type: ignore[attr-defined]
        return resolve_type_hints(wanted), sorted(
            name for name in says if (says[name] or usual.get(name)) == "Required"
        )
    return None


def check_constructible(wanted: Any, fields: Dict[str, Any]) -> None:
    """Raise `TypeError` if a dataclass cannot be made of its fields alone, before an answer is paid for."""
    if not (dataclasses.is_dataclass(wanted) and isinstance(wanted, type)):
        return
    for name, each in inspect.signature(wanted).parameters.items():
        is_needed = each.default is each.empty and each.kind not in (
            each.VAR_POSITIONAL,
            each.VAR_KEYWORD,
        )
        if is_needed and name not in fields:
            raise TypeError(
                f"{wanted.__name__} needs {name!r} to be made, which is no field that an answer has."
            )


def _is_required(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _get_required_marker(hint: Any) -> str:
    """Return `Required` or `NotRequired` if a field is marked so; Python 3.9 has these from elsewhere."""
    name = getattr(typing.get_origin(hint), "_name", "")
    return name if name in ("Required", "NotRequired") else ""


def convert_value(wanted: Any, value: Any) -> Any:
    """Return a JSON value that follows the schema of `wanted` as that type."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    kind = origin or wanted
    if origin in UNION_ORIGINS:
        exact = any(each is type(value) for each in arguments)
        return (
            value
            if exact
            else convert_value(
                next((each for each in arguments if matches_type(each, value)), Any), value
            )
        )
    if kind in SEQUENCE_TYPES and isinstance(value, list):
        return kind(convert_value((*arguments, Any)[0], each) for each in value)
    if kind is dict and arguments and isinstance(value, dict):
        return {
            convert_value(arguments[0], name): convert_value(arguments[1], each)
            for name, each in value.items()
        }
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if kind in (int, float) and type(value) in (int, float):
        return kind(value)  # to a JSON schema 3.0 is an integer, and 3 a number
    if isinstance(value, dict) and (found := get_fields(wanted)) is not None:
        return wanted(**{name: convert_value(found[0][name], each) for name, each in value.items()})
    return value


def matches_type(wanted: Any, value: Any) -> bool:
    """Return whether a JSON value follows the schema of `wanted`."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    kind = origin or wanted
    if origin in UNION_ORIGINS:
        return any(matches_type(each, value) for each in arguments)
    if origin is typing.Literal:
        return any(type(each) is type(value) and each == value for each in arguments)
    if kind in SEQUENCE_TYPES:
        return isinstance(value, list) and all(
            matches_type((*arguments, Any)[0], each) for each in value
        )
    if kind is dict:
        names, values = arguments or (Any, Any)
        return isinstance(value, dict) and all(
            matches_type(names, name) and matches_type(values, value[name]) for name in value
        )
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return any(type(each.value) is type(value) and each.value == value for each in kind)
    if kind in (int, float):
        return type(value) is int or (
            type(value) is float and (kind is float or value.is_integer())
        )
    if (found := get_fields(wanted)) is not None:
        kinds, needed = found
        return (
            isinstance(value, dict)
            and set(needed) <= value.keys() <= kinds.keys()
            and all(matches_type(kinds[name], each) for name, each in value.items())
        )
    return kind is Any or isinstance(value, type(None) if kind is None else kind)
