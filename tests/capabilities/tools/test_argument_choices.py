"""What a sandbox refuses before a call, and that it never refuses what a schema allows."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.tools.argument_choices import ChoiceFinder
from mcpruntime_server.capabilities.tools.schema_annotations import MAX_NODES, SchemaDocument
from mcpruntime_server.sandboxed.library.argument_checks import MAX_CHECKS, ArgumentChecker


def refuse(schema: dict[str, Any], value: Any) -> str:
    """Return what is said about a value for the parameter `x`; "" if it is accepted."""
    choices = ChoiceFinder().find_choices(SchemaDocument(schema), schema)
    if not choices:
        return ""
    refusal = ArgumentChecker().find_refusal("x", value, eval(repr(choices)))
    return refusal.format() if refusal else ""


MODE = {"enum": ["fast", "slow"]}
SHAPE = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"type": {"const": "circle"}, "fill": {"enum": ["red", "blue"]}},
        },
        {
            "type": "object",
            "properties": {"type": {"const": "line"}, "style": {"enum": ["dashed", "dotted"]}},
            "additionalProperties": False,
        },
    ]
}
FILTER = {
    "type": "object",
    "properties": {"color": {"type": "string"}, "size": MODE},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        (
            {"anyOf": [MODE, {"type": "integer"}]},
            "fats",
            "x = 'fats'. Did you mean 'fast'? Allowed: 'fast', 'slow', an integer.",
        ),
        (
            {"anyOf": [MODE, {"type": "array", "items": MODE}, {"type": "null"}]},
            ["fast", "slwo"],
            "x[1] = 'slwo'. Did you mean 'slow'? Allowed: 'fast', 'slow'.",
        ),
        (
            {"anyOf": [MODE, {"type": "array", "items": MODE}, {"type": "null"}]},
            {},
            "x = {}. Allowed: 'fast', 'slow', None, a list.",
        ),
        ({"type": ["array", "null"], "items": MODE}, ["x"], "x[0] = 'x'. Allowed: 'fast', 'slow'."),
        (SHAPE, {"type": "square"}, "x['type'] = 'square'. Allowed: 'circle', 'line'."),
        (
            SHAPE,
            {"type": "circle", "fill": "bleu"},
            "x['fill'] = 'bleu'. Did you mean 'blue'? Allowed: 'red', 'blue'.",
        ),
        (
            SHAPE,
            {"style": "dasht", "type": "line"},
            "x['style'] = 'dasht'. Did you mean 'dashed'? Allowed: 'dashed', 'dotted'.",
        ),
        (
            SHAPE,
            {"type": "line", "styel": "dashed"},
            "x['styel']. Did you mean 'style'? Allowed keys: 'type', 'style'.",
        ),
        (
            {"type": "array", "items": {"anyOf": [SHAPE, {"type": "null"}]}},
            [None, {"type": "oval"}],
            "x[1]['type'] = 'oval'. Allowed: 'circle', 'line'.",
        ),
        (FILTER, {"colour": "red"}, "x['colour']. Did you mean 'color'? Allowed keys: 'color',"),
        (
            {"type": "object", "additionalProperties": MODE},
            {"a": "fast", "b": "no"},
            "x['b'] = 'no'. Allowed: 'fast', 'slow'.",
        ),
        (
            {"type": "object", "additionalProperties": {"type": "array", "items": MODE}},
            {"a": ["no"]},
            "x['a'][0] = 'no'.",
        ),
        (
            {
                "type": "object",
                "propertyNames": {"enum": ["low", "high"]},
                "additionalProperties": {"type": "integer"},
            },
            {"hihg": 1},
            "x['hihg']. Did you mean 'high'? Allowed keys: 'low', 'high'.",
        ),
        ({"type": "object", "additionalProperties": False}, {"a": 1}, "Allowed keys: none."),
        (
            {"$ref": "#/$defs/F", "$defs": {"F": FILTER}},
            {"size": "slw"},
            "x['size'] = 'slw'. Did you mean 'slow'?",
        ),
    ],
)
def test_what_is_not_allowed_is_named_with_its_place(
    schema: dict[str, Any], value: Any, said: str
) -> None:
    assert said in refuse(schema, value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"anyOf": [MODE, {"type": "integer"}]}, "5"),  # many servers convert it
        ({"anyOf": [MODE, {"type": "boolean"}]}, "true"),
        ({"anyOf": [MODE, {"type": "string"}]}, "any"),
        ({"anyOf": [MODE, {}]}, "any"),
        ({"anyOf": [MODE, {"minimum": 1}]}, "any"),
        ({"anyOf": [MODE, {"$ref": "#/nowhere"}]}, "any"),
        ({"anyOf": [MODE] * 9}, "any"),
        ({"anyOf": [{"properties": {"a": MODE}}, MODE]}, "any"),  # `properties` allow any text
        (FILTER, [{"colour": "red"}]),  # another type is for the server
        (FILTER, object()),
        ({**FILTER, "patternProperties": {"^col": {}}}, {"colour": 1}),
        ({"allOf": [FILTER, {"properties": {"colour": {}}}]}, {"colour": 1}),
        ({"$ref": "#/$defs/F", "properties": {"a": {}}, "$defs": {"F": FILTER}}, {"color": 1}),
        ({"type": "object", "properties": {"x": MODE}, "additionalProperties": True}, {"y": 1}),
    ],
)
def test_what_may_be_allowed_is_left_to_the_server(schema: dict[str, Any], value: Any) -> None:
    assert refuse(schema, value) == ""


# properties ---------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "kind"])
SCALARS = st.sampled_from([None, True, 0, 1, 2.5, "a", "b", "5"])
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.lists(SCALARS, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    SCALARS.map(lambda value: {"const": value}),
    st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"]).map(
        lambda kind: {"type": kind}
    ),
    st.just({"$ref": "#/$defs/D"}),
)


def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(KEYS, inner, max_size=3)
    objects = st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("object"),
            "properties": properties,
            "additionalProperties": st.just(False) | inner,
            "propertyNames": inner,
            "unevaluatedProperties": st.just(False),
            "patternProperties": st.dictionaries(st.just("^k"), inner, max_size=1),
            "$ref": st.just("#/$defs/D"),
        },
    )
    branches = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        objects,
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"anyOf": branches}, optional={"properties": properties}),
        st.fixed_dictionaries({"oneOf": branches}),
        st.fixed_dictionaries({"allOf": branches}, optional={"properties": properties}),
        st.fixed_dictionaries(
            {"type": st.just(["array", "object", "null"])},
            optional={
                "items": inner,
                "properties": properties,
            },
        ),
    )


SCHEMAS = st.recursive(LEAVES, nest, max_leaves=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.just("other"), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(SCHEMAS, SCHEMAS, VALUES)
def test_nothing_that_a_schema_allows_is_refused(
    schema: dict[str, Any], definition: dict[str, Any], value: Any
) -> None:
    schema = {"allOf": [schema], "$defs": {"D": definition}}
    try:
        is_allowed = jsonschema.Draft202012Validator(schema).is_valid(value)
    except RecursionError:
        return
    if is_allowed:
        assert refuse(schema, value) == ""


# bounds -------------------------------------------------------------------------------------------


def test_a_schema_that_branches_without_end_costs_little() -> None:
    node: dict[str, Any] = {"properties": {str(n): {"$ref": "#/$defs/N"} for n in range(99)}}
    node["properties"]["kind"] = {"enum": ["a", "b"]}
    node["type"], node["additionalProperties"] = "object", False
    parameters = {f"p{n}": {"anyOf": [{"$ref": "#/$defs/N"}, MODE]} for n in range(99)}
    finder, document = ChoiceFinder(), SchemaDocument({"$defs": {"N": node}})
    for each in parameters.values():
        assert finder.find_choices(document, each) == ()
    assert finder.visited_schemas < 2 * MAX_NODES + 4 * 100 * 100


def test_keys_are_left_out_where_they_would_be_too_many() -> None:
    properties: dict[str, Any] = {f"a-rather-long-name-of-a-field-{n}": {} for n in range(99)}
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False}
    schema["properties"] = {**properties, "m": MODE}
    choices = ChoiceFinder().find_choices(SchemaDocument(schema), schema)
    assert choices == {"fields": {"m": ("fast", "slow")}}


def test_a_large_argument_is_checked_as_far_as_a_limit() -> None:
    schema = {"type": "array", "items": {"anyOf": [SHAPE, MODE, {"type": "integer"}]}}
    choices = ChoiceFinder().find_choices(SchemaDocument(schema), schema)
    value: list[Any] = [{"type": "line", "style": "dashed"}] * MAX_CHECKS
    checker = ArgumentChecker()
    assert checker.find_refusal("x", [*value, "wrong"], choices) is None
    assert checker.find_refusal("x", ["wrong"], choices) is None
    assert ArgumentChecker().find_refusal("x", ["wrong", *value], choices) is not None
