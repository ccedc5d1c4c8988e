"""Texts, cut into passages that can be found and read alone.

Rule: a passage is a part of its text as it is, so that its span says exactly where it stands.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .marks import Mark, marks_of, title_of

MAX_CHARS = 1_600  # of a passage, about 400 tokens
MIN_CHARS = 500  # before a passage ends at a better place than where it would have to
BLANK_LINES = re.compile(r"(?:[ \t]*\r?\n)*")
LINE_END = re.compile(r"\Z|\r?\n")
NESTED = ("json", "yaml", "toml")  # whose outermost parts are passages by themselves, if they are long enough
ENDS = ("\n\n", "\n", ". ", " ")  # where long text is cut, the best first


@dataclass(frozen=True)
class Piece:
    """Characters `begin` to `end` of a text, which are on lines `first` to `last`, counted from 1.

    One that `is_lines` is these lines and nothing less.
    """

    begin: int
    end: int
    first: int
    last: int
    title: str
    is_lines: bool


def cut(text: str, kind: str) -> list[Piece]:
    """Return the passages of a text."""
    if not text.strip():
        return []
    line_ends = [found.start() for found in re.finditer("\n", text)]
    found = []
    for begin, end, title in _parts(text, kind):
        match = BLANK_LINES.match(text, begin, end)
        begins, ends = match.end() if match else begin, begin + len(text[begin:end].rstrip())
        if begins < ends:
            first, last = bisect_left(line_ends, begins) + 1, bisect_left(line_ends, ends - 1) + 1
            is_lines = text[begins - 1 : begins] in ("", "\n") and LINE_END.match(text, ends) is not None
            found.append(Piece(begins, ends, first, last, title, is_lines))
    return found


def _parts(text: str, kind: str) -> Iterator[tuple[int, int, str]]:
    marks = marks_of(text, kind)
    if marks and len(text[: marks[0].at].strip()) <= 1:
        marks[0] = replace(marks[0], at=0)  # what opens an object belongs to the first that is in it
    if not marks or marks[0].at:
        marks.insert(0, Mark(0, 0))
    for group, end in _groups(marks, len(text), kind in NESTED):
        title = title_of(kind, text, group)
        for begin, ends in _bounded(text, group[0].at, end):
            yield begin, ends, title


def _groups(marks: Sequence[Mark], size: int, is_nested: bool) -> Iterator[tuple[Sequence[Mark], int]]:
    """Yield marks whose pieces make one passage, and where that ends."""
    start = 0
    for place in range(1, len(marks)):
        end = marks[place + 1].at if place + 1 < len(marks) else size
        is_next = is_nested and marks[place].depth <= marks[start].depth
        if marks[place].parts or (is_next and marks[place].at - marks[start].at >= MIN_CHARS):
            yield marks[start:place], marks[place].at
            start = place
        while start < place and end - marks[start].at > MAX_CHARS:
            stop = _best(marks, start, place)
            yield marks[start:stop], marks[stop].at
            start = stop
    yield marks[start:], size


def _best(marks: Sequence[Mark], start: int, place: int) -> int:
    """Return before which mark a passage ends: the last one of the outermost that leave it long enough."""
    best = place
    for stop in range(place, start, -1):
        if marks[stop].at - marks[start].at < MIN_CHARS:
            break
        best = stop if marks[stop].depth < marks[best].depth else best
    return best


def _bounded(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield a part of a text in parts that are short enough."""
    while end - begin > MAX_CHARS:
        stop = begin + MAX_CHARS
        for mark in ENDS:
            at = text.rfind(mark, begin + MIN_CHARS, stop)
            if at >= 0:
                stop = at + len(mark)
                break
        yield begin, stop
        begin = stop
    yield begin, end
