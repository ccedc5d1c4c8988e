"""Texts, cut into passages that can be found and read alone.

Rule: a passage is a part of its text as it is, so that its span says exactly where it stands.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .boundaries import Boundary, build_title, find_boundaries

MAX_PASSAGE_CHARS = 1_600  # of a passage, about 400 tokens
MIN_PASSAGE_CHARS = 500  # before a passage ends at a better place than where it would have to
BLANK_LINES = re.compile(r"(?:[ \t]*\r?\n)*")
LINE_END = re.compile(r"\Z|\r?\n")
NESTED_FORMATS = (
    "json",
    "yaml",
    "toml",
)  # whose outermost parts are passages by themselves, if they are long enough
PASSAGE_ENDS = ("\n\n", "\n", ". ", " ")  # where long text is cut, the best first


@dataclass(frozen=True)
class PassageSpan:
    """Characters `begin` to `end` of a text, which are on lines `first` to `last`, counted from 1.

    One that `is_lines` is these lines and nothing less.
    """

    start: int
    end: int
    first_line: int
    last_line: int
    title: str
    is_lines: bool


def split_passages(text: str, text_format: str) -> list[PassageSpan]:
    """Return the passages of a text."""
    if not text.strip():
        return []
    line_ends = [found.start() for found in re.finditer("\n", text)]
    found = []
    for begin, end, title in _split_parts(text, text_format):
        match = BLANK_LINES.match(text, begin, end)
        begins, ends = match.end() if match else begin, begin + len(text[begin:end].rstrip())
        if begins < ends:
            first, last = bisect_left(line_ends, begins) + 1, bisect_left(line_ends, ends - 1) + 1
            is_lines = (
                text[begins - 1 : begins] in ("", "\n") and LINE_END.match(text, ends) is not None
            )
            found.append(PassageSpan(begins, ends, first, last, title, is_lines))
    return found


def _split_parts(text: str, text_format: str) -> Iterator[tuple[int, int, str]]:
    marks = find_boundaries(text, text_format)
    if marks and len(text[: marks[0].offset].strip()) <= 1:
        marks[0] = replace(
            marks[0], offset=0
        )  # what opens an object belongs to the first that is in it
    if not marks or marks[0].offset:
        marks.insert(0, Boundary(0, 0))
    for group, end in _group_boundaries(marks, len(text), text_format in NESTED_FORMATS):
        title = build_title(text_format, text, group)
        for begin, ends in _split_long_part(text, group[0].offset, end):
            yield begin, ends, title


def _group_boundaries(
    boundaries: Sequence[Boundary], size: int, is_nested: bool
) -> Iterator[tuple[Sequence[Boundary], int]]:
    """Yield marks whose pieces make one passage, and where that ends."""
    start = 0
    for place in range(1, len(boundaries)):
        end = boundaries[place + 1].offset if place + 1 < len(boundaries) else size
        is_next = is_nested and boundaries[place].depth <= boundaries[start].depth
        if boundaries[place].starts_passage or (
            is_next and boundaries[place].offset - boundaries[start].offset >= MIN_PASSAGE_CHARS
        ):
            yield boundaries[start:place], boundaries[place].offset
            start = place
        while start < place and end - boundaries[start].offset > MAX_PASSAGE_CHARS:
            stop = _find_best_end(boundaries, start, place)
            yield boundaries[start:stop], boundaries[stop].offset
            start = stop
    yield boundaries[start:], size


def _find_best_end(boundaries: Sequence[Boundary], start: int, place: int) -> int:
    """Return before which mark a passage ends: the last one of the outermost that leave it long enough."""
    best = place
    for stop in range(place, start, -1):
        if boundaries[stop].offset - boundaries[start].offset < MIN_PASSAGE_CHARS:
            break
        best = stop if boundaries[stop].depth < boundaries[best].depth else best
    return best


def _split_long_part(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield a part of a text in parts that are short enough."""
    while end - begin > MAX_PASSAGE_CHARS:
        stop = begin + MAX_PASSAGE_CHARS
        for mark in PASSAGE_ENDS:
            at = text.rfind(mark, begin + MIN_PASSAGE_CHARS, stop)
            if at >= 0:
                stop = at + len(mark)
                break
        yield begin, stop
        begin = stop
    yield begin, end
