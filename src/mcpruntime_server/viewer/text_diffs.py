"""The differences between two texts, as lines of a page; bounded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

CONTEXT_LINES = 3
MAX_DIFF_LINES = 2_000
MAX_COMPARED_LINES = 20_000  # of each text; more take seconds to compare
MAX_LINE_LENGTH = 2_000


@dataclass(frozen=True)
class DiffLine:
    """A line: its numbers in the old and the new text, None where it is not there."""

    kind: str  # "same" | "added" | "removed" | "gap"
    text: str
    old: int | None = None
    new: int | None = None


def compare_texts(before: str, after: str) -> tuple[DiffLine, ...]:
    """Return the lines that differ, with some around them; none if the texts are equal."""
    old, new = before.splitlines()[:MAX_COMPARED_LINES], after.splitlines()[:MAX_COMPARED_LINES]
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=True)
    lines: list[DiffLine] = []
    for group in matcher.get_grouped_opcodes(CONTEXT_LINES):
        if lines:
            lines.append(DiffLine("gap", ""))
        for tag, old_start, old_end, new_start, new_end in group:
            if tag == "equal":
                lines += [
                    DiffLine(
                        "same", old[at][:MAX_LINE_LENGTH], at + 1, new_start + at - old_start + 1
                    )
                    for at in range(old_start, old_end)
                ]
                continue
            lines += [
                DiffLine("removed", old[at][:MAX_LINE_LENGTH], at + 1, None)
                for at in range(old_start, old_end)
            ]
            lines += [
                DiffLine("added", new[at][:MAX_LINE_LENGTH], None, at + 1)
                for at in range(new_start, new_end)
            ]
        if len(lines) >= MAX_DIFF_LINES:
            return (*lines[:MAX_DIFF_LINES], DiffLine("gap", ""))
    return tuple(lines)
