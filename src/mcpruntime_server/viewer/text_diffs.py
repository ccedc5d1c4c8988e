"""The differences between two texts, as lines of a page; bounded.

Comparing takes up to a tenth of a second, in pieces of Python: it belongs into a thread.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..runtime.run_diff import count_equal_lines

CONTEXT_LINES = 3
MAX_DIFF_LINES = 2_000
MAX_COMPARED_LINES = 1_500  # of each text, where they differ; the time grows with the square
MAX_LINE_LENGTH = 2_000


@dataclass(frozen=True)
class DiffLine:
    """A line: its numbers in the old and the new text, None where it is not there."""

    kind: str  # "same" | "added" | "removed" | "gap"
    text: str
    old: int | None = None
    new: int | None = None


def compare_texts(before: str, after: str) -> tuple[DiffLine, ...]:
    """Return the lines that differ, with some around them; none if the texts are equal.

    A gap at the end says that more may differ.
    """
    old, new = before.splitlines(), after.splitlines()
    start = max(0, count_equal_lines(old, new) - CONTEXT_LINES)
    old, new = old[start:], new[start:]
    end = max(0, count_equal_lines(old[::-1], new[::-1]) - CONTEXT_LINES)
    old, new = old[: len(old) - end], new[: len(new) - end]
    is_cut = max(len(old), len(new)) > MAX_COMPARED_LINES
    old, new = old[:MAX_COMPARED_LINES], new[:MAX_COMPARED_LINES]
    matcher = difflib.SequenceMatcher(None, old, new)
    lines: list[DiffLine] = []
    for group in matcher.get_grouped_opcodes(CONTEXT_LINES):
        if lines:
            lines.append(DiffLine("gap", ""))
        for tag, old_start, old_end, new_start, new_end in group:
            if tag == "equal":
                lines += [
                    DiffLine(
                        "same",
                        old[at][:MAX_LINE_LENGTH],
                        start + at + 1,
                        start + new_start + at - old_start + 1,
                    )
                    for at in range(old_start, old_end)
                ]
                continue
            lines += [
                DiffLine("removed", old[at][:MAX_LINE_LENGTH], start + at + 1, None)
                for at in range(old_start, old_end)
            ]
            lines += [
                DiffLine("added", new[at][:MAX_LINE_LENGTH], None, start + at + 1)
                for at in range(new_start, new_end)
            ]
        if len(lines) >= MAX_DIFF_LINES:
            return (*lines[:MAX_DIFF_LINES], DiffLine("gap", ""))
    return (*lines, DiffLine("gap", "")) if is_cut else tuple(lines)
