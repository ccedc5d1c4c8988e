"""The output of a run in windows of lines, so that a page never holds all of it.

An index says in which event every line begins; it is built once for a finished run, and continued
while a run writes. A window reads only the events that it needs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio
from markupsafe import Markup

from ..journal.events import OutputWritten
from ..journal.rows import RunRow, StoredEvent
from ..journal.store import Journal
from .terminal_output import MAX_LINE_CHARS, PLAIN, TextStyle, render_line, skip_styles

WINDOW_LINES = 400
MAX_INDEXES = 32
MAX_KEPT_LINE_CHARS = MAX_LINE_CHARS * 4  # escape sequences included
MAX_INDEX_PAGE_EVENTS = 500


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
    byte_count: int = 0
    dropped_bytes: int = 0
    lock: anyio.Lock = field(default_factory=anyio.Lock)  # of the request that continues it

    @property
    def line_count(self) -> int:
        """How many lines there are; the last one may be unfinished."""
        return self.line if self.is_line_open else self.line - 1

    def add(self, stored: StoredEvent) -> None:
        """Add the next event."""
        assert isinstance(stored.event, OutputWritten), "the index has output only"
        text = stored.event.text
        self.starts.append(OutputStart(stored.sequence, self.line, self.style))
        self.sequence = stored.sequence
        self.line += text.count("\n")
        if text:
            self.is_line_open = not text.endswith("\n")
        if "\x1b" in text:
            self.style = skip_styles(text, self.style)
        self.byte_count += len(text)
        self.dropped_bytes += stored.event.dropped_bytes


@dataclass(frozen=True)
class OutputLine:
    """A line of output, and the stream that has written most of it."""

    number: int
    stream: str
    markup: Markup


@dataclass(frozen=True)
class OutputWindow:
    """Some lines of a run's output, and how much there is."""

    lines: tuple[OutputLine, ...]
    line_count: int
    byte_count: int
    dropped_bytes: int

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
        return self.last < self.line_count


class OutputReader:
    """Reads windows of output."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._indexes: OrderedDict[str, OutputIndex] = OrderedDict()  # by run

    async def read_window(self, run: RunRow, first: int | None = None) -> OutputWindow:
        """Return the lines from number `first`; without it, the last ones."""
        index = await self._load_index(run)
        if first is None:
            first = index.line_count - WINDOW_LINES + 1
        first = min(max(first, 1), max(index.line_count, 1))
        place = max(bisect_right(index.starts, first, key=lambda each: each.line) - 1, 0)
        # The line may have begun in an earlier event that ends in the same line.
        while place > 0 and index.starts[place].line == first:
            place -= 1
        lines: tuple[OutputLine, ...] = ()
        if index.starts:
            start = index.starts[place]

            def read(_: RunRow, stored: Iterator[StoredEvent]) -> tuple[OutputLine, ...]:
                return collect_lines(stored, start, first, index.sequence)

            after = start.sequence - 1
            lines = await self._journal.scan_run_events(run.id, after, read, OutputWritten)
        return OutputWindow(lines, index.line_count, index.byte_count, index.dropped_bytes)

    async def _load_index(self, run: RunRow) -> OutputIndex:
        index = self._indexes.setdefault(run.id, OutputIndex())
        self._indexes.move_to_end(run.id)
        if len(self._indexes) > MAX_INDEXES:
            self._indexes.popitem(last=False)

        def extend(_: RunRow, stored: Iterator[StoredEvent]) -> list[StoredEvent]:
            return [each for each, _ in zip(stored, range(MAX_INDEX_PAGE_EVENTS), strict=False)]

        async with index.lock:
            while page := await self._journal.scan_run_events(
                run.id, index.sequence, extend, OutputWritten
            ):
                for each in page:
                    index.add(each)
        return index


def collect_lines(
    stored: Iterator[StoredEvent], start: OutputStart, first: int, until: int
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
            if len(lines) >= WINDOW_LINES:
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
