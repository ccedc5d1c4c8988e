"""Texts, split into passages that can be found and read on their own.

Rule: a passage is an unchanged part of its text, so its span says exactly where it is.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .boundaries import Boundary, build_title, find_boundaries

MAX_PASSAGE_CHARS = 1_600  # about 400 tokens
MIN_PASSAGE_CHARS = 500  # a passage of this length may end early, at a better place
BLANK_LINES = re.compile(r"(?:[ \t]*\r?\n)*")
LINE_END = re.compile(r"\Z|\r?\n")
NESTED_FORMATS = ("json", "yaml", "toml")  # their outermost parts are passages, if long enough
PASSAGE_ENDS = ("\n\n", "\n", ". ", " ")  # where a long text is split, the best place first


@dataclass(frozen=True)
class PassageSpan:
    """Characters `start` to `end` of a text, on the lines `first_line` to `last_line`.

    Lines are counted from 1. If `is_lines`, the passage is exactly these lines.
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
    line_ends = [match.start() for match in re.finditer("\n", text)]
    passages = []
    for part_start, part_end, title in _split_parts(text, text_format):
        blank = BLANK_LINES.match(text, part_start, part_end)
        start = blank.end() if blank else part_start
        end = part_start + len(text[part_start:part_end].rstrip())
        if start < end:
            first_line = bisect_left(line_ends, start) + 1
            last_line = bisect_left(line_ends, end - 1) + 1
            starts_line = text[start - 1 : start] in ("", "\n")
            is_lines = starts_line and LINE_END.match(text, end) is not None
            passages.append(PassageSpan(start, end, first_line, last_line, title, is_lines))
    return passages


def _split_parts(text: str, text_format: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and title of each part; together they are the whole text."""
    boundaries = find_boundaries(text, text_format)
    if boundaries and len(text[: boundaries[0].offset].strip()) <= 1:
        # The bracket that opens an object belongs to the object's first member.
        boundaries[0] = replace(boundaries[0], offset=0)
    if not boundaries or boundaries[0].offset:
        boundaries.insert(0, Boundary(0, 0))
    groups = _group_boundaries(boundaries, len(text), text_format in NESTED_FORMATS)
    for group, group_end in groups:
        title = build_title(text_format, text, group)
        for start, end in _split_long_part(text, group[0].offset, group_end):
            yield start, end, title


def _group_boundaries(
    boundaries: Sequence[Boundary], size: int, is_nested: bool
) -> Iterator[tuple[Sequence[Boundary], int]]:
    """Yield the boundaries that form one passage together, and where the passage ends."""
    start = 0
    for place in range(1, len(boundaries)):
        end = boundaries[place + 1].offset if place + 1 < len(boundaries) else size
        length = boundaries[place].offset - boundaries[start].offset
        is_sibling = is_nested and boundaries[place].depth <= boundaries[start].depth
        if boundaries[place].starts_passage or (is_sibling and length >= MIN_PASSAGE_CHARS):
            yield boundaries[start:place], boundaries[place].offset
            start = place
        while start < place and end - boundaries[start].offset > MAX_PASSAGE_CHARS:
            stop = _find_best_end(boundaries, start, place)
            yield boundaries[start:stop], boundaries[stop].offset
            start = stop
    yield boundaries[start:], size


def _find_best_end(boundaries: Sequence[Boundary], start: int, place: int) -> int:
    """Return the index of the boundary that ends a passage.

    Of those that leave the passage long enough, it is the last one with the smallest depth.
    """
    best = place
    for stop in range(place, start, -1):
        if boundaries[stop].offset - boundaries[start].offset < MIN_PASSAGE_CHARS:
            break
        if boundaries[stop].depth < boundaries[best].depth:
            best = stop
    return best


def _split_long_part(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield a part of a text as parts that are short enough."""
    while end - start > MAX_PASSAGE_CHARS:
        stop = start + MAX_PASSAGE_CHARS
        for ending in PASSAGE_ENDS:
            found = text.rfind(ending, start + MIN_PASSAGE_CHARS, stop)
            if found >= 0:
                stop = found + len(ending)
                break
        yield start, stop
        start = stop
    yield start, end
