"""The shapes of results, inferred from the results."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.tools.observed_shapes import MAX_KEYS, infer_shape, merge_shapes
from mcpruntime_server.capabilities.tools.schema_annotations import SchemaDocument, describe_shape
from mcpruntime_server.capabilities.tools.shim_store import is_shape


def seen(*values: Any) -> str:
    found: dict[str, Any] = {}
    for value in values:
        found = merge_shapes(found, infer_shape(value))
    return describe_shape(SchemaDocument(found), found)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["text"], "str"),
        ([1, 2.5], "float"),
        ([True, None], "bool | None"),
        ([[1, "a"]], "[int | str]"),
        ([[]], "[Any]"),
        ([{"id": 1, "tags": ["x"]}], '{"id": int, "tags": [str]}'),
        ([{"id": 1}, {"id": 2, "note": "x"}], '{"id": int, "note"?: str}'),
        ([[{"id": 1}, {"id": None}]], '[{"id": int | None}]'),
        ([{"a": {"b": 1}}, {"a": None}], '{"a": {"b": int} | None}'),
        ([{"a": 1}, "text"], '{"a": int} | str'),
    ],
)
def test_results_show_their_shape(values: list[Any], expected: str) -> None:
    assert seen(*values) == expected


@pytest.mark.parametrize(
    "key", ["alice@example.com", "2026-01-01", "user1234", "/etc/passwd", "", "a" * 50, "naïve"]
)
def test_keys_that_are_values_are_not_learned(key: str) -> None:
    assert seen({key: 1}) == "{str: int}"
    assert seen({"name": 1}, {key: 1}) == "{str: int}"


def test_an_object_with_very_many_keys_is_a_mapping() -> None:
    names = [f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij"]
    assert seen(dict.fromkeys(names, "x")) == "{str: str}"
    halves = [dict.fromkeys(names[start : start + MAX_KEYS], 1) for start in (0, MAX_KEYS)]
    assert seen(*halves) == "{str: int}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children) | st.dictionaries(st.text() | st.sampled_from(["id", "name"]), children)
    ),
)


@given(st.lists(JSON, max_size=4))
def test_any_results_can_be_learned_kept_and_shown(values: list[Any]) -> None:
    found: dict[str, Any] = {}
    for value in values:
        found = merge_shapes(found, infer_shape(value))
    assert is_shape(json.loads(json.dumps(found)))
    assert isinstance(describe_shape(SchemaDocument(found), found), str)
    for value in values:
        assert merge_shapes(found, infer_shape(value)) == found


@given(st.text(min_size=4, alphabet="#äöü日本"))
def test_no_value_is_ever_learned(secret: str) -> None:
    data = {"user": secret, "list": [secret], secret: {secret: secret}}
    assert secret not in json.dumps(infer_shape(data), ensure_ascii=False)
