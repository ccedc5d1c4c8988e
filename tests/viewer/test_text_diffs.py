"""Differences between texts, and how much of them a page gets."""

from __future__ import annotations

import pytest

from mcpruntime_server.viewer.approval_pages import MAX_REPLACEMENTS, find_replacements
from mcpruntime_server.viewer.text_diffs import (
    MAX_COMPARED_LINES,
    MAX_DIFF_LINES,
    DiffLine,
    compare_texts,
)


def test_lines_that_differ_are_numbered_from_the_beginning_of_the_texts() -> None:
    before = "\n".join(f"line {number}" for number in range(5_000))
    lines = compare_texts(before, before.replace("line 4000", "other"))
    assert [(each.kind, each.old, each.new) for each in lines] == [
        *(("same", number, number) for number in (3_998, 3_999, 4_000)),
        ("removed", 4_001, None),
        ("added", None, 4_001),
        *(("same", number, number) for number in (4_002, 4_003, 4_004)),
    ]


@pytest.mark.parametrize("text", ["", "a", "a\nb\n", "\n" * 9_000])
def test_equal_texts_have_no_lines(text: str) -> None:
    assert compare_texts(text, text) == ()


def test_texts_that_take_long_to_compare_are_compared_in_part() -> None:
    before, after = ("\n".join(f"{n}\n{word}{n}" for n in range(30_000)) for word in "xy")
    lines = compare_texts(before, after)
    assert lines[-1] == DiffLine("gap", "")
    assert len(lines) <= MAX_DIFF_LINES + 1
    assert max(each.old or 0 for each in lines) <= MAX_COMPARED_LINES


def test_a_card_has_few_of_many_replacements() -> None:
    edits = [{"old_text": f"a{number}", "new_text": "b"} for number in range(5_000)]
    assert len(find_replacements({"edits": edits})) == MAX_REPLACEMENTS
