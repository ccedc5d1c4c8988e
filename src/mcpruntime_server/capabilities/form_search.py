"""Finds where a text quotes a credential, base64 that is broken into lines included."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import AnyStr, Generic

MIN_LINE_CHARS = 60  # of base64 that is broken into lines: of 64 or 76 characters
MAX_LINE_CHARS = 76
LINE_BREAK = r"[\n\r\\](?:(?<=\n)|(?<=\r)\n|(?<=\\)(?:n|r\\n))"  # also in JSON
BASE64_CHAR = "[A-Za-z0-9+/_-]"

Span = tuple[int, int]


class FormSearch(Generic[AnyStr]):
    """Searches texts, or bytes, for what a pattern matches.

    What ends with a group in the pattern begins one character earlier, if that is base64.
    """

    def __init__(self, pattern: AnyStr) -> None:
        self._pattern: re.Pattern[AnyStr] = re.compile(pattern)
        self._line_break: re.Pattern[AnyStr] = compile_like(pattern, LINE_BREAK)
        self._lead_char: re.Pattern[AnyStr] = compile_like(pattern, BASE64_CHAR)
        self._line_end: re.Pattern[AnyStr] = compile_like(
            pattern, f"{BASE64_CHAR}{{{MIN_LINE_CHARS}}}"
        )
        self._line_start: re.Pattern[AnyStr] = compile_like(pattern, f"{BASE64_CHAR}*={{0,2}}")

    def find_spans(self, text: AnyStr) -> list[Span]:
        """Return the places in a text, in order and without overlaps."""
        spans = self._find_unbroken(text)
        wrapped = [
            span for lines in self._find_blocks(text) for span in self._find_in_lines(text, lines)
        ]
        return merge_spans(spans + wrapped) if wrapped else spans

    def _find_unbroken(self, text: AnyStr) -> list[Span]:
        spans: list[Span] = []
        position = 0
        while match := self._pattern.search(text, position):
            start, end = match.span()
            position = start + 1  # two forms of a credential that repeats itself may overlap
            if match.lastindex and start and self._lead_char.match(text, start - 1):
                start -= 1
            if spans and start < spans[-1][1]:
                spans[-1] = spans[-1][0], max(end, spans[-1][1])
            else:
                spans.append((start, end))
        return spans

    def _find_blocks(self, text: AnyStr) -> Iterator[list[Span]]:
        """Yield the lines of each base64 that is broken into lines.

        Line breaks are searched, and not lines: each character is then looked at once.
        """
        lines: list[Span] = []
        start = 0
        for line_break in self._line_break.finditer(text):
            end = line_break.start()
            if end - start >= MIN_LINE_CHARS and self._line_end.match(text, end - MIN_LINE_CHARS):
                first = max(start, end - MAX_LINE_CHARS)
                lines.append((start if lines else first, end))
            elif lines:
                yield [*lines, self._find_line_start(text, start)]
                lines = []
            start = line_break.end()
        if lines:
            yield [*lines, self._find_line_start(text, start)]

    def _find_line_start(self, text: AnyStr, start: int) -> Span:
        found = self._line_start.match(text, start, start + MAX_LINE_CHARS)
        return (start, start) if found is None else found.span()

    def _find_in_lines(self, text: AnyStr, lines: list[Span]) -> Iterator[Span]:
        """Yield the places in lines that belong together."""
        starts = list(accumulate((end - start for start, end in lines), initial=0))

        def find_offset(position: int) -> int:
            line = bisect_right(starts, position) - 1
            return lines[line][0] + position - starts[line]

        joined = text[:0].join(text[start:end] for start, end in lines)
        for start, end in self._find_unbroken(joined):
            yield find_offset(start), find_offset(end - 1) + 1


def compile_like(example: AnyStr, pattern: str) -> re.Pattern[AnyStr]:
    """Return a pattern for texts, or for bytes, as `example` is."""
    return re.compile(pattern if isinstance(example, str) else pattern.encode())


def merge_spans(spans: list[Span]) -> list[Span]:
    """Return places in order, those that overlap as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def replace_spans(text: AnyStr, spans: list[Span], replacement: AnyStr) -> AnyStr:
    """Return a text with other text in these places."""
    parts: list[AnyStr] = []
    position = 0
    for start, end in spans:
        parts.append(text[position:start])
        parts.append(replacement)
        position = end
    parts.append(text[position:])
    return text[:0].join(parts)
