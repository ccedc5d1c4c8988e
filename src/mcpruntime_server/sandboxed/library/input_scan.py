"""Passes over inputs: where lines, matches and chunks start and end, as offsets.

Rule 1: standard library only, Python >= 3.9, and imported only when a run has an input.
Rule 2: the memory of a pass depends neither on the size of the input nor on the length of its
lines.
Rule 3: offsets are bytes and lie between characters. A byte that is not UTF-8 counts as one
character.
"""

from __future__ import annotations

import re

from .input_source import InputError, length_of_whole_characters

TYPE_CHECKING = False  # importing `typing` would slow down every start of a sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator, Optional, Tuple, Union

    from .input_source import InputSource

    Span = Tuple[int, int]

MAX_LINE_BYTES = 1 << 20  # a longer line is scanned in parts
MATCH_MARGIN_BYTES = 200  # bytes on both sides of a match in a longer line
PART_OVERLAP_BYTES = 1 << 12  # how far a match in a longer line may reach over the end of a part
NEEDS_SINGLE_LINES = re.compile(
    r"\\[AZb]|\$|\(\?[<=!]"
)  # patterns that must see one line at a time
REGEX_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")
LINES_BUFFER, PART_BUFFER, REST_BUFFER = "lines", "part", "rest"  # kinds of a buffer
CHUNK_BREAKS = {"chars": (), "lines": (b"\n",), "paragraphs": (b"\n\n", b"\n\r\n", b"\n")}
CARRIAGE_RETURN = 13


def decode_text(data: Union[bytes, bytearray]) -> str:
    """Return bytes as text, with U+FFFD for what is not UTF-8."""
    return data.decode("utf-8", "replace")


def align_to_character(source: InputSource, offset: int) -> int:
    """Return the last offset up to `offset` that lies between two characters."""
    start = max(offset - 3, 0)
    data = source.read(start, offset + 1)
    if start + len(data) <= offset or data[-1] & 0xC0 != 0x80:
        return offset
    character_start = start + length_of_whole_characters(data[:-1])
    return min(character_start, offset)


# lines --------------------------------------------------------------------------------------------


def iter_line_spans(source: InputSource, start: int, end: Optional[int]) -> Iterator[Span]:
    """Yield the start and end of each line, without its line ending."""
    line_start = start
    last_byte = b""
    offset, data = start, b""
    for offset, data in source.iter_blocks(start, end):
        newline = data.find(b"\n")
        while newline >= 0:
            line_end = offset + newline
            before = data[newline - 1 : newline] if newline else last_byte
            is_crlf = line_end > line_start and before == b"\r"
            yield line_start, line_end - is_crlf
            line_start = line_end + 1
            newline = data.find(b"\n", newline + 1)
        last_byte = data[-1:]
    if line_start < offset + len(data):
        yield line_start, offset + len(data) - (last_byte == b"\r")


def iter_buffers(
    source: InputSource, start: int, end: Optional[int]
) -> Iterator[Tuple[int, bytes, str]]:
    """Yield (offset, bytes, kind).

    A `LINES_BUFFER` holds whole lines without the last line ending, a `PART_BUFFER` a part of a
    long line. The parts of one line follow each other and overlap by about `PART_OVERLAP_BYTES`;
    the last one is a `REST_BUFFER`.
    """
    carried, carried_offset = b"", start
    is_part = False
    for offset, data in source.iter_blocks(start, end):
        first, last = data.find(b"\n"), data.rfind(b"\n")
        if is_part and first >= 0:
            yield carried_offset, carried + data[:first], REST_BUFFER
            carried, carried_offset, is_part = b"", offset + first + 1, False
            if first < last:
                yield carried_offset, data[first + 1 : last], LINES_BUFFER
        elif last >= 0:
            yield carried_offset, carried + data[:last], LINES_BUFFER
        if last >= 0:
            carried, carried_offset = data[last + 1 :], offset + last + 1
        else:
            carried += data
        if len(carried) > MAX_LINE_BYTES:
            yield carried_offset, carried, PART_BUFFER
            kept = len(carried) - length_of_whole_characters(carried[:-PART_OVERLAP_BYTES])
            carried_offset += len(carried) - kept
            carried = carried[-kept:]
            is_part = True
    if carried:
        yield carried_offset, carried, REST_BUFFER if is_part else LINES_BUFFER


def iter_lines(source: InputSource, start: int, end: Optional[int]) -> Iterator[str]:
    """Yield lines as text without line endings; a line over `MAX_LINE_BYTES` comes in parts."""
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
    """Yield lines as text without line endings; raises `InputError` for a line over `max_bytes`."""
    held = bytearray()
    done = start
    for offset, data, kind in iter_buffers(source, start, end):
        if kind == LINES_BUFFER:
            yield from _split_lines(data)
            continue
        held += data[max(done - offset, 0) :]
        done = offset + len(data)
        if len(held) > max_bytes:
            raise InputError(
                f"A line of {source.name!r} has over {max_bytes:,} bytes, too many for one text."
            )
        if kind == REST_BUFFER:
            yield from _split_lines(held)
            held.clear()


def _split_lines(data: Union[bytes, bytearray]) -> Iterator[str]:
    for line in decode_text(data).split("\n"):
        yield line[:-1] if line.endswith("\r") else line


def contains_text(source: InputSource, start: int, end: Optional[int], text: str) -> bool:
    """Return whether a text occurs there; it may span lines."""
    needle = text.encode("utf-8", "surrogateescape")
    tail = b""
    for _, data in source.iter_blocks(start, end):
        if needle in tail + data:
            return True
        tail = (tail + data)[-len(needle) :]
    return not needle


# matches ------------------------------------------------------------------------------------------


def iter_matches(
    source: InputSource, start: int, end: Optional[int], pattern: Any, ignore_case: bool
) -> Iterator[Span]:
    """Yield the start and end of each line that a regular expression (text or compiled) matches.

    In a line over `MAX_LINE_BYTES`, each match is yielded with `MATCH_MARGIN_BYTES` on both sides.
    """
    find_lines = build_line_finder(pattern, ignore_case)
    find_in_part = None
    done = start
    previous_kind = LINES_BUFFER
    for offset, data, kind in iter_buffers(source, start, end):
        if kind == LINES_BUFFER:
            for first, last in find_lines(data):
                is_crlf = last > first and data[last - 1] == CARRIAGE_RETURN
                yield offset + first, offset + last - is_crlf
        else:
            find_in_part = find_in_part or build_part_finder(pattern, ignore_case)
            for first, last in find_in_part(data):
                ends_part = kind == PART_BUFFER and last == len(data)
                starts_part = previous_kind == PART_BUFFER and first == 0
                # A match at the edge of a part may be cut off; the other part has it whole.
                if offset + first >= done and not ends_part and not starts_part:
                    done = offset + last
                    context_start = max(offset + first - MATCH_MARGIN_BYTES, start)
                    context_end = offset + last + MATCH_MARGIN_BYTES
                    yield (
                        align_to_character(source, context_start),
                        align_to_character(source, context_end),
                    )
        previous_kind = kind


def build_line_finder(pattern: Any, ignore_case: bool) -> Callable[[bytes], Iterator[Span]]:
    """Return a function that yields the lines of a buffer that `pattern` matches.

    Raises `InputError` if it is not a regular expression.
    """
    is_literal = isinstance(pattern, str) and pattern and not REGEX_SPECIAL.search(pattern)
    if is_literal and not ignore_case:
        needle = pattern.encode("utf-8", "surrogateescape")
        return lambda data: _find_literal_lines(data, needle)
    compiled = compile_pattern(pattern, ignore_case)
    if NEEDS_SINGLE_LINES.search(compiled.pattern):
        return lambda data: _match_line_by_line(data, compiled)
    return lambda data: _find_regex_lines(data, compiled)


def build_part_finder(pattern: Any, ignore_case: bool) -> Callable[[bytes], Iterator[Span]]:
    """Return a function that yields where `pattern` matches in a part of a long line."""
    compiled = compile_pattern(pattern, ignore_case)

    def find_spans(data: bytes) -> Iterator[Span]:
        text = data.decode("utf-8", "surrogateescape")
        to_offset = ByteOffsets(text, len(data))
        for match in compiled.finditer(text):
            yield to_offset(match.start()), to_offset(match.end())

    return find_spans


def compile_pattern(pattern: Any, ignore_case: bool) -> re.Pattern[str]:
    """Return a pattern (text or compiled) as a regular expression; raises `InputError`."""
    source = getattr(pattern, "pattern", pattern)
    flags = getattr(pattern, "flags", 0) | re.MULTILINE
    if ignore_case:
        flags |= re.IGNORECASE
    if not isinstance(source, str):
        raise InputError(
            "A pattern is text or a regular expression compiled from text, "
            f"not {type(source).__name__}."
        )
    try:
        return re.compile(source, flags)
    except re.error as exc:
        raise InputError(
            f"{source!r:.200} is not a regular expression: {exc}. "
            "To search for this text as it is, use re.escape(...)."
        ) from None


class ByteOffsets:
    """Converts places in a text to offsets in its bytes, in rising order."""

    def __init__(self, text: str, size: int) -> None:
        self._text = text if len(text) < size else ""  # of ASCII text, places are offsets
        self._place = 0
        self._offset = 0

    def __call__(self, place: int) -> int:
        if not self._text:
            return place
        passed = self._text[self._place : place]
        self._offset += len(passed.encode("utf-8", "surrogateescape"))
        self._place = place
        return self._offset


def _find_literal_lines(data: bytes, needle: bytes) -> Iterator[Span]:
    found = data.find(needle)
    while found >= 0:
        line_end = data.find(b"\n", found)
        if line_end < 0:
            line_end = len(data)
        yield data.rfind(b"\n", 0, found) + 1, line_end
        found = data.find(needle, line_end + 1)


def _find_regex_lines(data: bytes, pattern: re.Pattern[str]) -> Iterator[Span]:
    text = data.decode("utf-8", "surrogateescape")
    to_offset = ByteOffsets(text, len(data))
    match = pattern.search(text)
    while match is not None:
        first = text.rfind("\n", 0, match.start()) + 1
        last = text.find("\n", match.start())
        if last < 0:
            last = len(text)
        line_end = last - text.endswith("\r", first, last)
        # A match that reaches into the next line counts only if the line alone matches, too.
        if match.end() <= line_end or pattern.search(text[first:line_end]):
            yield to_offset(first), to_offset(last)
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
    """Yield chunks of at most `max_chars` characters, ending after a line or paragraph if possible.

    Each starts up to `overlap` characters before the end of the one before; unless chunks are made
    by characters, it starts at the beginning of a line.
    """
    chunk_start = covered = start
    while chunk_start < end:
        data = read_head(source, chunk_start, end, max_chars)
        if chunk_start + len(data) >= end:
            yield chunk_start, end
            return
        size = _measure_chunk(data, by, covered - chunk_start)
        covered = chunk_start + size
        yield chunk_start, covered
        chunk_start += _find_next_chunk(data[:size], overlap, by) if overlap else size


def read_head(source: InputSource, start: int, end: int, max_chars: int) -> bytes:
    """Return the bytes of the first `max_chars` characters from `start` on."""
    data = b""
    missing_chars = max_chars
    while start + len(data) < end and missing_chars > 0:
        read_end = min(start + len(data) + missing_chars + 3, end)
        more = source.read(start + len(data), read_end)
        if not more:
            break
        data += more
        if data[:max_chars].isascii():
            return data[:max_chars]
        size = len(data) if start + len(data) >= end else length_of_whole_characters(data)
        text = data[:size].decode("utf-8", "surrogateescape")
        if len(text) >= max_chars:
            return text[:max_chars].encode("utf-8", "surrogateescape")
        missing_chars = max_chars - len(text)
    return data


def _measure_chunk(data: bytes, by: str, covered: int) -> int:
    """Return how many bytes of `data` form the chunk.

    It ends at the last break, unless that is already `covered` by the chunk before; then all of
    `data` is the chunk.
    """
    for ending in CHUNK_BREAKS[by]:
        found = data.rfind(ending) + len(ending)
        if found >= len(ending) and found > covered:
            return found
    return len(data)


def _find_next_chunk(chunk: bytes, overlap: int, by: str) -> int:
    """Return the distance from the start of a chunk to the start of the next one."""
    tail = chunk[-4 * overlap :]
    text = tail[_find_first_character(tail) :].decode("utf-8", "surrogateescape")[-overlap:]
    start = len(chunk) - len(text.encode("utf-8", "surrogateescape"))
    if by != "chars":
        newline = chunk.find(b"\n", start - 1)
        start = newline + 1 if newline >= 0 else len(chunk)
    return start if start > 0 else len(chunk)


def _find_first_character(data: bytes) -> int:
    """Return the offset of the first whole character of `data`."""
    offset = 0
    while offset < min(3, len(data)) and data[offset] & 0xC0 == 0x80:
        offset += 1
    return offset
