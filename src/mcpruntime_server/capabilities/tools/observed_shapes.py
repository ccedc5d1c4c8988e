"""Infers the schema of results from the results of tools that do not declare one.

Rule 1: a schema contains names and types, never values. A key that does not look like a name is a
value. An object with such a key, or with very many keys, is a mapping.
Rule 2: depth, width and the number of observed results are bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ...journal.events import EncodedJson

MAX_DEPTH = 6
MAX_KEYS = 40  # of one object; one with more is a mapping
MAX_ITEMS = 20  # observed of one array
MAX_NODES = 2_000  # values observed in one result
MAX_RESULTS = 20  # observed of one tool
FIELD_NAME = re.compile(r"(?!.{0,40}\d{3})[A-Za-z_$][\w$ -]{0,39}", re.ASCII)
JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}

Shape = dict[str, Any]


@dataclass(frozen=True)
class LargeValue(EncodedJson):
    """The value of a call that is not built here, and the schema that it follows."""

    shape: Shape


def infer_shape(value: Any) -> Shape:
    """Return the schema of one result."""
    return _infer_shape(value, 0, [MAX_NODES])


def _infer_shape(value: Any, depth: int, left: list[int]) -> Shape:
    left[0] -= 1
    if depth > MAX_DEPTH or left[0] < 0:
        return {}
    if isinstance(value, list):
        return {
            "type": ["array"],
            "items": _infer_common_shape(islice(value, MAX_ITEMS), depth, left),
        }
    if not isinstance(value, dict):
        return {"type": [JSON_TYPES[type(value)]]} if type(value) in JSON_TYPES else {}
    if len(value) > MAX_KEYS or not all(FIELD_NAME.fullmatch(key) for key in value):
        return {
            "type": ["object"],
            "additionalProperties": _infer_common_shape(
                islice(value.values(), MAX_ITEMS), depth, left
            ),
        }
    properties = {key: _infer_shape(item, depth + 1, left) for key, item in value.items()}
    return {"type": ["object"], "properties": properties, "required": sorted(properties)}


def _infer_common_shape(values: Any, depth: int, left: list[int]) -> Shape:
    """Return the schema that all of `values` match."""
    found: Shape = {}
    for value in values:
        found = merge_shapes(found, _infer_shape(value, depth + 1, left))
    return found


def merge_shapes(one: Shape, other: Shape) -> Shape:
    """Return the schema that matches everything that `one` or `other` matches."""
    if not one or not other:
        return one or other
    kinds = {*one["type"], *other["type"]}
    if "number" in kinds:
        kinds.discard("integer")
    result: Shape = {"type": sorted(kinds)}
    if "items" in one or "items" in other:
        result["items"] = merge_shapes(one.get("items", {}), other.get("items", {}))
    if "object" in kinds:
        result |= _merge_objects(one, other)
    return result


def _merge_objects(one: Shape, other: Shape) -> Shape:
    objects = [shape for shape in (one, other) if "object" in shape["type"]]
    names = {name for shape in objects for name in shape.get("properties", {})}
    if any("additionalProperties" in shape for shape in objects) or len(names) > MAX_KEYS:
        values: Shape = {}
        for shape in objects:
            for part in (
                shape.get("additionalProperties", {}),
                *shape.get("properties", {}).values(),
            ):
                values = merge_shapes(values, part)
        return {"additionalProperties": values}
    required = set.intersection(*(set(shape.get("required", ())) for shape in objects))
    properties: dict[str, Shape] = {}
    for shape in objects:
        for name, part in shape.get("properties", {}).items():
            properties[name] = merge_shapes(properties.get(name, {}), part)
    return {"properties": properties, "required": sorted(required)}
