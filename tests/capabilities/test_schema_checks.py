"""Schemas of strangers: what they cost is known before, and what costs too much ends in time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities import schema_checks
from mcpruntime_server.capabilities.json_schemas import check_schema, compile_schema
from mcpruntime_server.capabilities.schema_checks import (
    SchemaChecker,
    SchemaCheckFailed,
    check_value,
    encode_in_slices,
    open_schema_checker,
    prepare_schema,
)
from mcpruntime_server.capabilities.schema_cost import estimate_cost, find_excess, measure_size
from mcpruntime_server.errors import CallFailed

TREE = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
GROWING = {
    "$ref": "#/$defs/d0",
    "$defs": {
        **{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)},
        "d40": {"type": "integer"},
    },
}
DEEPENING = {"type": "object", "properties": {"x": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}}
NOT_CHEAP: dict[str, tuple[Any, Any]] = {
    "it refers to itself": (TREE, {"left": {"right": {}}}),
    "it looks back": ({"pattern": r"^(a)\1$"}, "aa"),
    "it looks ahead": ({"pattern": r"^(?!b)a"}, "a"),
    "its patterns are long": ({"pattern": "a?" * 400}, "a"),
    "it evaluates again": ({"properties": {"a": {}}, "unevaluatedProperties": False}, {"a": 1}),
    "it refers dynamically": ({"$dynamicAnchor": "a", "items": {"$dynamicRef": "#a"}}, [[]]),
    "it has another base": ({"items": {"$id": "http://a.example/b", "type": "integer"}}, [1]),
    "it has many parts": ({"enum": list(range(5_000))}, 1),
    "the value has many parts": ({"items": {"type": "integer"}}, [1] * 50_000),
    "the value has many letters for a pattern": ({"pattern": "^a+$"}, "a" * 10_000),
}


@pytest.fixture(scope="module")
async def checker() -> AsyncIterator[SchemaChecker]:
    async with open_schema_checker() as checker:
        yield checker


async def find_violation(checker: SchemaChecker, value: Any, schema: Any) -> str:
    return await checker.find_violation(value, prepare_schema(schema))


def nest(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = {"x": value}
    return value


@pytest.mark.parametrize("reason", NOT_CHEAP)
async def test_what_may_cost_much_is_compared_in_a_process(
    checker: SchemaChecker, reason: str
) -> None:
    schema, value = NOT_CHEAP[reason]
    assert not prepare_schema(schema).is_cheap_for(value)
    assert await find_violation(checker, value, schema) == ""


async def test_cheap_comparisons_start_no_process() -> None:
    schema = {"type": "object", "properties": {"day": {"type": "string", "pattern": r"^\d+$"}}}
    async with open_schema_checker() as checker:
        assert await find_violation(checker, {"day": "12"}, schema) == ""
        found = await find_violation(checker, {"day": "x"}, schema)
        assert found.startswith('$.day: "x" does not match')
        assert checker._process is None


@pytest.mark.parametrize(
    ("schema", "value", "violation"),
    [
        (TREE, {"left": {"right": 3}}, '$.left.right: 3 is not of type "object"'),
        ({"enum": ["a", "b"]}, "c", 'the value: "c" is not one of "a", "b"'),
        ({"anyOf": [{"const": 1}, {"type": "null"}]}, 2, "the value: 2 is not one of 1, null"),
        ({"items": {"type": "integer"}}, [1, "x"], '$[1]: "x" is not of type "integer"'),
    ],
)
async def test_a_violation_says_where_and_how(
    checker: SchemaChecker, schema: Any, value: Any, violation: str
) -> None:
    assert await find_violation(checker, value, schema) == violation


async def test_a_pattern_takes_linear_time(checker: SchemaChecker) -> None:
    for pattern in ("^(a+)+$", "^(a|a)*$", "^(a|a?)+$", "^(?:a+){1,30}$", r"^(?=(a+)+$)a*b?$"):
        assert "does not match" in await find_violation(
            checker, "a" * 30 + "!", {"pattern": pattern}
        )


async def test_a_comparison_that_takes_too_long_ends_and_the_next_one_works(
    checker: SchemaChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_checks, "CHECK_TIMEOUT_S", 0.5)
    for schema, value in ((GROWING, 1), (DEEPENING, nest(60, "the end"))):
        with pytest.raises(SchemaCheckFailed, match=r"takes more than 0\.5 s"):
            await find_violation(checker, value, schema)
    monkeypatch.undo()
    assert await find_violation(checker, {"left": {}}, TREE) == ""


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://198.51.100.1/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/$defs/missing"},
        {"pattern": "("},
        {"pattern": "((a{1,1000}){1,1000}){1,1000}"},
        {"type": "number of things"},
    ],
)
async def test_a_schema_that_cannot_be_used_is_a_failure_and_nothing_is_fetched(
    checker: SchemaChecker, schema: Any
) -> None:
    with pytest.raises(SchemaCheckFailed, match="the schema is not valid"):
        await find_violation(checker, {"a": 1}, schema)


async def test_a_dialect_is_honoured_and_an_unknown_one_read_as_the_newest(
    checker: SchemaChecker,
) -> None:
    tuple_of = {"items": [{"type": "integer"}]}
    draft_7 = {"$schema": "http://json-schema.org/draft-07/schema#", **tuple_of}
    assert "integer" in await find_violation(checker, ["x"], draft_7)
    unknown = {"$schema": "https://strange.example/", "prefixItems": tuple_of["items"]}
    assert "integer" in await find_violation(checker, ["x"], unknown)


def test_a_schema_that_grows_when_it_is_followed_has_a_great_width() -> None:
    width = estimate_cost(GROWING, 1).width
    assert width is not None
    assert width > 2**40
    assert estimate_cost(TREE, 1).width is None
    assert estimate_cost(DEEPENING, 1).width is None


def test_the_width_covers_what_is_compared_with_one_part() -> None:
    schema = {
        "properties": {"a": {"enum": [1, 2, 3]}, "b": {"type": "string"}},
        "additionalProperties": {"type": "object"},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    }
    width = estimate_cost(schema, 10).width
    assert width is not None
    assert 7 <= width <= 30


def test_the_size_of_a_schema_is_bounded_in_parts_letters_and_depth() -> None:
    deep: Any = {}
    for _ in range(500):
        deep = {"items": deep}
    for value, problem in (
        ({"enum": list(range(300))}, "more than 200 parts"),
        ({"description": "x" * 11_000}, "more than 10,000 characters"),
        (deep, "nested more than 64 levels"),
        ({"type": "object"}, ""),
    ):
        excess = find_excess(measure_size(value, 200), 200)
        assert problem in excess if problem else excess == ""


async def test_others_have_their_turn_while_a_large_value_is_encoded() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count_turns)
        started = time.perf_counter()
        assert len(await encode_in_slices([{}] * 200_000)) == 800_000
        assert turns > (time.perf_counter() - started) / 0.1
        tasks.cancel_scope.cancel()


async def test_a_value_of_a_model_is_compared_in_a_process_if_it_is_large() -> None:
    schema = {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}
    check_schema(schema)
    assert await check_value([1, None], schema) == ""
    assert await check_value([1] * 30_000 + ["x"], schema) != ""


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1_500)},
            "$ref": "#/$defs/d0",
        },
        GROWING,
        {"enum": list(range(100_000))},
    ],
)
def test_code_gets_a_clear_error_for_a_schema_that_is_too_large(schema: Any) -> None:
    with pytest.raises(CallFailed) as caught:
        check_schema(schema)
    assert caught.value.kind == "invalid_arguments"


def test_a_compiled_schema_takes_the_numbers_of_python() -> None:
    validator = compile_schema({"multipleOf": 1e-300})
    assert validator.is_valid(10**400)
