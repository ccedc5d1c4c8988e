"""What the schema of a parameter allows, as far as a sandbox checks it before a call.

That is: values of an enumeration, in items, fields and branches as well, and the keys of objects.
`sandboxed/library/argument_checks.py` describes the form of the result and does the checks.

Rule 1: a schema is hostile. Every function returns within bounded time, and the result is small.
Rule 2: what the schema may allow is not refused. Types alone are checked only where they tell the
branches of a union apart.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, TypeAlias

from ...protocol.payloads import JsonSchema
from .schema_annotations import (
    MAX_BRANCHES,
    MAX_FIELDS,
    MAX_NODES,
    MAX_SHAPE_CHARS,
    SchemaDocument,
    as_dict,
    as_list,
    forbids_extra,
    json_types,
    literal_values,
)

MAX_DEPTH = 6  # of items, fields and branches
MAX_CHARS = 4_000  # of the source text for one parameter
MAX_SERVER_CHARS = 1_000_000  # of all parameters of one server; others are not checked
JSON_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
NULL_TYPE = "null"
# With one of these, the keys of an object do not follow from `properties` alone.
OTHER_KEY_RULES = ("anyOf", "oneOf", "patternProperties", "if", "dependentSchemas", "$dynamicRef")

Choices: TypeAlias = "tuple[Any, ...] | str | list[Any] | dict[str, Any]"  # (): not known


class ChoiceFinder:
    """Finds what the parameters of one server's tools allow."""

    def __init__(self) -> None:
        self.visited_schemas = 0
        self._remaining_chars = MAX_SERVER_CHARS
        self._checks_keys = True

    def find_choices(self, document: SchemaDocument, schema: Any) -> Choices:
        """Return what `schema` allows; () if that is not known, or too long."""
        if self._remaining_chars <= 0:
            return ()
        for self._checks_keys in (True, False):
            choices = self._find(document, schema, 0)
            chars = len(repr(choices))
            if chars <= MAX_CHARS:
                self._remaining_chars -= chars
                return choices
        return ()

    def find_extra_choices(self, document: SchemaDocument) -> Choices:
        """Return what the schema of a tool allows for parameters that it does not name."""
        flat = document.flatten(document.root)
        extra = flat.get("additionalProperties")
        if not isinstance(extra, dict) or any(key in flat for key in OTHER_KEY_RULES):
            return ()
        return self.find_choices(document, extra)

    def _find(self, document: SchemaDocument, schema: Any, depth: int) -> Choices:
        self.visited_schemas += 1
        if values := allowed_values(document, schema):
            return values
        if depth >= MAX_DEPTH or self.visited_schemas > MAX_NODES:
            return ()
        flat = document.flatten(schema)
        branches = find_branches(flat)
        if branches and "properties" not in flat:
            return self._find_in_union(document, branches, depth)
        kinds = json_types(flat)
        if "array" in kinds and "prefixItems" not in flat:
            items = self._find(document, flat.get("items"), depth + 1)
            return {"items": items} if items else ()
        return self._find_in_object(document, schema, flat, depth) if "object" in kinds else ()

    def _find_in_union(self, document: SchemaDocument, branches: list[Any], depth: int) -> Choices:
        """Return the distinct branches; () if one of them may be anything, or all are types."""
        found: list[Choices] = []
        for branch in branches if len(branches) <= MAX_BRANCHES else ():
            alternatives = self._find_in_branch(document, branch, depth + 1)
            if not alternatives:
                return ()
            found += [each for each in alternatives if each not in found]
        if all(isinstance(each, str) for each in found):
            return ()
        others = [each for each in found if each != NULL_TYPE]
        return found if len(others) > 1 else others[0]

    def _find_in_branch(self, document: SchemaDocument, branch: Any, depth: int) -> list[Choices]:
        """Return what a branch of a union allows, for each of its types; [] if not known."""
        choices = self._find(document, branch, depth)
        if isinstance(choices, list):
            return choices
        if choices and isinstance(choices, tuple):
            return [choices]
        flat = document.flatten(branch)
        kinds = json_types(flat) if "type" in flat else []
        if not JSON_TYPES.issuperset(kinds):
            return []
        applies_to = ""
        if isinstance(choices, dict):
            applies_to = "array" if "items" in choices else "object"
        return [choices if kind == applies_to else kind for kind in kinds]

    def _find_in_object(
        self, document: SchemaDocument, schema: Any, flat: JsonSchema, depth: int
    ) -> Choices:
        properties = as_dict(flat.get("properties"))
        fields = {
            key: self._find(document, value, depth + 1)
            for key, value in islice(properties.items(), MAX_FIELDS)
            if isinstance(key, str)
        }
        others: Choices | bool = ()
        if self._checks_keys and has_known_keys(document, schema, flat):
            extra = flat.get("additionalProperties")
            others = self._find(document, extra, depth + 1) if isinstance(extra, dict) else ()
            names = allowed_values(document, flat.get("propertyNames"))
            if names and all(isinstance(each, str) for each in names):
                fields = {name: fields.get(name) or others for name in names}
                others = False
            elif forbids_extra(flat):
                others = False
        if others is False or others:
            return {"fields": fields, "others": others}
        fields = {key: choices for key, choices in fields.items() if choices}
        return {"fields": fields} if fields else ()


def find_branches(flat: JsonSchema) -> list[Any]:
    """Return the branches of a schema of which a value has to match at least one."""
    return as_list(flat.get("anyOf")) or as_list(flat.get("oneOf"))


def has_known_keys(document: SchemaDocument, schema: Any, flat: JsonSchema) -> bool:
    """Return whether `properties` has all keys that an object schema names."""
    followed, _ = document.resolve(schema)
    parts = as_list(followed.get("allOf"))
    is_simple = len(parts) <= 1 and not any("allOf" in document.resolve(part)[0] for part in parts)
    is_complete = len(as_dict(flat.get("properties"))) <= MAX_FIELDS
    return is_simple and is_complete and not any(key in flat for key in OTHER_KEY_RULES)


def allowed_values(document: SchemaDocument, schema: Any) -> tuple[Any, ...]:
    """Return all values that `schema` allows, if they are few scalars; else nothing."""
    flat = document.flatten(schema)
    values = literal_values(flat)
    if values is None:
        branches = find_branches(flat)
        if not 0 < len(branches) <= MAX_BRANCHES:
            return ()
        values = []
        for branch in map(document.flatten, branches):
            found = [None] if json_types(branch) == [NULL_TYPE] else literal_values(branch)
            if not found:
                return ()
            values += found
    if flat.get("nullable") is True:
        values = [*values, None]
    return tuple(values) if len(repr(values)) <= MAX_SHAPE_CHARS else ()
