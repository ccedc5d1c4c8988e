"""The output of a run in windows of lines, so that a page never holds all of it.

An index says in which event every line begins; it is built once for a finished run, and continued
while a run writes. A window needs it up to its own lines only, and reads only the events that have
them: so a page is there before it is known how many lines there are.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from sqlite3 import Connection
from typing import NamedTuple

import anyio
from markupsafe import Markup

from ..journal import overviews
from ..journal.events import OutputWritten
from ..journal.overviews import OutputExtent
from ..journal.rows import RunRow, StoredEvent
from ..journal.store import Journal
from .terminal_output import MAX_LINE_CHARS, PLAIN, TextStyle, render_line, skip_styles

WINDOW_LINES = 400
FIRST_LINES = 150  # that a page has when it is loaded: more than it shows without scrolling
MAX_INDEXES = 32
MAX_KEPT_LINE_CHARS = MAX_LINE_CHARS * 4  # escape sequences included
MAX_INDEX_PAGE_EVENTS = 16  # that one read of the journal adds to an index: up to 1 MB, a few ms


class OutputStart(NamedTuple):
    """Where an event with output begins: in which line, and in which style."""

    sequence: int
    line: int
    style: TextStyle


@dataclass
class OutputIndex:
    """Where the events of a run's output begin; `line` is the one that the next text continues."""

    starts: list[OutputStart] = field(default_factory=list)
    sequence: int = 0
    line: int = 1
    is_line_open: bool = False
    style: TextStyle = PLAIN
    dropped_bytes: int = 0
    is_built: bool = False  # it once had everything; the run may have written more since
    lock: anyio.Lock = field(default_factory=anyio.Lock)  # of the request that continues it

    @property
    def line_count(self) -> int:
        """How many lines there are; the last one may be unfinished."""
        return self.line if self.is_line_open else self.line - 1

    def add(self, extent: OutputExtent) -> None:
        """Add the next event."""
        self.starts.append(OutputStart(extent.sequence, self.line, self.style))
        self.sequence = extent.sequence
        self.line += extent.text.newline_count
        if not extent.text.is_empty:
            self.is_line_open = not extent.text.ends_line
        if extent.text.styled:
            self.style = skip_styles(extent.text.styled, self.style)
        self.dropped_bytes += extent.dropped_bytes


@dataclass(frozen=True)
class OutputLine:
    """A line of output, and the stream that has written most of it."""

    number: int
    stream: str
    markup: Markup


@dataclass(frozen=True)
class OutputWindow:
    """Some lines of a run's output, and how much there is; None: that is not known yet."""

    lines: tuple[OutputLine, ...]
    line_count: int | None
    dropped_bytes: int = 0

    @property
    def first(self) -> int:
        """The number of its first line."""
        return self.lines[0].number if self.lines else 1

    @property
    def last(self) -> int:
        """The number of its last line."""
        return self.lines[-1].number if self.lines else 0

    @property
    def has_earlier(self) -> bool:
        """Whether there are lines before."""
        return self.first > 1

    @property
    def has_later(self) -> bool:
        """Whether there are lines behind."""
        return self.line_count is None or self.last < self.line_count


class OutputReader:
    """Reads windows of output."""

    def __init__(self, journal: Journal, turn: anyio.CapacityLimiter) -> None:
        self._journal = journal
        self._turn = turn
        self._indexes: OrderedDict[str, OutputIndex] = OrderedDict()  # by run

    async def read_soon(self, run: RunRow) -> OutputWindow:
        """Return the first lines of a finished run, or the last ones of another.

        They are the first ones, too, of a run whose output is long and was not read before.
        """
        index = self._find_index(run)
        if not index.is_built:
            await self._extend_index(run, index, FIRST_LINES)
        if index.is_built and not run.is_finished:
            return await self.read_window(run)
        return await self._read_lines(run, index, 1, FIRST_LINES)

    async def read_window(self, run: RunRow, first: int | None = None) -> OutputWindow:
        """Return the lines from number `first`; without it, the last ones."""
        index = self._find_index(run)
        last = sys.maxsize if first is None else first + WINDOW_LINES
        while await self._extend_index(run, index, last):
            pass  # in a worker thread; other requests come between two pages
        if first is None:
            first = index.line_count - WINDOW_LINES + 1
        return await self._read_lines(run, index, first)

    async def measure(self, run: RunRow) -> OutputWindow:
        """Return a window without lines, which says how much there is."""
        index = self._find_index(run)
        while await self._extend_index(run, index, sys.maxsize):
            pass
        return OutputWindow((), index.line_count, index.dropped_bytes)

    async def _read_lines(
        self, run: RunRow, index: OutputIndex, first: int, count: int = WINDOW_LINES
    ) -> OutputWindow:
        """Return `count` lines from number `first` of an output as far as its index goes."""
        first = min(max(first, 1), max(index.line_count, 1))
        place = max(bisect_right(index.starts, first, key=lambda each: each.line) - 1, 0)
        # The line may have begun in an earlier event that ends in the same line.
        while place > 0 and index.starts[place].line == first:
            place -= 1
        lines: tuple[OutputLine, ...] = ()
        if index.starts:
            start, until = index.starts[place], index.sequence

            def read(_: RunRow, stored: Iterator[StoredEvent]) -> tuple[OutputLine, ...]:
                return collect_lines(stored, start, first, until, count)

            after = start.sequence - 1
            async with self._turn:
                lines = await self._journal.scan_run_events(run.id, after, read, OutputWritten)
        line_count = index.line_count if index.is_built else None
        return OutputWindow(lines, line_count, index.dropped_bytes)

    def _find_index(self, run: RunRow) -> OutputIndex:
        index = self._indexes.setdefault(run.id, OutputIndex())
        self._indexes.move_to_end(run.id)
        if len(self._indexes) > MAX_INDEXES:
            self._indexes.popitem(last=False)
        return index

    async def _extend_index(self, run: RunRow, index: OutputIndex, last: int) -> bool:
        """Add some events to an index; return whether it lacks some of those up to line `last`.

        One that has had everything gets all that the run has written since.
        """
        if index.is_built:
            last = sys.maxsize
            if run.is_finished:
                return False

        def extend(rows: Connection) -> bool:
            extents = overviews.iter_output_extents(rows, self._journal.blobs, run, index.sequence)
            for each in islice(extents, MAX_INDEX_PAGE_EVENTS):
                if index.line > last:
                    return False
                index.add(each)
            return next(extents, None) is None

        async with index.lock, self._turn:
            if index.line > last:
                return False
            is_end = await self._journal.read(extend)
            index.is_built |= is_end
        return not is_end and index.line <= last


def collect_lines(
    stored: Iterator[StoredEvent], start: OutputStart, first: int, until: int, count: int
) -> tuple[OutputLine, ...]:
    """Return the lines of a window, rendered; reads no further than it has to."""
    lines: list[OutputLine] = []
    number, style = start.line, start.style
    text, stream = "", ""
    for each in stored:
        if each.sequence > until:
            break
        event = each.event
        assert isinstance(event, OutputWritten), "only output is selected"
        *ended, rest = event.text.split("\n")
        for part in ended:
            stream = stream or event.stream
            style = add_line(lines, number, stream, text + part, style, first)
            number, text, stream = number + 1, "", ""
            if len(lines) >= count:
                return tuple(lines)
        if rest:
            stream = stream or event.stream
            if len(text) < MAX_KEPT_LINE_CHARS:
                text += rest[:MAX_KEPT_LINE_CHARS]
    if text:
        add_line(lines, number, stream, text, style, first)
    return tuple(lines)


def add_line(
    lines: list[OutputLine], number: int, stream: str, text: str, style: TextStyle, first: int
) -> TextStyle:
    """Add a line to a window if it is in it, and return the style in which the next one begins."""
    if number < first:
        return skip_styles(text, style)
    markup, style = render_line(text, style)
    lines.append(OutputLine(number, stream, markup))
    return style
