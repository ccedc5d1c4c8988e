"""JSON Schema as Python types and as shapes, however strange the schema."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.types import Tool

from mcpruntime_server.capabilities.tools.schema_annotations import (
    MAX_ANNOTATION_CHARS,
    MAX_FIELDS,
    MAX_SHAPE_CHARS,
    MAX_TYPES,
    AnnotationBuilder,
    SchemaDocument,
    checked_annotation,
    describe_constraints,
    describe_shape,
)
from mcpruntime_server.capabilities.tools.shim_generator import describe_module, render_shim
from tests.upstreams.hostile import SCHEMAS, deep, wide


def annotation(schema: Any, types: AnnotationBuilder | None = None, root: Any = None) -> str:
    return (types or AnnotationBuilder(set())).annotate(
        SchemaDocument(root if root is not None else schema), schema, "Hint"
    )


@pytest.mark.parametrize(
    ("schema", "expected", "looks"),
    [
        ({"type": "string"}, "str", "str"),
        ({"type": ["integer", "null"]}, "int | None", "int | None"),
        ({"type": "number", "nullable": True}, "float | None", "float | None"),
        ({"enum": ["a", 1, None]}, "Literal['a', 1, None]", '"a" | 1 | null'),
        ({"const": True}, "Literal[True]", "true"),
        ({"enum": [1.5, {}]}, "Any", "Any"),
        ({"type": "array", "items": {"type": "string"}}, "list[str]", "[str]"),
        ({"items": {}}, "list[Any]", "[Any]"),
        ({"type": "array"}, "list[Any]", "[Any]"),
        ({"type": "object"}, "dict[str, Any]", "{str: Any}"),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            "dict[str, int]",
            "{str: int}",
        ),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, "str | None", "str | None"),
        ({"oneOf": [{"type": "string"}, {"type": "string"}]}, "str", "str"),
        ({"anyOf": [{"type": "string"}, {}]}, "Any", "Any"),
        ({"allOf": [{"type": "string"}, {"minLength": 1}]}, "str", "str"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"type": "string"}}}, "str", "str"),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "integer"}}}, "int", "int"),
        ({"$ref": "#/missing"}, "Any", "Any"),
        ({"$ref": "https://elsewhere.example/schema"}, "Any", "Any"),
        ({"type": "unheard-of"}, "Any", "Any"),
        (True, "Any", "Any"),
        (None, "Any", "Any"),
        ("string", "Any", "Any"),
    ],
)
def test_a_schema_reads_as_a_type_and_as_a_shape(schema: Any, expected: str, looks: str) -> None:
    assert annotation(schema) == expected
    assert describe_shape(SchemaDocument(schema), schema) == looks


def test_objects_become_typed_dicts_with_what_may_be_absent_marked() -> None:
    schema = {
        "type": "object",
        "properties": {
            "key": {"type": "string"},
            "parent": {"$ref": "#"},
            "a b": {"type": "integer"},
        },
        "required": ["key"],
    }
    types = AnnotationBuilder({"Hint"})
    assert annotation(schema, types) == "Hint2"
    record = types.typed_dicts[0]
    assert record.fields == {
        "key": "str",
        "parent": "NotRequired[Hint2]",
        "a b": "NotRequired[int]",
    }
    assert not record.fits_class_body
    assert (
        describe_shape(
            SchemaDocument(schema), {**schema, "properties": {"key": {"type": "string"}}}
        )
        == '{"key": str}'
    )


def test_a_definition_lends_its_name_and_is_made_once() -> None:
    root = {"$defs": {"Bug": {"type": "object", "properties": {"id": {"type": "integer"}}}}}
    types = AnnotationBuilder(set())
    for _ in range(2):
        assert (
            annotation({"type": "array", "items": {"$ref": "#/$defs/Bug"}}, types, root)
            == "list[Bug]"
        )
    assert len(types.typed_dicts) == 1


def test_all_of_puts_its_parts_together() -> None:
    parts = SchemaDocument({}).object_schema(
        {
            "allOf": [
                {"properties": {"a": {"type": "string"}}, "required": ["a"]},
                {"properties": {"b": {"type": "integer"}}},
            ]
        }
    )
    assert list(parts.properties) == ["a", "b"]
    assert parts.required == {"a"}


@pytest.mark.parametrize(
    ("schema", "is_open"),
    [
        ({"type": "object"}, True),
        ({"properties": {"a": {}}}, True),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}, True),
        ({"properties": {"a": {}}, "additionalProperties": False}, False),
        ({"properties": {"a": {}}, "additionalProperties": {"not": {}}}, False),
        ({"properties": {"a": {}}, "unevaluatedProperties": False}, False),
        ({"allOf": [{"properties": {"a": {}}, "additionalProperties": False}]}, False),
    ],
)
def test_a_schema_that_does_not_forbid_other_keys_is_open(
    schema: dict[str, Any], is_open: bool
) -> None:
    assert SchemaDocument({}).object_schema(schema).accepts_extra is is_open


@pytest.mark.parametrize(
    "schema", [{"additionalProperties": True}, {"anyOf": [{"properties": {"a": {}}}]}]
)
def test_an_object_that_takes_other_keys_is_open(schema: Any) -> None:
    assert SchemaDocument({}).object_schema(schema).accepts_extra


def test_what_a_type_cannot_say_is_said_in_words() -> None:
    schema = {
        "minimum": 1,
        "maximum": 10,
        "pattern": "^a",
        "format": "uri",
        "maxItems": 3,
        "uniqueItems": True,
    }
    assert list(describe_constraints(schema)) == [
        ">= 1",
        "<= 10",
        "at most 3 items",
        "uri",
        "matching ^a",
        "unique items",
    ]
    assert list(describe_constraints({"enum": [1.5, 2.5]})) == ["one of 1.5, 2.5"]
    assert (
        list(describe_constraints({"minimum": "x", "pattern": 3, "enum": 7, "maximum": True})) == []
    )


@pytest.mark.parametrize(
    "text", ["__import__('os')", "a.b", "lambda: 0", "(yield)", "[x for x in y]", "1 +", "x" * 9999]
)
def test_an_annotation_that_is_more_than_a_type_becomes_any(text: str) -> None:
    assert checked_annotation(text) == "Any"


@pytest.mark.parametrize("schema", [*SCHEMAS, wide(12), deep(500)])
def test_hostile_schemas_are_answered_within_bounds(schema: Any) -> None:
    types = AnnotationBuilder(set())
    assert len(annotation(schema, types)) <= MAX_ANNOTATION_CHARS
    assert len(types.typed_dicts) <= MAX_TYPES
    assert all(len(record.fields) <= MAX_FIELDS for record in types.typed_dicts)
    assert len(describe_shape(SchemaDocument(schema), schema)) <= MAX_SHAPE_CHARS + 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=6), children, max_size=4)
    ),
    max_leaves=20,
)
WORDS = [
    "type",
    "properties",
    "items",
    "$ref",
    "anyOf",
    "oneOf",
    "allOf",
    "enum",
    "const",
    "required",
    "$defs",
]
MORE = [
    "additionalProperties",
    "nullable",
    "default",
    "description",
    "title",
    "minimum",
    "pattern",
    "format",
]
VALUES = ["object", "array", "string", "integer", "null", "#", "#/$defs/A", "#/properties/A"]
SCHEMA = st.recursive(
    JSON | st.sampled_from(VALUES),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.sampled_from([*WORDS, *MORE, "A", "class"]), children, max_size=6)
    ),
    max_leaves=30,
)


@given(SCHEMA)
def test_any_json_is_answered(schema: Any) -> None:
    types = AnnotationBuilder(set())
    assert checked_annotation(annotation(schema, types)) == annotation(
        schema, AnnotationBuilder(set())
    )
    assert isinstance(describe_shape(SchemaDocument(schema), schema), str)
    assert all(
        isinstance(words, str)
        for words in describe_constraints(SchemaDocument(schema).flatten(schema))
    )


def test_a_document_that_merges_large_schemas_again_and_again_ends_soon() -> None:
    large: Any = {"properties": {f"k{n}": {} for n in range(2_500)}}
    again = {"allOf": [{"$ref": "#/$defs/large", "title": "t"}] * 8}
    root: dict[str, Any] = {
        "$defs": {"large": large},
        "properties": {f"p{n}": again for n in range(100)},
    }
    document = SchemaDocument(root)
    first = document.object_schema(root["properties"]["p0"])
    assert len(first.properties) == 100
    assert document.flatten(root["properties"]["p99"]).get("properties", {}) == {}
    tool = Tool(name="x", input_schema=root, output_schema=root)
    assert "def x(" in render_shim(describe_module("up", "up", [tool]))
