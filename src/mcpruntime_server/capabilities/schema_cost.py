"""What a JSON schema may cost, before anything is compared with it.

Rule 1: a schema is hostile. It may be huge, refer to itself, or grow when its references are
followed. Every function here takes time in proportion to the parts that it is allowed.
Rule 2: an estimate is never too low. Schemas that no estimate covers have no `width`; they are
compared in a process of its own, which a time limit ends (`schema_checks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .json_pointers import resolve_pointer

MAX_DEPTH = 64  # of a schema as it is written
MAX_FOLLOWED_DEPTH = 100  # of a schema with its references followed; deeper has no estimate
CHARS_PER_PART = 50  # a schema may have so many characters for each part that it may have
PATTERN_WIDTH = 10  # a search of a pattern costs as much as so many other comparisons
MAX_ESTIMATED_CHARS = 500  # of all patterns of a schema; longer ones have no estimate
UNIQUE_WIDTH = 20  # likewise the search for duplicates among the items
SAME_VALUE_LISTS = ("allOf", "anyOf", "oneOf")
SAME_VALUE_SCHEMAS = ("not", "if", "then", "else")
SAME_VALUE_MAPS = ("dependentSchemas", "dependencies")
NOT_ESTIMATED = (  # they compare again what was compared, or find their target while they compare
    "unevaluatedProperties",
    "unevaluatedItems",
    "$dynamicRef",
    "$recursiveRef",
    "$anchor",
    "$dynamicAnchor",
    "$recursiveAnchor",
)


@dataclass(frozen=True)
class SchemaSize:
    """How large a value of JSON is; counting stops where it exceeds a limit."""

    parts: int  # values, keys included
    chars: int  # of all texts
    depth: int


@dataclass(frozen=True)
class SchemaCost:
    """What comparing a value with a schema costs.

    `width` is how many comparisons one part of a value needs at most, None if nothing says so.
    """

    parts: int
    width: int | None
    has_patterns: bool


def measure_size(value: Any, max_parts: int, max_depth: int = MAX_DEPTH) -> SchemaSize:
    """Return the size of a value, counted until it exceeds a limit. The function does not recurse.

    Texts count at most as many characters as `max_parts` parts may have.
    """
    parts = chars = deepest = 0
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending and parts <= max_parts:
        item, depth = pending.pop()
        parts += 1
        deepest = max(deepest, depth)
        if depth > max_depth:
            break
        if isinstance(item, str):
            chars += len(item)
        elif isinstance(item, dict):
            if parts + 2 * len(item) > max_parts:
                return SchemaSize(parts + 2 * len(item), chars, deepest)
            parts += len(item)
            chars += sum(map(len, item))
            pending += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list):
            if parts + len(item) > max_parts:
                return SchemaSize(parts + len(item), chars, deepest)
            pending += [(child, depth + 1) for child in item]
    return SchemaSize(parts, chars, deepest)


def find_excess(size: SchemaSize, max_parts: int) -> str:
    """Return how a schema exceeds its bounds, as a clause; "" if it does not."""
    if size.depth > MAX_DEPTH:
        return f"is nested more than {MAX_DEPTH} levels deep"
    if size.parts > max_parts:
        return f"has more than {max_parts:,} parts"
    if size.chars > max_parts * CHARS_PER_PART:
        return f"has more than {max_parts * CHARS_PER_PART:,} characters"
    return ""


def estimate_cost(schema: Any, parts: int) -> SchemaCost:
    """Return the cost of a schema with that many parts."""
    estimate = _Estimate(schema)
    try:
        width = estimate.measure(schema, 0).widest
    except _NotEstimated:
        return SchemaCost(parts, None, has_patterns=True)
    return SchemaCost(parts, width, estimate.pattern_chars > 0)


class _NotEstimated(Exception):
    """Nothing says what comparing with a schema costs."""


@dataclass(frozen=True)
class _Width:
    """How many comparisons a value itself, each of its members and each of its items needs."""

    here: int = 0
    member: int = 0
    item: int = 0

    @property
    def widest(self) -> int:
        """The most comparisons that any part of the value needs."""
        return max(self.here, self.member, self.item)

    def __add__(self, other: _Width) -> _Width:
        return _Width(self.here + other.here, self.member + other.member, self.item + other.item)


class _Estimate:
    """Measures the schemas of one document, each one once."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, _Width] = {}
        self._open: set[int] = set()
        self.pattern_chars = 0

    def measure(self, schema: Any, depth: int) -> _Width:
        """Return the width of a schema; raises `_NotEstimated`, also if it refers to itself."""
        if not isinstance(schema, Mapping):
            return _Width(here=1)
        if id(schema) in self._known:
            return self._known[id(schema)]
        if id(schema) in self._open or depth > MAX_FOLLOWED_DEPTH:
            raise _NotEstimated
        if any(key in schema for key in NOT_ESTIMATED) or ("$id" in schema and depth):
            raise _NotEstimated
        self._open.add(id(schema))
        width = self._measure_keywords(schema, depth + 1)
        self._open.discard(id(schema))
        self._known[id(schema)] = width
        return width

    def _measure_keywords(self, schema: Mapping[str, Any], depth: int) -> _Width:
        width = _Width(self._own_width(schema), self._member_width(schema, depth))
        width += _Width(item=self._item_width(schema, depth))
        for part in self._list_same_value(schema):
            width += self.measure(part, depth)
        return width

    def _list_same_value(self, schema: Mapping[str, Any]) -> Iterable[Any]:
        """Yield the schemas that the value itself is compared with, too."""
        if "$ref" in schema:
            try:
                yield resolve_pointer(self._root, schema["$ref"])
            except (LookupError, ValueError, AttributeError):
                raise _NotEstimated from None
        for key in SAME_VALUE_LISTS:
            yield from _list_children(schema.get(key))
        for key in SAME_VALUE_SCHEMAS:
            if key in schema:
                yield schema[key]
        for key in SAME_VALUE_MAPS:
            yield from _list_children(schema.get(key))

    def _own_width(self, schema: Mapping[str, Any]) -> int:
        width = 1 + len(schema)
        for key in ("enum", "const", "required"):
            if key in schema:
                width += measure_size(schema[key], 1_000_000).parts
        if schema.get("uniqueItems"):
            width += UNIQUE_WIDTH
        if isinstance(schema.get("pattern"), str):
            width += self._pattern_width([schema["pattern"]])
        return width

    def _member_width(self, schema: Mapping[str, Any], depth: int) -> int:
        named = [self._widest(each, depth) for each in _list_children(schema.get("properties"))]
        matching = schema.get("patternProperties")
        others = sum(self._widest(each, depth) for each in _list_children(matching))
        if isinstance(matching, Mapping):
            others += self._pattern_width(matching)
        for key in ("additionalProperties", "propertyNames"):
            if key in schema:
                others += self._widest(schema[key], depth)
        return max(named, default=0) + others

    def _item_width(self, schema: Mapping[str, Any], depth: int) -> int:
        placed = [self._widest(each, depth) for each in _list_children(schema.get("prefixItems"))]
        items = schema.get("items")
        if isinstance(items, list):
            placed += [self._widest(each, depth) for each in items]
        others = sum(
            self._widest(schema[key], depth)
            for key in ("items", "additionalItems", "contains")
            if key in schema and not isinstance(schema[key], list)
        )
        return max(placed, default=0) + others

    def _widest(self, schema: Any, depth: int) -> int:
        return self.measure(schema, depth).widest

    def _pattern_width(self, patterns: Iterable[str]) -> int:
        found = list(patterns)
        self.pattern_chars += sum(map(len, found))
        if self.pattern_chars > MAX_ESTIMATED_CHARS:
            raise _NotEstimated
        return PATTERN_WIDTH * len(found)


def _list_children(value: Any) -> Iterable[Any]:
    """Return the schemas in a list or a map of schemas; nothing for other values."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()
