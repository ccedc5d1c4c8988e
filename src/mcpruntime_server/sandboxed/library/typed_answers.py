"""Types as JSON schemas, and JSON values as those types, for answers that code wants typed.

Rule: standard library only, Python >= 3.9. It is imported when it is needed, not when a sandbox
starts.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import types
import typing
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

if TYPE_CHECKING:
    from ...protocol.payloads import JsonSchema

JSON_TYPE_NAMES: Dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
SEQUENCE_TYPES = (list, tuple, set, frozenset)
UNION_ORIGINS = (typing.Union, getattr(types, "UnionType", typing.Union))


def build_schema(requested_type: Any) -> JsonSchema:
    """Return the JSON schema of a type; raises `TypeError` for a type that has none."""
    return _build_schema(requested_type, ())


def _build_schema(requested_type: Any, enclosing: Tuple[Any, ...]) -> JsonSchema:
    if requested_type is Any:
        return {}
    if requested_type is None:
        return {"type": "null"}
    if isinstance(requested_type, type) and requested_type in JSON_TYPE_NAMES:
        return {"type": JSON_TYPE_NAMES[requested_type]}
    origin, arguments = typing.get_origin(requested_type), typing.get_args(requested_type)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in UNION_ORIGINS:
        return {"anyOf": [_build_schema(each, enclosing) for each in arguments]}
    if (origin or requested_type) in SEQUENCE_TYPES:
        items = [each for each in arguments if each is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            raise TypeError(
                f"{requested_type!r} has no schema here: use a dataclass, or tuple[T, ...]."
            )
        return {"type": "array", "items": _build_schema(items[0], enclosing) if items else {}}
    if requested_type is dict or origin is dict:
        return _build_mapping_schema(arguments, enclosing)
    if isinstance(requested_type, type) and issubclass(requested_type, enum.Enum):
        return {"enum": [each.value for each in requested_type]}
    if requested_type in enclosing:
        raise TypeError(f"{requested_type.__name__} contains itself: its schema would be infinite.")
    found = get_fields(requested_type)
    if found is None:
        raise TypeError(
            f"{requested_type!r} has no schema: "
            "give a dict with one, a TypedDict, a dataclass or plain types."
        )
    fields, required = found
    check_constructible(requested_type, fields)
    return _build_object_schema(fields, required, enclosing, requested_type)


def _build_mapping_schema(arguments: Tuple[Any, ...], enclosing: Tuple[Any, ...]) -> JsonSchema:
    schema: JsonSchema = {
        "type": "object",
        "additionalProperties": _build_schema(arguments[1], enclosing) if arguments else {},
    }
    if not arguments or arguments[0] in (str, Any):
        return schema
    key_schema = _build_schema(arguments[0], enclosing)
    if not all(isinstance(each, str) for each in key_schema.get("enum", [None])):
        raise TypeError(
            f"{arguments[0]!r} cannot be the type of keys: JSON objects have strings. "
            "Use a list of objects."
        )
    return {**schema, "propertyNames": key_schema}


def _build_object_schema(
    fields: Dict[str, Any], required: List[str], enclosing: Tuple[Any, ...], requested_type: Any
) -> JsonSchema:
    inner = (*enclosing, requested_type)
    schema = {
        "type": "object",
        "properties": {name: _build_schema(each, inner) for name, each in fields.items()},
        "required": required,
        "additionalProperties": False,
    }
    doc = (requested_type.__doc__ or "").strip()
    is_generated = doc.startswith(f"{requested_type.__name__}(")  # by `dataclass`
    return {**schema, "description": doc} if doc and not is_generated else schema


def resolve_type_hints(requested_type: Any, *, extras: bool = False) -> Dict[str, Any]:
    """Return the types of the fields of a class; with `extras`, the marks around them, too."""
    module = sys.modules.get(requested_type.__module__)
    namespace = vars(module) if module else None
    return typing.get_type_hints(requested_type, namespace, include_extras=extras)


def get_fields(requested_type: Any) -> Optional[Tuple[Dict[str, Any], List[str]]]:
    """Return the types of the fields that construct an object, and the names of those required.

    None if the type is neither a dataclass nor a TypedDict.
    """
    if not isinstance(requested_type, type):
        return None
    if dataclasses.is_dataclass(requested_type):
        fields = [each for each in dataclasses.fields(requested_type) if each.init]
        hints = resolve_type_hints(requested_type)
        required = [each.name for each in fields if _is_required(each)]
        return {each.name: hints[each.name] for each in fields}, required
    if not hasattr(requested_type, "__total__"):
        return None
    # Where annotations are strings, `__required_keys__` does not know the marks in them.
    markers = {
        name: _get_required_marker(each)
        for name, each in resolve_type_hints(requested_type, extras=True).items()
    }
    required_keys = requested_type.__required_keys__  # type: ignore[attr-defined]
    defaults = dict.fromkeys(required_keys, "Required")
    required = sorted(
        name for name, marker in markers.items() if (marker or defaults.get(name)) == "Required"
    )
    return resolve_type_hints(requested_type), required


def check_constructible(requested_type: Any, fields: Dict[str, Any]) -> None:
    """Raise `TypeError` if a dataclass cannot be made from its fields alone.

    This happens before an answer is paid for.
    """
    if not (dataclasses.is_dataclass(requested_type) and isinstance(requested_type, type)):
        return
    for name, parameter in inspect.signature(requested_type).parameters.items():
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        is_required = parameter.default is parameter.empty and not is_variadic
        if is_required and name not in fields:
            raise TypeError(
                f"{requested_type.__name__} needs {name!r}, which is not a field, "
                "so an answer cannot have it."
            )


def _is_required(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _get_required_marker(hint: Any) -> str:
    """Return `Required` or `NotRequired` if a field is marked so.

    Python 3.9 gets these from `typing_extensions`, so they are recognised by name.
    """
    name = getattr(typing.get_origin(hint), "_name", "")
    return name if name in ("Required", "NotRequired") else ""


def convert_value(requested_type: Any, value: Any) -> Any:
    """Return a JSON value that follows the schema of a type as that type."""
    origin, arguments = typing.get_origin(requested_type), typing.get_args(requested_type)
    kind = origin or requested_type
    if origin in UNION_ORIGINS:
        if any(each is type(value) for each in arguments):
            return value
        matching = next((each for each in arguments if matches_type(each, value)), Any)
        return convert_value(matching, value)
    if kind in SEQUENCE_TYPES and isinstance(value, list):
        item_type = (*arguments, Any)[0]
        return kind(convert_value(item_type, each) for each in value)
    if kind is dict and arguments and isinstance(value, dict):
        key_type, value_type = arguments
        return {
            convert_value(key_type, name): convert_value(value_type, each)
            for name, each in value.items()
        }
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if kind in (int, float) and type(value) in (int, float):
        return kind(value)  # to a JSON schema, 3.0 is an integer and 3 is a number
    if isinstance(value, dict) and (found := get_fields(requested_type)) is not None:
        fields, _ = found
        converted = {name: convert_value(fields[name], each) for name, each in value.items()}
        return requested_type(**converted)
    return value


def matches_type(requested_type: Any, value: Any) -> bool:
    """Return whether a JSON value follows the schema of a type."""
    origin, arguments = typing.get_origin(requested_type), typing.get_args(requested_type)
    kind = origin or requested_type
    if origin in UNION_ORIGINS:
        return any(matches_type(each, value) for each in arguments)
    if origin is typing.Literal:
        return any(type(each) is type(value) and each == value for each in arguments)
    if kind in SEQUENCE_TYPES:
        item_type = (*arguments, Any)[0]
        return isinstance(value, list) and all(matches_type(item_type, each) for each in value)
    if kind is dict:
        key_type, value_type = arguments or (Any, Any)
        return isinstance(value, dict) and all(
            matches_type(key_type, name) and matches_type(value_type, each)
            for name, each in value.items()
        )
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return any(type(each.value) is type(value) and each.value == value for each in kind)
    if kind in (int, float):
        is_whole = type(value) is float and value.is_integer()
        return type(value) is int or is_whole or (kind is float and type(value) is float)
    if (found := get_fields(requested_type)) is not None:
        fields, required = found
        return (
            isinstance(value, dict)
            and set(required) <= value.keys() <= fields.keys()
            and all(matches_type(fields[name], each) for name, each in value.items())
        )
    return kind is Any or isinstance(value, type(None) if kind is None else kind)
