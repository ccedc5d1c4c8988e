"""Values, texts and errors are presented whole if they fit, else truncated in the same shape."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter, OrderedDict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.protocol.presentation import (
    describe_error,
    present_value,
    truncate_json,
)
from mcpruntime_server.protocol.truncation import (
    ELLIPSIS,
    Container,
    JsonPresenter,
    PythonPresenter,
    truncate_text,
)
from mcpruntime_server.protocol.wire import escape_surrogates

SLACK = 150  # characters beyond a limit that the notes about a cut may take
MAX_EXTRA_ITEMS = 8  # that are shown because their mark would be longer
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


@given(JSON, st.integers(1, 400), st.none() | st.integers(1, 5))
def test_what_is_shown_of_json_and_what_is_counted_add_up(
    value: Any, limit: int, items: int | None
) -> None:
    text, cut = truncate_json(value, limit, items)
    whole = json.dumps(value, ensure_ascii=False)
    assert len(text) <= len(whole)  # no mark is longer than what it replaces
    assert len(text) <= limit + SLACK
    if not cut:
        assert text == whole
    elif is_unambiguous(value):
        check_shape(value, json.loads(text))
    if items is not None:
        check_items(json.loads(text), items)


PLAIN = st.text("abcdefgh \n", max_size=300)
DATA = st.recursive(
    st.none() | st.integers() | PLAIN | st.binary(max_size=400) | st.complex_numbers(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.sets(st.integers() | PLAIN)
        | st.frozensets(st.binary())
        | st.dictionaries(st.integers() | st.tuples(PLAIN), inner)
    ),
    max_leaves=60,
)


@given(DATA, st.integers(1, 2_000), st.none() | st.integers(1, 20))
def test_a_repr_is_whole_or_shorter_and_counts_what_is_left_out(
    value: Any, limit: int, items: int | None
) -> None:
    presenter = PythonPresenter(items)
    text = presenter.cut(value, limit)
    assert len(text) <= len(repr(value))
    assert len(text) <= limit + 400
    if ELLIPSIS not in text:
        assert text == repr(value)


@given(
    st.lists(st.integers(), max_size=300)
    | st.sets(st.integers(), max_size=300)
    | st.frozensets(st.integers(), min_size=1)
    | st.dictionaries(st.integers(), st.integers(), max_size=300),
    st.integers(30, 900),
)
def test_the_items_of_every_container_are_counted(value: Any, limit: int) -> None:
    text = PythonPresenter().cut(value, limit)
    mark = re.search(rf"{ELLIPSIS} [\d,]+ more (?:item|key)s?", text)
    missing = count_in(mark[0]) if mark else 0
    shown = text.replace(mark[0], "") if mark else text
    found = re.findall(r"-?\d+", shown)
    assert len(found) / (2 if isinstance(value, dict) else 1) + missing == len(value)


@given(st.binary(min_size=1, max_size=3_000), st.integers(40, 500))
def test_the_bytes_of_a_short_repr_are_counted(value: bytes, limit: int) -> None:
    text = PythonPresenter().cut(value, limit)
    head, mark, more = text.partition(f" {ELLIPSIS} ")
    shown = ast.literal_eval(head)
    assert value.startswith(shown)
    assert len(shown) + (count_in(more) if mark else 0) == len(value)
    assert len(text) <= max(limit, 200)


def test_values_that_were_shown_with_wrong_numbers() -> None:
    limits: Any = {"max_chars": 20_000, "max_items": 200, "whole_chars": 262_144}
    numbers = present_value(list(range(100_000)), **limits)
    assert json.loads(numbers["text"])[-1] == f"{ELLIPSIS} 99,800 more items"
    records = present_value([{"n": n, "text": "x" * 40} for n in range(50_000)], **limits)
    *shown, mark = json.loads(records["text"])
    assert len(shown) + count_in(mark) == 50_000
    check_text("x" * 400_000, json.loads(present_value("x" * 400_000, **limits)["text"]))
    assert (numbers["cut"], records["cut"]) == (True, True)


@pytest.mark.parametrize(
    "value",
    [
        ["x" * 400 for _ in range(82)],
        [{"id": n, "text": "y" * 300} for n in range(100)],
        {"rows": ["z" * 150 for _ in range(600)], "total": 600},
        [[n] * 100 for n in range(100)],
        ["a" * 300_000, [1, 2, 3]],
    ],
    ids=["texts", "records", "table", "matrix", "one long text"],
)
def test_the_whole_limit_is_used(value: Any) -> None:
    text = present_value(value, 20_000, 200)["text"]
    assert 18_000 <= len(text) <= 20_000


def test_what_is_small_stays_whole_beside_what_is_large() -> None:
    shown = json.loads(present_value({"text": "x" * 10_000, "id": 7, "tags": ["a"]}, 500)["text"])
    assert (shown["id"], shown["tags"]) == (7, ["a"])


class VisitCounter(JsonPresenter):
    """Counts the values that it looks at."""

    visits = 0

    def open_container(self, value: Any) -> Container | None:
        self.visits += 1
        return super().open_container(value)


def nest(depth: int, beside: list[Any], innermost: Any) -> Any:
    """Return lists in lists, with the same items in each."""
    return [*beside, nest(depth - 1, beside, innermost)] if depth else innermost


@pytest.mark.parametrize(
    "value",
    [
        nest(60, [], "x" * 20_000),
        nest(60, [1] * 30, "x" * 20_000),
        nest(60, [], [1] * 100_000),
        nest(60, [], [[1] * 5] * 5_000),
    ],
)
def test_work_on_a_nested_value_follows_from_the_room(value: Any) -> None:
    presenter = VisitCounter()
    shown = presenter.cut(value, 8_000)
    assert len(shown) <= 8_100
    assert presenter.visits < 3 * 8_000


def test_bytes_have_a_short_repr() -> None:
    image = b"\x89PNG\r\n\x1a\n" + bytes(69_000)
    shown = present_value({"image": image, "name": "plot"}, 20_000)
    assert len(shown["text"]) < 200
    assert "68,976 more bytes" in shown["text"]
    assert "'name': 'plot'" in shown["text"]
    output = present_value(b"a line of output\n" * 20, 20_000)
    assert output["text"] == repr(b"a line of output\n" * 20)


def test_what_contains_itself_is_shown_as_python_shows_it() -> None:
    value: list[Any] = [1]
    value.append(value)
    assert present_value(value, 1_000)["text"] == repr(value)


def is_unambiguous(value: Any) -> bool:
    """Return whether no text in `value` can be taken for a mark."""
    return ELLIPSIS not in json.dumps(value, ensure_ascii=False)


def check_items(shown: Any, items: int) -> None:
    if isinstance(shown, list | dict):
        assert len(shown) <= items + MAX_EXTRA_ITEMS
        for item in shown.values() if isinstance(shown, dict) else shown:
            check_items(item, items)


def check_shape(value: Any, shown: Any) -> None:
    """Check that `shown` is `value` with parts left out, and that what is left out is counted."""
    if isinstance(value, list):
        assert isinstance(shown, list)
        if shown and isinstance(shown[-1], str) and re.match(rf"{ELLIPSIS} [\d,]+ more", shown[-1]):
            assert len(shown) - 1 + count_in(shown.pop()) == len(value)
        else:
            assert len(shown) == len(value)
        for old, new in zip(value, shown, strict=False):
            check_shape(old, new)
    elif isinstance(value, dict):
        assert isinstance(shown, dict)
        missing = count_in(shown.pop(ELLIPSIS)) if ELLIPSIS in shown else 0
        assert len(shown) + missing == len(value)
        for key in shown.keys() & value.keys():
            check_shape(value[key], shown[key])
    elif isinstance(value, str):
        assert isinstance(shown, str)
        check_text(value, shown)
    else:
        assert shown == value


def check_text(text: str, shown: str) -> None:
    found = re.fullmatch(
        rf"(.*?)(\n?){ELLIPSIS} ([\d,]+) characters left out {ELLIPSIS}\2(.*)", shown, re.DOTALL
    )
    if found is None:
        assert shown == escape_surrogates(text)
        return
    head, missing, tail = found[1], int(found[3].replace(",", "")), found[4]
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + missing + len(tail) == len(text)
    left_out = escape_surrogates(text[len(head) : len(text) - len(tail)])
    # In JSON, a control character takes as much room as six others.
    assert len(json.dumps(left_out, ensure_ascii=False)) >= len(shown) - len(head) - len(tail)


def count_in(text: str) -> int:
    found = re.search(r"([\d,]+) more", text)
    assert found is not None
    return int(found[1].replace(",", ""))


@given(st.text(st.characters(exclude_characters=ELLIPSIS)), st.integers(1, 300))
def test_a_long_text_keeps_head_and_tail_and_counts_the_rest(text: str, limit: int) -> None:
    shown, cut = truncate_text(text, limit)
    assert cut or shown == text
    assert len(shown) <= max(limit, 8 + len(f"{ELLIPSIS} 999 characters left out {ELLIPSIS}") + 2)
    if cut:
        check_text(text, shown)


def test_a_mark_in_a_short_text_stays_on_its_line() -> None:
    path = "src/mcpruntime_server/run.py"
    assert truncate_text(path, 15) == (path, False)  # the mark would not be shorter
    shown, _ = truncate_text(path * 3, 60)
    assert "\n" not in shown
    shown, _ = truncate_text("a line\n" * 1_000, 500)
    assert f"\n{ELLIPSIS} " in shown


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
