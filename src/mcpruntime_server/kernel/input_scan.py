"""Passes over inputs: where lines, hits and chunks begin and end, as offsets. Their text is read by whoever wants it.

Rule 1: standard library only, Python >= 3.9, and imported only when a run has an input.
Rule 2: memory does not depend on the size of an input, nor on the length of its lines.
Rule 3: offsets are bytes; they lie between characters. Bytes that are no UTF-8 count as a character each.
"""

from __future__ import annotations

import re

from .input_bytes import InputError, whole

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator, Optional, Tuple, Union

    from .input_bytes import Source

    Span = Tuple[int, int]

LONGEST = 1 << 20  # bytes of a line that are looked at as one; longer lines are gone through in parts
AROUND = 200  # bytes on both sides of a hit in a line that is longer
STRADDLE = 1 << 12  # bytes that a hit in such a line may have on both sides of a part's end
SLOW = re.compile(r"\\[AZb]|\$|\(\?[<=!]")  # in a pattern that has to see each line alone
SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")
LINES, PART, REST = "lines", "part", "rest"  # what a buffer holds
BREAKS = {"chars": (), "lines": (b"\n",), "paragraphs": (b"\n\n", b"\n\r\n", b"\n")}


def decode(data: Union[bytes, bytearray]) -> str:
    """Return bytes as text; what is no UTF-8 is replaced."""
    return data.decode("utf-8", "replace")


def before(source: Source, offset: int) -> int:
    """Return the last offset up to `offset` that lies between two characters."""
    start = max(offset - 3, 0)
    data = source.read(start, offset + 1)
    if start + len(data) <= offset or data[-1] & 0xC0 != 0x80:
        return offset
    lead = start + whole(data[:-1])
    return lead if lead < offset else offset


# lines --------------------------------------------------------------------------------------------


def line_spans(source: Source, start: int, end: Optional[int]) -> Iterator[Span]:
    """Yield where each line begins and ends, without its line end."""
    begun, last, offset, data = start, b"", start, b""
    for offset, data in source.blocks(start, end):
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


def buffers(source: Source, start: int, end: Optional[int]) -> Iterator[Tuple[int, bytes, str]]:
    """Yield (offset, bytes, kind): whole lines (`LINES`) without the last line end, or a `PART` of a long line.

    Parts of one line follow each other and overlap by about `STRADDLE` bytes; the last is its `REST`.
    """
    carried, at, is_part = b"", start, False
    for offset, data in source.blocks(start, end):
        first, last = data.find(b"\n"), data.rfind(b"\n")
        if is_part and first >= 0:
            yield at, carried + data[:first], REST
            carried, at, is_part = b"", offset + first + 1, False
            if first < last:
                yield at, data[first + 1 : last], LINES
        elif last >= 0:
            yield at, carried + data[:last], LINES
        if last >= 0:
            carried, at = data[last + 1 :], offset + last + 1
        else:
            carried += data
        if len(carried) > LONGEST:
            yield at, carried, PART
            kept = len(carried) - whole(carried[:-STRADDLE])
            at, carried, is_part = at + len(carried) - kept, carried[-kept:], True
    if carried:
        yield at, carried, REST if is_part else LINES


def texts(source: Source, start: int, end: Optional[int]) -> Iterator[str]:
    """Yield the lines as text, without line ends; one of more than `LONGEST` bytes comes in parts of about that."""
    done = start
    for offset, data, kind in buffers(source, start, end):
        if kind == LINES:
            yield from _lines_in(data)
            continue
        new = data[max(done - offset, 0) :]
        size = whole(new) if kind == PART else len(new)
        done = offset + len(data) - len(new) + size
        if size:
            yield decode(new[:size])


def whole_lines(source: Source, start: int, end: Optional[int], most: int) -> Iterator[str]:
    """Yield the lines as text, without line ends; raises `InputError` for one of more than `most` bytes."""
    held, done = bytearray(), start
    for offset, data, kind in buffers(source, start, end):
        if kind == LINES:
            yield from _lines_in(data)
            continue
        held += data[max(done - offset, 0) :]
        done = offset + len(data)
        if len(held) > most:
            raise InputError(f"A line of {source.name!r} has more than {most:,} bytes, too much for one text.")
        if kind == REST:
            yield from _lines_in(held)
            held.clear()


def _lines_in(data: Union[bytes, bytearray]) -> Iterator[str]:
    for line in decode(data).split("\n"):
        yield line[:-1] if line.endswith("\r") else line


def holds(source: Source, start: int, end: Optional[int], text: str) -> bool:
    """Return whether a text stands there, of whatever lines."""
    needle, before_it = text.encode("utf-8", "surrogateescape"), b""
    for _, data in source.blocks(start, end):
        if needle in before_it + data:
            return True
        before_it = (before_it + data)[-len(needle) :]
    return not needle


# hits ---------------------------------------------------------------------------------------------


def hits(source: Source, start: int, end: Optional[int], pattern: Any, ignore_case: bool) -> Iterator[Span]:
    """Yield where the lines begin and end that a pattern (a regular expression, as text or compiled) is found in.

    Of a line of more than `LONGEST` bytes, each hit is yielded, with `AROUND` bytes on both sides.
    """
    find, find_in_part = finder(pattern, ignore_case), None
    done, before_it = start, LINES
    for offset, data, kind in buffers(source, start, end):
        if kind == LINES:
            for first, last in find(data):
                is_crlf = last > first and data[last - 1] == 13
                yield offset + first, offset + last - is_crlf
        else:
            find_in_part = find_in_part or part_finder(pattern, ignore_case)
            for first, last in find_in_part(data):
                is_at_an_end = (kind == PART and last == len(data)) or (before_it == PART and first == 0)
                if offset + first >= done and not is_at_an_end:  # else it is found in the other part, as it is
                    done = offset + last
                    yield before(source, max(offset + first - AROUND, start)), before(source, offset + last + AROUND)
        before_it = kind


def finder(pattern: Any, ignore_case: bool) -> Callable[[bytes], Iterator[Span]]:
    """Return what yields the lines of a buffer that `pattern` is found in; raises `InputError` if it is none."""
    if isinstance(pattern, str) and pattern and not ignore_case and not SPECIAL.search(pattern):
        needle = pattern.encode("utf-8", "surrogateescape")
        return lambda data: _literal(data, needle)
    compiled = compiled_pattern(pattern, ignore_case)
    if SLOW.search(compiled.pattern):
        return lambda data: _line_by_line(data, compiled)
    return lambda data: _regular(data, compiled)


def part_finder(pattern: Any, ignore_case: bool) -> Callable[[bytes], Iterator[Span]]:
    """Return what yields where in a part of a long line `pattern` is found."""
    compiled = compiled_pattern(pattern, ignore_case)

    def find(data: bytes) -> Iterator[Span]:
        text = data.decode("utf-8", "surrogateescape")
        offset_of = Offsets(text, len(data))
        for match in compiled.finditer(text):
            yield offset_of(match.start()), offset_of(match.end())

    return find


def compiled_pattern(pattern: Any, ignore_case: bool) -> re.Pattern[str]:
    """Return a pattern as the regular expression that it is; raises `InputError`."""
    given = getattr(pattern, "pattern", pattern)
    flags = getattr(pattern, "flags", 0) | re.MULTILINE | (re.IGNORECASE if ignore_case else 0)
    if not isinstance(given, str):
        raise InputError(f"A pattern is a text or a compiled regular expression of text, not {type(given).__name__}.")
    try:
        return re.compile(given, flags)
    except re.error as exc:
        raise InputError(f"{given!r:.200} is no regular expression: {exc}. re.escape(...) takes it as it is.") from None


class Offsets:
    """Where in bytes the characters of a text are, asked for in rising order."""

    def __init__(self, text: str, size: int) -> None:
        self._text = text if len(text) < size else ""  # else it is ASCII, and nothing has to be counted
        self._at = self._offset = 0

    def __call__(self, at: int) -> int:
        if not self._text:
            return at
        self._offset += len(self._text[self._at : at].encode("utf-8", "surrogateescape"))
        self._at = at
        return self._offset


def _literal(data: bytes, needle: bytes) -> Iterator[Span]:
    at = data.find(needle)
    while at >= 0:
        last = data.find(b"\n", at)
        last = len(data) if last < 0 else last
        yield data.rfind(b"\n", 0, at) + 1, last
        at = data.find(needle, last + 1)


def _regular(data: bytes, pattern: re.Pattern[str]) -> Iterator[Span]:
    text = data.decode("utf-8", "surrogateescape")
    offset_of = Offsets(text, len(data))
    match = pattern.search(text)
    while match is not None:
        first = text.rfind("\n", 0, match.start()) + 1
        last = text.find("\n", match.start())
        last = len(text) if last < 0 else last
        stop = last - text.endswith("\r", first, last)
        if match.end() <= stop or pattern.search(text[first:stop]):  # else it was found across the line's end
            yield offset_of(first), offset_of(last)
        match = pattern.search(text, last + 1) if last < len(text) else None


def _line_by_line(data: bytes, pattern: re.Pattern[str]) -> Iterator[Span]:
    first = 0
    for line in data.split(b"\n"):
        if pattern.search(line.rstrip(b"\r").decode("utf-8", "surrogateescape")):
            yield first, first + len(line)
        first += len(line) + 1


# chunks -------------------------------------------------------------------------------------------


def chunk_spans(source: Source, start: int, end: int, max_chars: int, overlap: int, by: str) -> Iterator[Span]:
    """Yield pieces of at most `max_chars` characters that end, where that is possible, behind a line or paragraph.

    Each begins up to `overlap` characters before the end of the one before, at the beginning of a line if it is by
    those.
    """
    at = covered = start
    while at < end:
        data = head(source, at, end, max_chars)
        if at + len(data) >= end:
            yield at, end
            return
        size = _cut(data, by, covered - at)
        covered = at + size
        yield at, covered
        at += _next(data[:size], overlap, by) if overlap else size


def head(source: Source, at: int, end: int, max_chars: int) -> bytes:
    """Return the bytes of the first `max_chars` characters from `at` on."""
    data, wanted = b"", max_chars
    while at + len(data) < end and wanted > 0:
        more = source.read(at + len(data), min(at + len(data) + wanted + 3, end))
        if not more:
            break
        data += more
        size = len(data) if at + len(data) >= end else whole(data)
        if data[:max_chars].isascii():
            return data[:max_chars]
        text = data[:size].decode("utf-8", "surrogateescape")
        if len(text) >= max_chars:
            return text[:max_chars].encode("utf-8", "surrogateescape")
        wanted = max_chars - len(text)
    return data


def _cut(data: bytes, by: str, covered: int) -> int:
    """Return how much of `data` makes a chunk: up to its last break, or all of it, and more than what is `covered`."""
    for mark in BREAKS[by]:
        found = data.rfind(mark) + len(mark)
        if found >= len(mark) and found > covered:
            return found
    return len(data)


def _next(data: bytes, overlap: int, by: str) -> int:
    """Return how far behind the beginning of the chunk `data` the next one begins."""
    tail = data[-4 * overlap :]
    text = tail[_first(tail) :].decode("utf-8", "surrogateescape")[-overlap:]
    start = len(data) - len(text.encode("utf-8", "surrogateescape"))
    if by != "chars":
        found = data.find(b"\n", start - 1)
        start = found + 1 if found >= 0 else len(data)
    return start if start > 0 else len(data)


def _first(data: bytes) -> int:
    """Return where the first whole character of `data` begins."""
    at = 0
    while at < min(3, len(data)) and data[at] & 0xC0 == 0x80:
        at += 1
    return at
