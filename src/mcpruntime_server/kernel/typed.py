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

PLAIN: Dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
SEQUENCES = (list, tuple, set, frozenset)
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
    if (origin or wanted) in SEQUENCES:
        items = [each for each in arguments if each is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            raise TypeError(f"{wanted!r} has no schema here: use a dataclass, or tuple[T, ...].")
        return {"type": "array", "items": _schema(items[0], above) if items else {}}
    if wanted is dict or origin is dict:
        return _mapping(arguments, above)
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return {"enum": [each.value for each in wanted]}
    if wanted in above:
        raise TypeError(f"{wanted.__name__} holds itself: its schema would have no end.")
    if (found := fields_of(wanted)) is not None:
        check_made_of(wanted, found[0])
        return _object(*found, above, wanted)
    raise TypeError(f"{wanted!r} has no schema: give a dict with one, a TypedDict, a dataclass or plain types.")


def _mapping(arguments: tuple, above: tuple) -> Dict[str, Any]:  # type: ignore[type-arg]
    found: Dict[str, Any] = {
        "type": "object",
        "additionalProperties": _schema(arguments[1], above) if arguments else {},
    }
    if not arguments or arguments[0] in (str, Any):
        return found
    keys = _schema(arguments[0], above)
    if not all(isinstance(each, str) for each in keys.get("enum", [None])):
        raise TypeError(f"{arguments[0]!r} cannot be the keys: those of JSON objects are texts. Use a list of objects.")
    return {**found, "propertyNames": keys}


def _object(fields: Dict[str, Any], needed: list, above: tuple, wanted: Any) -> Dict[str, Any]:  # type: ignore[type-arg]
    properties = {name: _schema(each, (*above, wanted)) for name, each in fields.items()}
    found = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
    text = (wanted.__doc__ or "").strip()
    return {**found, "description": text} if text and not text.startswith(f"{wanted.__name__}(") else found


def hints(wanted: Any, *, extras: bool = False) -> Dict[str, Any]:
    """Return the types of the fields of a class, with what stands around them if `extras`."""
    module = sys.modules.get(wanted.__module__)
    return typing.get_type_hints(wanted, vars(module) if module else None, include_extras=extras)


def fields_of(wanted: Any) -> Optional[Tuple[Dict[str, Any], List[str]]]:
    """Return the types of what an object of a class is made from, and what it needs of that; None if it has none."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        given, kinds = [each for each in dataclasses.fields(wanted) if each.init], hints(wanted)
        return {each.name: kinds[each.name] for each in given}, [each.name for each in given if _is_needed(each)]
    if isinstance(wanted, type) and hasattr(wanted, "__total__"):
        # Where annotations are texts, `__required_keys__` knows nothing of what they say about that.
        says = {name: _mark_of(each) for name, each in hints(wanted, extras=True).items()}
        usual = dict.fromkeys(wanted.__required_keys__, "Required")  # type: ignore[attr-defined]
        return hints(wanted), sorted(name for name in says if (says[name] or usual.get(name)) == "Required")
    return None


def check_made_of(wanted: Any, fields: Dict[str, Any]) -> None:
    """Raise `TypeError` if a dataclass cannot be made of its fields alone, before an answer is paid for."""
    if not (dataclasses.is_dataclass(wanted) and isinstance(wanted, type)):
        return
    for name, each in inspect.signature(wanted).parameters.items():
        is_needed = each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if is_needed and name not in fields:
            raise TypeError(f"{wanted.__name__} needs {name!r} to be made, which is no field that an answer has.")


def _is_needed(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _mark_of(hint: Any) -> str:
    """Return `Required` or `NotRequired` if a field is marked so; Python 3.9 has these from elsewhere."""
    name = getattr(typing.get_origin(hint), "_name", "")
    return name if name in ("Required", "NotRequired") else ""


def made(wanted: Any, value: Any) -> Any:
    """Return a JSON value that follows the schema of `wanted` as that type."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    kind = origin or wanted
    if origin in UNIONS:
        exact = any(each is type(value) for each in arguments)
        return value if exact else made(next((each for each in arguments if fits(each, value)), Any), value)
    if kind in SEQUENCES and isinstance(value, list):
        return kind(made((*arguments, Any)[0], each) for each in value)
    if kind is dict and arguments and isinstance(value, dict):
        return {made(arguments[0], name): made(arguments[1], each) for name, each in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if kind in (int, float) and type(value) in (int, float):
        return kind(value)  # to a JSON schema 3.0 is an integer, and 3 a number
    if isinstance(value, dict) and (found := fields_of(wanted)) is not None:
        return wanted(**{name: made(found[0][name], each) for name, each in value.items()})
    return value


def fits(wanted: Any, value: Any) -> bool:
    """Return whether a JSON value follows the schema of `wanted`."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    kind = origin or wanted
    if origin in UNIONS:
        return any(fits(each, value) for each in arguments)
    if origin is typing.Literal:
        return any(type(each) is type(value) and each == value for each in arguments)
    if kind in SEQUENCES:
        return isinstance(value, list) and all(fits((*arguments, Any)[0], each) for each in value)
    if kind is dict:
        names, values = arguments or (Any, Any)
        return isinstance(value, dict) and all(fits(names, name) and fits(values, value[name]) for name in value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return any(type(each.value) is type(value) and each.value == value for each in kind)
    if kind in (int, float):
        return type(value) is int or (type(value) is float and (kind is float or value.is_integer()))
    if (found := fields_of(wanted)) is not None:
        kinds, needed = found
        return (
            isinstance(value, dict)
            and set(needed) <= value.keys() <= kinds.keys()
            and all(fits(kinds[name], each) for name, each in value.items())
        )
    return kind is Any or isinstance(value, type(None) if kind is None else kind)
