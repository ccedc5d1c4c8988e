"""Splits what an upstream writes into lines, within the limits of one message.

Like all of the wire, it does no I/O: it is fed bytes, and returns lines.

Rule 1: a line past a limit is skipped to its end without being kept. What is left of it are its
first and last bytes, which may name the request that it answers.
Rule 2: an answer names its request before its result, or at the very end. Whatever looks like a
name elsewhere is content.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from ...protocol.json_limits import ValueCounter
from .message_limits import LARGE_BYTES, LimitExceeded, MessageLimits

END_BYTES = 512  # of a line that is skipped, kept of either end
MAX_SKIPPED_LINES = 4  # a line that is longer by this factor never ends, as far as one can know
ID_BEFORE = re.compile(rb'\s*{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,19})\s*,')
ID_AFTER = re.compile(
    rb',\s*"id"\s*:\s*(\d{1,19})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?}\s*$'
    rb'|,\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,19})\s*}\s*$'
)
METHOD = re.compile(rb'\s*{\s*(?:"(?:jsonrpc|id)"\s*:\s*"?[^",{}]*"?\s*,\s*)*"method"\s*:')
BLANK_LINES = re.compile(rb"\n\s+")


@dataclass(frozen=True)
class SkippedLine:
    """A line that exceeds a limit; `is_endless` means that its end has not been waited for."""

    reason: LimitExceeded
    first: bytes
    last: bytes
    is_endless: bool = False


class LineBuffer:
    """The lines in a stream of bytes."""

    def __init__(self, limits: MessageLimits) -> None:
        self._limits = limits
        self._lines: deque[bytes | bytearray | SkippedLine] = deque()
        self._unfinished = bytearray()
        self._counter: ValueCounter | None = None  # of a long line
        self._skipping: LimitExceeded | None = None
        self._skipped_bytes = 0
        self._first = b""

    @property
    def has_lines(self) -> bool:
        """Whether a line can be taken."""
        return bool(self._lines)

    def take(self) -> bytes | bytearray | SkippedLine:
        """Return the next line; there must be one."""
        return self._lines.popleft()

    def feed(self, data: bytes) -> None:
        """Take in the next bytes of the stream."""
        first, newline, more = data.partition(b"\n")
        self._extend(first)
        if not newline:
            return
        self._finish_line()
        lines, newline, rest = BLANK_LINES.sub(b"\n", more).rpartition(b"\n")
        if newline:
            self._lines.extend(line for line in lines.split(b"\n") if line.strip())
        self._extend(rest)

    def _extend(self, data: bytes) -> None:
        """Add `data` to the line that is not finished, unless that exceeds a limit."""
        if self._skipping is None:
            counted: bytes | bytearray = data
            self._unfinished += data
            if len(self._unfinished) > LARGE_BYTES:
                if self._counter is None:
                    self._counter, counted = ValueCounter(), self._unfinished
                values = self._counter.feed(counted)
                if len(self._unfinished) > self._limits.message_bytes:
                    self._skip(self._limits.bytes_exceeded)
                elif values > self._limits.values:
                    self._skip(self._limits.values_exceeded)
            return
        self._unfinished += data
        self._skipped_bytes += len(data)
        del self._unfinished[:-END_BYTES]
        if self._skipped_bytes > MAX_SKIPPED_LINES * self._limits.message_bytes:
            self._lines.append(SkippedLine(self._skipping, self._first, b"", is_endless=True))
            self._skipped_bytes = 0

    def _skip(self, reason: LimitExceeded) -> None:
        self._skipping, self._first = reason, bytes(self._unfinished[:END_BYTES])
        self._unfinished = self._unfinished[-END_BYTES:]

    def _finish_line(self) -> None:
        if self._skipping is not None:
            last = bytes(self._unfinished)
            self._lines.append(SkippedLine(self._skipping, self._first, last))
        elif self._unfinished.strip():
            self._lines.append(self._unfinished)
        self._unfinished, self._counter, self._skipping = bytearray(), None, None
        self._skipped_bytes = 0


def find_request_id(first: bytes | bytearray, last: bytes | bytearray) -> int | None:
    """Return the request that a line answers, by its first and last bytes; None if unknown."""
    if is_request(first):
        return None
    found = ID_BEFORE.match(first) or ID_AFTER.search(last)
    return int(next(filter(None, found.groups()))) if found else None


def is_request(first: bytes | bytearray) -> bool:
    """Return whether a line begins like a request or a notification, which answers nothing."""
    return METHOD.match(first) is not None
