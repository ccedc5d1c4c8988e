"""Passes over inputs: where lines, hits and chunks begin and end, as offsets. Their text is read by whoever wants it.

Rule 1: standard library only, Python >= 3.9, and imported only when a run has an input.
Rule 2: memory does not depend on the size of an input, nor on the length of its lines.
Rule 3: offsets are bytes; they lie between characters. Bytes that are no UTF-8 count as a character each.
"""

from __future__ import annotations

import re

from .input_source import InputError, length_of_whole_characters

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator, Optional, Tuple, Union

    from .input_source import InputSource

    Span = Tuple[int, int]

MAX_LINE_BYTES = (
    1 << 20
)  # bytes of a line that are looked at as one; longer lines are gone through in parts
MATCH_MARGIN_BYTES = 200  # bytes on both sides of a hit in a line that is longer
PART_OVERLAP_BYTES = (
    1 << 12
)  # bytes that a hit in such a line may have on both sides of a part's end
NEEDS_SINGLE_LINES = re.compile(
    r"\\[AZb]|\$|\(\?[<=!]"
)  # in a pattern that has to see each line alone
REGEX_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")
LINES_BUFFER, PART_BUFFER, REST_BUFFER = "lines", "part", "rest"  # what a buffer holds
CHUNK_BREAKS = {"chars": (), "lines": (b"\n",), "paragraphs": (b"\n\n", b"\n\r\n", b"\n")}


def decode_text(data: Union[bytes, bytearray]) -> str:
    """Return bytes as text; what is no UTF-8 is replaced."""
    return data.decode("utf-8", "replace")


def align_to_character(source: InputSource, offset: int) -> int:
    """Return the last offset up to `offset` that lies between two characters."""
    start = max(offset - 3, 0)
    data = source.read(start, offset + 1)
    if start + len(data) <= offset or data[-1] & 0xC0 != 0x80:
        return offset
    lead = start + length_of_whole_characters(data[:-1])
    return lead if lead < offset else offset


# lines --------------------------------------------------------------------------------------------


def iter_line_spans(source: InputSource, start: int, end: Optional[int]) -> Iterator[Span]:
    """Yield where each line begins and ends, without its line end."""
    begun, last, offset, data = start, b"", start, b""
    for offset, data in source.iter_blocks(start, end):
        at = data.find(b"\n")
        while at >= 0:
            stop = offset + at
            is_crlf = stop > begun and (data[at - 1] == 13 if at else last == b"\r")
            yield begun, stop - is_crlf
            begun = stop + 1
            at = data.find(b"\n", at + 1)
        last = data[-1:]
    if begun < offset + len(data):
        yield begun, offset + len(data) - (last == b"\r")


def iter_buffers(
    source: InputSource, start: int, end: Optional[int]
) -> Iterator[Tuple[int, bytes, str]]:
    """Yield (offset, bytes, kind): whole lines (`LINES`) without the last line end, or a `PART` of a long line.

    Parts of one line follow each other and overlap by about `STRADDLE` bytes; the last is its `REST`.
    """
    carried, at, is_part = b"", start, False
    for offset, data in source.iter_blocks(start, end):
        first, last = data.find(b"\n"), data.rfind(b"\n")
        if is_part and first >= 0:
            yield at, carried + data[:first], REST_BUFFER
            carried, at, is_part = b"", offset + first + 1, False
            if first < last:
                yield at, data[first + 1 : last], LINES_BUFFER
        elif last >= 0:
            yield at, carried + data[:last], LINES_BUFFER
        if last >= 0:
            carried, at = data[last + 1 :], offset + last + 1
        else:
            carried += data
        if len(carried) > MAX_LINE_BYTES:
            yield at, carried, PART_BUFFER
            kept = len(carried) - length_of_whole_characters(carried[:-PART_OVERLAP_BYTES])
            at, carried, is_part = at + len(carried) - kept, carried[-kept:], True
    if carried:
        yield at, carried, REST_BUFFER if is_part else LINES_BUFFER


def iter_lines(source: InputSource, start: int, end: Optional[int]) -> Iterator[str]:
    """Yield the lines as text, without line ends; one of more than `LONGEST` bytes comes in parts of about that."""
    done = start
    for offset, data, kind in iter_buffers(source, start, end):
        if kind == LINES_BUFFER:
            yield from _split_lines(data)
            continue
        new = data[max(done - offset, 0) :]
        size = length_of_whole_characters(new) if kind == PART_BUFFER else len(new)
        done = offset + len(data) - len(new) + size
        if size:
            yield decode_text(new[:size])


def iter_whole_lines(
    source: InputSource, start: int, end: Optional[int], max_bytes: int
) -> Iterator[str]:
    """Yield the lines as text, without line ends; raises `InputError` for one of more than `most` bytes."""
    held, done = bytearray(), start
    for offset, data, kind in iter_buffers(source, start, end):
        if kind == LINES_BUFFER:
            yield from _split_lines(data)
            continue
        held += data[max(done - offset, 0) :]
        done = offset + len(data)
        if len(held) > max_bytes:
            raise InputError(
                f"A line of {source.name!r} has more than {max_bytes:,} bytes, too much for one text."
            )
        if kind == REST_BUFFER:
            yield from _split_lines(held)
            held.clear()


def _split_lines(data: Union[bytes, bytearray]) -> Iterator[str]:
    for line in decode_text(data).split("\n"):
        yield line[:-1] if line.endswith("\r") else line


def contains_text(source: InputSource, start: int, end: Optional[int], text: str) -> bool:
    """Return whether a text stands there, of whatever lines."""
    needle, before_it = text.encode("utf-8", "surrogateescape"), b""
    for _, data in source.iter_blocks(start, end):
        if needle in before_it + data:
            return True
        before_it = (before_it + data)[-len(needle) :]
    return not needle


# hits ---------------------------------------------------------------------------------------------


def iter_matches(
    source: InputSource, start: int, end: Optional[int], pattern: Any, ignore_case: bool
) -> Iterator[Span]:
    """Yield where the lines begin and end that a pattern (a regular expression, as text or compiled) is found in.

    Of a line of more than `LONGEST` bytes, each hit is yielded, with `AROUND` bytes on both sides.
    """
    find, find_in_part = build_line_finder(pattern, ignore_case), None
    done, before_it = start, LINES_BUFFER
    for offset, data, kind in iter_buffers(source, start, end):
        if kind == LINES_BUFFER:
            for first, last in find(data):
                is_crlf = last > first and data[last - 1] == 13
                yield offset + first, offset + last - is_crlf
        else:
            find_in_part = find_in_part or build_part_finder(pattern, ignore_case)
            for first, last in find_in_part(data):
                is_at_an_end = (kind == PART_BUFFER and last == len(data)) or (
                    before_it == PART_BUFFER and first == 0
                )
                if (
                    offset + first >= done and not is_at_an_end
                ):  # else it is found in the other part, as it is
                    done = offset + last
                    yield (
                        align_to_character(source, max(offset + first - MATCH_MARGIN_BYTES, start)),
                        align_to_character(source, offset + last + MATCH_MARGIN_BYTES),
                    )
        before_it = kind


def build_line_finder(pattern: Any, ignore_case: bool) -> Callable[[bytes], Iterator[Span]]:
    """Return what yields the lines of a buffer that `pattern` is found in; raises `InputError` if it is none."""
    if (
        isinstance(pattern, str)
        and pattern
        and not ignore_case
        and not REGEX_SPECIAL.search(pattern)
    ):
        needle = pattern.encode("utf-8", "surrogateescape")
        return lambda data: _find_literal_lines(data, needle)
    compiled = compile_pattern(pattern, ignore_case)
    if NEEDS_SINGLE_LINES.search(compiled.pattern):
        return lambda data: _match_line_by_line(data, compiled)
    return lambda data: _find_regex_lines(data, compiled)


def build_part_finder(pattern: Any, ignore_case: bool) -> Callable[[bytes], Iterator[Span]]:
    """Return what yields where in a part of a long line `pattern` is found."""
    compiled = compile_pattern(pattern, ignore_case)

    def find(data: bytes) -> Iterator[Span]:
        text = data.decode("utf-8", "surrogateescape")
        offset_of = ByteOffsets(text, len(data))
        for match in compiled.finditer(text):
            yield offset_of(match.start()), offset_of(match.end())

    return find


def compile_pattern(pattern: Any, ignore_case: bool) -> re.Pattern[str]:
    """Return a pattern as the regular expression that it is; raises `InputError`."""
    given = getattr(pattern, "pattern", pattern)
    flags = getattr(pattern, "flags", 0) | re.MULTILINE | (re.IGNORECASE if ignore_case else 0)
    if not isinstance(given, str):
        raise InputError(
            f"A pattern is a text or a compiled regular expression of text, not {type(given).__name__}."
        )
    try:
        return re.compile(given, flags)
    except re.error as exc:
        raise InputError(
            f"{given!r:.200} is no regular expression: {exc}. re.escape(...) takes it as it is."
        ) from None


class ByteOffsets:
    """Where in bytes the characters of a text are, asked for in rising order."""

    def __init__(self, text: str, size: int) -> None:
        self._text = (
            text if len(text) < size else ""
        )  # else it is ASCII, and nothing has to be counted
        self._at = self._offset = 0

    def __call__(self, at: int) -> int:
        if not self._text:
            return at
        self._offset += len(self._text[self._at : at].encode("utf-8", "surrogateescape"))
        self._at = at
        return self._offset


def _find_literal_lines(data: bytes, needle: bytes) -> Iterator[Span]:
    at = data.find(needle)
    while at >= 0:
        last = data.find(b"\n", at)
        last = len(data) if last < 0 else last
        yield data.rfind(b"\n", 0, at) + 1, last
        at = data.find(needle, last + 1)


def _find_regex_lines(data: bytes, pattern: re.Pattern[str]) -> Iterator[Span]:
    text = data.decode("utf-8", "surrogateescape")
    offset_of = ByteOffsets(text, len(data))
    match = pattern.search(text)
    while match is not None:
        first = text.rfind("\n", 0, match.start()) + 1
        last = text.find("\n", match.start())
        last = len(text) if last < 0 else last
        stop = last - text.endswith("\r", first, last)
        if match.end() <= stop or pattern.search(
            text[first:stop]
        ):  # else it was found across the line's end
            yield offset_of(first), offset_of(last)
        match = pattern.search(text, last + 1) if last < len(text) else None


def _match_line_by_line(data: bytes, pattern: re.Pattern[str]) -> Iterator[Span]:
    first = 0
    for line in data.split(b"\n"):
        if pattern.search(line.rstrip(b"\r").decode("utf-8", "surrogateescape")):
            yield first, first + len(line)
        first += len(line) + 1


# chunks -------------------------------------------------------------------------------------------


def iter_chunk_spans(
    source: InputSource, start: int, end: int, max_chars: int, overlap: int, by: str
) -> Iterator[Span]:
    """Yield pieces of at most `max_chars` characters that end, where that is possible, behind a line or paragraph.

    Each begins up to `overlap` characters before the end of the one before, at the beginning of a line if it is by
    those.
    """
    at = covered = start
    while at < end:
        data = read_head(source, at, end, max_chars)
        if at + len(data) >= end:
            yield at, end
            return
        size = _measure_chunk(data, by, covered - at)
        covered = at + size
        yield at, covered
        at += _find_next_chunk(data[:size], overlap, by) if overlap else size


def read_head(source: InputSource, at: int, end: int, max_chars: int) -> bytes:
    """Return the bytes of the first `max_chars` characters from `at` on."""
    data, wanted = b"", max_chars
    while at + len(data) < end and wanted > 0:
        more = source.read(at + len(data), min(at + len(data) + wanted + 3, end))
        if not more:
            break
        data += more
        size = len(data) if at + len(data) >= end else length_of_whole_characters(data)
        if data[:max_chars].isascii():
            return data[:max_chars]
        text = data[:size].decode("utf-8", "surrogateescape")
        if len(text) >= max_chars:
            return text[:max_chars].encode("utf-8", "surrogateescape")
        wanted = max_chars - len(text)
    return data


def _measure_chunk(data: bytes, by: str, covered: int) -> int:
    """Return how much of `data` makes a chunk: up to its last break, or all of it, and more than what is `covered`."""
    for mark in CHUNK_BREAKS[by]:
        found = data.rfind(mark) + len(mark)
        if found >= len(mark) and found > covered:
            return found
    return len(data)


def _find_next_chunk(data: bytes, overlap: int, by: str) -> int:
    """Return how far behind the beginning of the chunk `data` the next one begins."""
    tail = data[-4 * overlap :]
    text = tail[_find_first_character(tail) :].decode("utf-8", "surrogateescape")[-overlap:]
    start = len(data) - len(text.encode("utf-8", "surrogateescape"))
    if by != "chars":
        found = data.find(b"\n", start - 1)
        start = found + 1 if found >= 0 else len(data)
    return start if start > 0 else len(data)


def _find_first_character(data: bytes) -> int:
    """Return where the first whole character of `data` begins."""
    at = 0
    while at < min(3, len(data)) and data[at] & 0xC0 == 0x80:
        at += 1
    return at
