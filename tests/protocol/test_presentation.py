"""Values, texts and errors are presented whole if they fit, else truncated in the same shape."""

from __future__ import annotations

import json
import re
from collections import Counter, OrderedDict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.protocol.presentation import (
    ELLIPSIS,
    describe_error,
    present_value,
    truncate_json,
    truncate_text,
)

SLACK = 120  # characters beyond a limit that the notes about a cut may take
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=60,
)  # fmt: skip


class Point(NamedTuple):
    x: int
    y: int


@given(JSON)
def test_json_that_fits_is_shown_whole(value: Any) -> None:
    shown = present_value(value, 1_000_000)
    assert (shown["kind"], shown["cut"], json.loads(shown["text"])) == ("json", False, value)


@given(JSON, st.integers(50, 400))
def test_truncated_json_has_the_same_shape_within_the_limit(value: Any, limit: int) -> None:
    text, cut = truncate_json(value, limit)
    shown = json.loads(text)
    if cut:
        check_shape(value, shown)
    else:
        assert shown == value
    assert len(text) <= limit + SLACK


@given(JSON, st.integers(1, 5))
def test_no_container_shows_more_items_than_allowed(value: Any, items: int) -> None:
    text, _ = truncate_json(value, 100_000, items)
    check_shape(value, json.loads(text))
    check_items(json.loads(text), items)


def check_items(shown: Any, items: int) -> None:
    if isinstance(shown, list | dict):
        assert len(shown) <= items + 1  # and the one that counts the rest
        for item in shown.values() if isinstance(shown, dict) else shown:
            check_items(item, items)


def check_shape(value: Any, shown: Any) -> None:
    """Check that `shown` is `value` with parts left out, and that what is left out is counted."""
    if isinstance(value, list):
        assert isinstance(shown, list)
        if len(shown) != len(value) or (shown and f"{ELLIPSIS} " in str(shown[-1])[:2]):
            shown, missing = shown[:-1], count_in(shown[-1])
            assert len(shown) + missing == len(value)
        for old, new in zip(value, shown, strict=False):
            check_shape(old, new)
    elif isinstance(value, dict):
        assert isinstance(shown, dict)
        if ELLIPSIS in shown and shown[ELLIPSIS] != value.get(ELLIPSIS):
            assert len(shown) - 1 + count_in(shown.pop(ELLIPSIS)) >= len(
                value
            )  # long keys may be cut to the same text
        for key in shown.keys() & value.keys():
            check_shape(value[key], shown[key])
    elif isinstance(value, str):
        assert isinstance(shown, str)
        assert shown == value or f"characters left out {ELLIPSIS}" in shown
    else:
        assert shown == value


def count_in(text: str) -> int:
    found = re.search(r"([\d,]+) more", text)
    assert found is not None
    return int(found[1].replace(",", ""))


@given(st.text(), st.integers(1, 300))
def test_a_long_text_keeps_head_and_tail_and_counts_the_rest(text: str, limit: int) -> None:
    shown, cut = truncate_text(text, limit)
    assert cut is (len(text) > limit)
    if not cut:
        assert shown == text
        return
    found = re.fullmatch(
        rf"(.*)\n{ELLIPSIS} ([\d,]+) characters left out {ELLIPSIS}\n(.*)", shown, re.DOTALL
    )
    assert found is not None
    head, missing, tail = found[1], int(found[2].replace(",", "")), found[3]
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + missing + len(tail) == len(text)
    assert len(shown) <= limit + SLACK


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ((1, 2), "json"),
        (OrderedDict(a=1), "json"),
        (Counter("aab"), "json"),
        (Point(1, 2), "repr"),
        ({1: 2}, "repr"),
        ({"a": {1, 2}}, "repr"),
        (float("nan"), "repr"),
        ([float("inf")], "repr"),
        (1 + 2j, "repr"),
        (object, "repr"),
        (10**5000, "repr"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_json_cannot_express_is_shown_by_its_repr(value: Any, kind: str) -> None:
    shown = present_value(value, 10_000)
    assert shown["kind"] == kind
    if kind == "json":
        json.loads(shown["text"])


def test_a_value_that_changes_while_it_is_shown_is_shown_by_its_repr() -> None:
    class Changing(dict[str, int]):
        def __getitem__(self, key: str) -> int:
            self[key + "x"] = 1
            return 1

    assert present_value(Changing(a=1, b=2), 1_000)["kind"] == "repr"


def test_the_traceback_of_a_failing_repr_has_no_frames_of_the_kernel() -> None:
    class Interrupted:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        present_value(Interrupted(), 100)
    assert raised.value.__context__ is None


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_error_is_described_within_bounds(message: str) -> None:
    try:
        raise ValueError(message * 1_000)
    except ValueError as exc:
        found = describe_error(exc, (__file__,))
    assert found["type"] == "ValueError"
    assert max(map(len, (found["message"], found["traceback"]))) <= 8_000 + SLACK
    assert found["line"]


def test_causes_and_groups_are_described_with_the_users_frames_only() -> None:
    try:
        try:
            json.loads("{")
        except ValueError as exc:
            raise ExceptionGroup("several", [KeyError("a"), exc]) from exc
    except ExceptionGroup as group:
        found = describe_error(group, (__file__,))
    assert "json.loads" in found["traceback"]
    assert "decoder.py" not in found["traceback"]
    assert "KeyError" in found["traceback"]
