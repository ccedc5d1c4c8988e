"""Events are read back as they were written, and anything else is rejected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.journal.events import (
    EVENT_CLASSES,
    ApprovedCall,
    CallError,
    CallFinished,
    CallSummary,
    ClientModelRequest,
    Event,
    FileEntry,
    InputEntry,
    MediaEntry,
    OutputWritten,
    RunError,
    RunFinished,
    RunValue,
    UnknownEvent,
    canonical_json,
    event_from_fields,
    event_kind,
    event_to_json,
)

texts = st.text() | st.sampled_from(["\ud800", "a\udfff", "\x00", "\u2028", '"\\\n'])
floats = st.floats(allow_nan=False, allow_infinity=False)
data = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(texts, data, max_size=4)


def typed_dicts(cls: Any, **items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    others = {key: st.from_type(hint) for key, hint in get_type_hints(cls).items()}
    return st.fixed_dictionaries({**others, **items})


OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    int: st.integers(),
    bool: st.booleans(),
    float: floats,
    Any: data,
    str | None: st.none() | texts,
    int | None: st.none() | st.integers(),
    list[str]: st.lists(texts, max_size=4),
    list[ApprovedCall]: st.lists(st.from_type(ApprovedCall), max_size=2),
    list[InputEntry]: st.lists(st.from_type(InputEntry), max_size=2),
    list[MediaEntry]: st.lists(st.from_type(MediaEntry), max_size=2),
    list[InputEntry] | None: st.none() | st.lists(st.from_type(InputEntry), max_size=2),
    Mapping[str, Any]: objects,
    ClientModelRequest | None: st.none()
    | typed_dicts(ClientModelRequest, schema=st.none() | objects),
    CallError | None: st.none() | typed_dicts(CallError, data=data),
    CallSummary | None: st.none() | typed_dicts(CallSummary, args=objects),
    RunValue | None: st.none() | typed_dicts(RunValue),
    RunError | None: st.none() | typed_dicts(RunError),
    Mapping[str, float] | None: st.none() | st.dictionaries(texts, floats, max_size=4),
    Mapping[str, list[float]]: st.dictionaries(texts, st.lists(floats, max_size=4), max_size=4),
    Mapping[str, FileEntry]: st.dictionaries(texts, st.from_type(FileEntry), max_size=4),
}


def events_of(cls: type[Event]) -> st.SearchStrategy[Event]:
    hints = get_type_hints(cls)
    return st.builds(cls, **{item.name: OF_TYPE[hints[item.name]] for item in fields(cls)})


any_event = st.one_of([events_of(cls) for cls in EVENT_CLASSES.values()])


@given(any_event)
def test_an_event_that_was_written_is_read_back_equal(event: Event) -> None:
    assert event_from_fields(event_kind(event), json.loads(event_to_json(event))) == event


@given(any_event)
def test_the_text_is_ascii_on_one_line(event: Event) -> None:
    text = event_to_json(event)
    assert text.isascii()
    assert "\n" not in text


@given(objects)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


@given(data)
def test_canonical_json_is_a_fixed_point(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


def test_canonical_json_keeps_integers_and_floats_apart() -> None:
    assert canonical_json([1, 1.0, True]) == "[1,1.0,true]"


def cycle() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    "value", [float("nan"), float("-inf"), b"bytes", {1, 2}, cycle(), {(1, 2): 3}]
)
def test_a_value_that_is_not_json_is_rejected_with_the_kind_of_the_event(value: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"An event of kind call_finished cannot be recorded. This is not JSON data",
    ):
        event_to_json(CallFinished(1, value))
    with pytest.raises(ValueError, match="This is not JSON data"):
        canonical_json(value)


def test_adjacent_surrogates_are_read_back_as_the_character_they_encode() -> None:
    written = event_to_json(OutputWritten("stdout", "\ud83d\ude00"))
    read = event_from_fields("output_written", json.loads(written))
    assert read == OutputWritten("stdout", "\U0001f600")


def test_a_kind_from_a_newer_version_is_kept_unchanged() -> None:
    event = event_from_fields("tea_served", {"cups": 2})
    assert event == UnknownEvent("tea_served", {"cups": 2})
    assert (event_kind(event), event_to_json(event)) == ("tea_served", '{"cups":2}')


def test_fields_from_a_newer_version_are_ignored() -> None:
    assert event_from_fields("run_finished", {"status": "ok", "mood": "good"}) == RunFinished("ok")


def test_a_field_that_has_its_default_is_not_written() -> None:
    assert event_to_json(CallFinished(3, [])) == '{"call_id":3,"value":[]}'


def test_fields_that_an_older_version_did_not_write_take_their_default() -> None:
    assert event_from_fields("call_finished", {"call_id": 3}) == CallFinished(3)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"An event of kind output_written has no text\."):
        event_from_fields("output_written", {"stream": "stdout"})
