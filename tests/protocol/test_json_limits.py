"""JSON values are counted where they are, and not where a text looks like them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.protocol import wire
from mcpruntime_server.protocol.json_limits import ValueCounter, has_more_values, is_nested_deeper

JSON_DATA = st.recursive(
    st.none() | st.integers() | st.text('ab",[{\\'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('a",[{\\'), inner),
    max_leaves=30,
)


def count_values(data: Any) -> int:
    """Return the number of containers, and of values after the first of each."""
    if not isinstance(data, dict | list):
        return 0
    items = data.values() if isinstance(data, dict) else data
    return 1 + max(len(data) - 1, 0) + sum(map(count_values, items))


def depth(data: Any) -> int:
    """Return how deep containers are nested."""
    if not isinstance(data, dict | list):
        return 0
    items = data.values() if isinstance(data, dict) else data
    return 1 + max(map(depth, items), default=0)


@given(JSON_DATA, st.integers(1, 7))
def test_values_are_counted_whatever_the_pieces(data: Any, size: int) -> None:
    text = json.dumps(data).encode()
    counter = ValueCounter()
    for start in range(0, len(text), size):
        counter.feed(text[start : start + size])
    assert counter.count == count_values(data)


@given(JSON_DATA)
def test_a_text_has_more_values_than_one_less_than_it_has(data: Any) -> None:
    text, count = json.dumps(data), count_values(data)
    assert not has_more_values(text, count)
    assert not count or has_more_values(text, count - 1)


@given(JSON_DATA)
def test_data_is_nested_as_deep_as_it_is(data: Any) -> None:
    assert not is_nested_deeper(data, depth(data))
    assert not depth(data) or is_nested_deeper(data, depth(data) - 1)


def call(text: str) -> wire.Call:
    return wire.Call(1, 1, "tools.x", {"text": text})


def test_a_text_of_very_many_commas_and_brackets_is_one_value() -> None:
    message = call("[1,2],{}" * 300_000)
    frame = wire.encode_message(message)
    assert wire.decode_message(frame[4], frame[wire.HEADER_BYTES :]) == message


@pytest.mark.parametrize("value", ["[]", "{}", "1"])
def test_too_many_values_are_refused_before_they_are_built(value: str) -> None:
    frame = wire.encode_message(call("TEXT"))
    data = f"[{','.join([value] * wire.MAX_CALL_VALUES)}]"
    body = frame[wire.HEADER_BYTES :].replace(b'"TEXT"', data.encode())
    with pytest.raises(wire.WireError, match="more than 100,000 values"):
        wire.decode_message(frame[4], body)
