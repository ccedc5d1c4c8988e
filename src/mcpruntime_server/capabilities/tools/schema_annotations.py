"""JSON Schema as Python annotations, as text that shows the shape of a value, and as constraints
in words.

Rule 1: a schema is hostile. It may be recursive, huge or no schema at all; every function returns
within bounded time.
Rule 2: an annotation contains only names, subscripts, literals and `|`. That is checked here.
Rule 3: what Python's types cannot express becomes `Any`. Nothing here validates a value.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ...protocol.payloads import JsonSchema
from ..json_pointers import resolve_pointer
from ..python_parsing import parse_expression
from ..source_text import SourceText
from .python_names import is_public_name, to_class_name, to_identifier

MAX_DEPTH = 8  # of the description of a value
MAX_NODES = 20_000  # schemas visited for one server
MAX_TYPES = 200  # TypedDicts of one server
MAX_FIELDS = 100  # of one object
MAX_BRANCHES = 8  # of a union
MAX_CHOICES = 50  # of a Literal
MAX_ANNOTATION_CHARS = 400
MAX_SERVER_CHARS = 1_000_000  # of all annotations of one server; the others are `Any`
MAX_SHAPE_CHARS = 1_500
MAX_REFERENCES = 16  # followed in a row
MAX_MERGED_KEYS = 50_000  # of one document; what remains to be merged then is left out

PYTHON_TYPES = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
}
NUMBER_CONSTRAINTS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}
TEXT_CONSTRAINTS = {
    "format": "{}",
    "pattern": "matching {}",
    "contentEncoding": "encoded as {}",
}
ALLOWED_NODES = (
    ast.Expression,
    ast.Name,
    ast.Load,
    ast.Subscript,
    ast.Constant,
    ast.BinOp,
    ast.BitOr,
    ast.Tuple,
    ast.UnaryOp,
    ast.USub,
)


def checked_annotation(annotation: str) -> SourceText:
    """Return `annotation` as source text, or `Any` if it is too long or not a plain type."""
    if len(annotation) > MAX_ANNOTATION_CHARS:
        return SourceText("Any")
    try:
        tree = parse_expression(annotation, feature_version=(3, 9))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return SourceText("Any")
    is_plain = all(isinstance(node, ALLOWED_NODES) for node in ast.walk(tree))
    return SourceText(annotation if is_plain else "Any")


@dataclass(frozen=True)
class TypedDictSpec:
    """One TypedDict: the field names of the JSON object and the annotations of their values."""

    name: str
    fields: dict[str, SourceText]

    @property
    def fits_class_body(self) -> bool:
        """Whether the fields can be written as a class body."""
        return all(map(is_public_name, self.fields))

    @property
    def quoted_fields(self) -> dict[str, str]:
        """The fields as a dict of strings, for the functional syntax of TypedDict."""
        return {field: str(annotation) for field, annotation in self.fields.items()}


@dataclass(frozen=True)
class ObjectSchema:
    """The keys of an object schema; `accepts_extra` means that other keys are allowed, too."""

    properties: dict[str, Any]
    required: frozenset[str]
    accepts_extra: bool


class SchemaDocument:
    """One schema as an upstream sent it; its references are resolved within it."""

    def __init__(self, root: Any) -> None:
        self.root = root if isinstance(root, dict) else {}
        self._remaining_keys = MAX_MERGED_KEYS

    def flatten(self, schema: Any) -> JsonSchema:
        """Return `schema` with references resolved and `allOf` merged; {} if it is not a schema."""
        followed, _ = self.resolve(schema)
        parts = followed.get("allOf")
        if not isinstance(parts, list):
            return followed
        merged: JsonSchema = {}
        for part, _ in map(self.resolve, [followed, *parts[:MAX_BRANCHES]]):
            merged = self._merge(merged, part)
        merged.pop("allOf", None)
        return merged

    def resolve(self, schema: Any) -> tuple[JsonSchema, str]:
        """Return the schema that `schema` is or refers to, and its name among the definitions."""
        name = ""
        for _ in range(MAX_REFERENCES):
            if not isinstance(schema, dict):
                return {}, ""
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema, name
            siblings = {key: value for key, value in schema.items() if key != "$ref"}
            name = reference.rpartition("/")[2]
            schema = self.resolve_pointer(reference)
            if siblings and isinstance(schema, dict):
                schema = self._merge(schema, siblings)
        return {}, ""

    def _merge(self, schema: JsonSchema, other: JsonSchema) -> JsonSchema:
        """Return two schemas as one; only the first if this document has merged too much."""
        for each in (schema, other):
            lists = (each.get("properties"), each.get("required"))
            self._remaining_keys -= len(each) + sum(
                len(found) for found in lists if isinstance(found, dict | list)
            )
        return merge_schemas(schema, other) if self._remaining_keys > 0 else schema

    def resolve_pointer(self, reference: str) -> Any:
        """Return what a reference within this document points to, or {}."""
        try:
            return resolve_pointer(self.root, reference)
        except (LookupError, ValueError):
            return {}

    def object_schema(self, schema: Any) -> ObjectSchema:
        """Return the keys of an object schema, those of its `anyOf` and `oneOf` included."""
        schema = self.flatten(schema)
        considered = islice(as_dict(schema.get("properties")).items(), MAX_FIELDS + 1)
        properties = {key: value for key, value in considered if isinstance(key, str)}
        required = [key for key in as_list(schema.get("required")) if isinstance(key, str)]
        branches = [
            branch
            for key in ("anyOf", "oneOf")
            for branch in as_list(schema.get(key))[:MAX_BRANCHES]
        ]
        for branch in branches:
            for key, value in as_dict(self.flatten(branch).get("properties")).items():
                properties.setdefault(key, value)
        for key in required:
            properties.setdefault(key, {})
        shown = dict(islice(properties.items(), MAX_FIELDS))
        is_open = not forbids_extra(schema) or bool(branches) or len(properties) > len(shown)
        return ObjectSchema(shown, frozenset(required), is_open)


def merge_schemas(schema: JsonSchema, other: JsonSchema) -> JsonSchema:
    """Return the keywords of both, `other` first, with the properties of both."""
    merged = {**schema, **other}
    properties = {**as_dict(schema.get("properties")), **as_dict(other.get("properties"))}
    if properties:
        merged["properties"] = properties
    if required := [*as_list(schema.get("required")), *as_list(other.get("required"))]:
        merged["required"] = required
    return merged


def forbids_extra(schema: JsonSchema) -> bool:
    """Return whether an object schema allows no other keys than those that it names."""
    return any(
        schema.get(key) is False or schema.get(key) == {"not": {}}
        for key in ("additionalProperties", "unevaluatedProperties")
    )


def as_dict(value: Any) -> dict[Any, Any]:
    """Return `value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return `value` if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def json_types(schema: JsonSchema) -> list[str]:
    """Return the JSON types that `schema` names or implies, `null` last."""
    named = schema.get("type")
    candidates = [named] if isinstance(named, str) else as_list(named)
    found = [kind for kind in candidates if isinstance(kind, str)]
    if not found and isinstance(schema.get("properties"), dict):
        found = ["object"]
    if not found and ("items" in schema or "prefixItems" in schema):
        found = ["array"]
    if found and schema.get("nullable") is True:
        found = [*found, "null"]
    return sorted(dict.fromkeys(found), key=lambda kind: kind == "null")


def literal_values(schema: JsonSchema) -> list[Any] | None:
    """Return the values that `schema` allows if they fit into a Literal, else None."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not 0 < len(values) <= MAX_CHOICES:
        return None
    fits = all(value is None or type(value) in (str, int, bool) for value in values)
    return values if fits else None


def join_union(parts: list[str]) -> str:
    """Return the annotation that allows any of `parts`."""
    distinct = sorted(dict.fromkeys(parts), key=lambda part: part == "None")
    return "Any" if "Any" in distinct or not distinct else " | ".join(distinct)


class AnnotationBuilder:
    """Builds the annotations of one server's tools, with TypedDicts."""

    def __init__(self, reserved: set[str]) -> None:
        self.typed_dicts: list[TypedDictSpec] = []
        self._used_names = set(reserved)
        # By identity of the schema; the schema is kept so that its id is not used again.
        self._named_schemas: dict[int, tuple[Any, str]] = {}
        self._visited_nodes = 0
        self._remaining_chars = MAX_SERVER_CHARS

    def annotate(self, document: SchemaDocument, schema: Any, hint: str) -> SourceText:
        """Return the annotation of a value of `schema`; `hint` names an anonymous TypedDict."""
        return self._check_annotation(self._build_annotation(document, schema, hint, 0))

    def _check_annotation(self, annotation: str) -> SourceText:
        """Return `annotation` as source text; `Any` once those of this server are too long."""
        if self._remaining_chars <= 0:
            return SourceText("Any")
        checked = checked_annotation(annotation)
        self._remaining_chars -= len(checked)
        return checked

    def _build_annotation(
        self, document: SchemaDocument, schema: Any, hint: str, depth: int
    ) -> str:
        self._visited_nodes += 1
        if depth > MAX_DEPTH or self._visited_nodes > MAX_NODES:
            return "Any"
        followed, name = document.resolve(schema)
        flat = document.flatten(schema)
        allowed = literal_values(flat)
        if allowed:
            text = f"Literal[{', '.join(map(repr, allowed))}]"
            if len(text) <= MAX_ANNOTATION_CHARS:
                return text
            return join_union([PYTHON_TYPES.get(kind, "Any") for kind in json_types(flat)])
        for key in ("anyOf", "oneOf"):
            if as_list(flat.get(key)) and not as_dict(flat.get("properties")):
                branches = flat[key][:MAX_BRANCHES]
                parts = [
                    self._build_annotation(document, branch, hint, depth + 1) for branch in branches
                ]
                return join_union(parts + ["None"] * (flat.get("nullable") is True))
        if name:
            hint = to_class_name(name)
        return join_union(
            [
                self._annotate_type(kind, document, followed, flat, hint, depth)
                for kind in json_types(flat)
            ]
        )

    def _annotate_type(
        self,
        kind: str,
        document: SchemaDocument,
        followed: Any,
        flat: JsonSchema,
        hint: str,
        depth: int,
    ) -> str:
        if kind == "array":
            item = "Any"
            if "items" in flat:
                item = self._build_annotation(document, flat["items"], f"{hint}Item", depth + 1)
            return f"list[{item}]"
        if kind != "object":
            return PYTHON_TYPES.get(kind, "Any")
        if as_dict(flat.get("properties")):
            return self._add_typed_dict(document, followed, hint, depth)
        value = "Any"
        extra = flat.get("additionalProperties")
        if isinstance(extra, dict):
            value = self._build_annotation(document, extra, f"{hint}Value", depth + 1)
        return f"dict[str, {value}]"

    def _add_typed_dict(
        self, document: SchemaDocument, schema: JsonSchema, hint: str, depth: int
    ) -> str:
        """Return the name of the TypedDict for an object; its fields may refer back to it."""
        known = self._named_schemas.get(id(schema))
        if known:
            return known[1]
        if len(self._named_schemas) >= MAX_TYPES:
            return "dict[str, Any]"
        parts = document.object_schema(schema)
        if not parts.properties:  # the document has merged too much
            return "dict[str, Any]"
        name = self._unused_name(hint)
        self._named_schemas[id(schema)] = (schema, name)
        place = len(self.typed_dicts)
        fields = {
            key: self._annotate_field(
                document, value, f"{name}{to_class_name(key)}", depth, key in parts.required
            )
            for key, value in parts.properties.items()
        }
        self.typed_dicts.insert(place, TypedDictSpec(name, fields))
        return name

    def _annotate_field(
        self, document: SchemaDocument, schema: Any, hint: str, depth: int, required: bool
    ) -> SourceText:
        text = self._check_annotation(self._build_annotation(document, schema, hint, depth + 1))
        return text if required else SourceText(f"NotRequired[{text}]")

    def _unused_name(self, hint: str) -> str:
        base = to_identifier(hint, "Record")
        name, number = base, 2
        while name in self._used_names:
            name, number = f"{base}{number}", number + 1
        self._used_names.add(name)
        return name


def describe_shape(document: SchemaDocument, schema: Any) -> str:
    """Return a shape like `{"name": str, "tags"?: [str]}`; `?` marks an optional key."""
    text = _ShapeWriter(document).describe(schema, ())
    return text if len(text) <= MAX_SHAPE_CHARS else text[:MAX_SHAPE_CHARS] + " ..."


class _ShapeWriter:
    """Writes one shape; `path` holds the enclosing schemas, so that recursion ends."""

    def __init__(self, document: SchemaDocument) -> None:
        self._document = document
        self._remaining_nodes = MAX_FIELDS * 2

    def describe(self, schema: Any, path: tuple[int, ...]) -> str:
        """Return the shape of one value."""
        self._remaining_nodes -= 1
        followed, _ = self._document.resolve(schema)
        if len(path) > MAX_DEPTH or self._remaining_nodes < 0 or id(followed) in path:
            return "..."
        flat, path = self._document.flatten(followed), (*path, id(followed))
        allowed = literal_values(flat)
        if allowed:
            return " | ".join(json.dumps(value, ensure_ascii=False) for value in allowed)
        for key in ("anyOf", "oneOf"):
            if as_list(flat.get(key)) and not as_dict(flat.get("properties")):
                return join_union(
                    [self.describe(branch, path) for branch in flat[key][:MAX_BRANCHES]]
                )
        return join_union([self._describe_type(kind, flat, path) for kind in json_types(flat)])

    def _describe_type(self, kind: str, flat: JsonSchema, path: tuple[int, ...]) -> str:
        if kind == "array":
            return f"[{self.describe(flat.get('items'), path)}]"
        if kind != "object":
            return PYTHON_TYPES.get(kind, "Any")
        if as_dict(flat.get("properties")):
            return self._describe_object(flat, path)
        extra = flat.get("additionalProperties")
        value = self.describe(extra, path) if isinstance(extra, dict) else "Any"
        return f"{{str: {value}}}"

    def _describe_object(self, flat: JsonSchema, path: tuple[int, ...]) -> str:
        parts = self._document.object_schema(flat)
        fields = []
        for key, value in parts.properties.items():
            mark = "" if key in parts.required else "?"
            name = json.dumps(key, ensure_ascii=False)
            fields.append(f"{name}{mark}: {self.describe(value, path)}")
        return f"{{{', '.join(fields)}}}"


def describe_constraints(schema: JsonSchema) -> Iterator[str]:
    """Yield the other constraints of `schema` in words."""
    for key, words in NUMBER_CONSTRAINTS.items():
        if type(schema.get(key)) in (int, float):
            yield words.format(f"{schema[key]:.12g}")
    for key, words in TEXT_CONSTRAINTS.items():
        if isinstance(schema.get(key), str):
            yield words.format(schema[key][:100])
    if schema.get("uniqueItems") is True:
        yield "unique items"
    if isinstance(schema.get("enum"), list) and literal_values(schema) is None:
        values = ", ".join(str(value)[:40] for value in schema["enum"][:MAX_CHOICES])
        yield f"one of {values}"[:400]
