"""Windows of output, read from a real journal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.journal.events import OutputWritten, RunFinished, RunStarted
from mcpruntime_server.journal.rows import RunRow
from mcpruntime_server.journal.store import Journal, open_journal
from mcpruntime_server.viewer.output_windows import (
    FIRST_LINES,
    MAX_INDEX_PAGE_EVENTS,
    WINDOW_LINES,
    OutputReader,
    OutputWindow,
)

SESSION, RUN = "s_output", "r_output"
MANY_EVENTS = MAX_INDEX_PAGE_EVENTS * 3
LINES_PER_EVENT = 20


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with open_journal(tmp_path) as opened:
        await opened.create_session(SESSION, "output", "local")
        opened.append(SESSION, RunStarted(RUN, None, 1, "", "<step 1>", 60.0), RUN)
        yield opened


def write(journal: Journal, text: str) -> None:
    journal.append(SESSION, OutputWritten("stdout", text), RUN)


def write_long(journal: Journal) -> int:
    """Write more than one read of an index takes; return how many lines that is."""
    for number in range(MANY_EVENTS):
        first = number * LINES_PER_EVENT + 1
        write(journal, "".join(f"line {first + place}\n" for place in range(LINES_PER_EVENT)))
    return MANY_EVENTS * LINES_PER_EVENT


async def finish(journal: Journal) -> RunRow:
    journal.append(SESSION, RunFinished("ok"), RUN)
    return await journal.load_run(RUN)


def check_lines(window: OutputWindow, first: int, last: int) -> None:
    """Check that a window has these lines, each with its own text."""
    assert (window.first, window.last) == (first, last)
    expected = [f"line {number}" for number in range(first, last + 1)]
    assert [str(each.markup) for each in window.lines] == expected


async def test_the_first_windows_of_a_long_output_need_no_count(journal: Journal) -> None:
    count = write_long(journal)
    run, reader = await finish(journal), OutputReader(journal, anyio.CapacityLimiter(1))
    window = await reader.read_soon(run)
    check_lines(window, 1, FIRST_LINES)
    assert window.line_count is None
    assert window.has_later
    window = await reader.read_window(run, FIRST_LINES + 1)
    check_lines(window, FIRST_LINES + 1, FIRST_LINES + WINDOW_LINES)
    assert window.line_count is None
    assert (await reader.measure(run)).line_count == count
    assert (await reader.read_soon(run)).line_count == count
    check_lines(await reader.read_window(run), count - WINDOW_LINES + 1, count)
    check_lines(await reader.read_window(run, count * 2), count, count)


async def test_a_short_output_is_counted_at_once(journal: Journal) -> None:
    write(journal, "line 1\nline")
    write(journal, " 2\nline 3")
    window = await OutputReader(journal, anyio.CapacityLimiter(1)).read_soon(await finish(journal))
    check_lines(window, 1, 3)
    assert window.line_count == 3
    assert not window.has_later


async def test_no_output_has_no_lines(journal: Journal) -> None:
    window = await OutputReader(journal, anyio.CapacityLimiter(1)).read_soon(await finish(journal))
    assert (window.lines, window.line_count) == ((), 0)


async def test_a_line_without_an_end_is_not_read_whole(journal: Journal) -> None:
    for _ in range(MANY_EVENTS):
        write(journal, "x" * 1_000)
    run, reader = await finish(journal), OutputReader(journal, anyio.CapacityLimiter(1))
    window = await reader.read_soon(run)
    assert (len(window.lines), window.line_count) == (1, None)
    assert (await reader.measure(run)).line_count == 1


async def test_the_end_of_a_running_output_is_followed(journal: Journal) -> None:
    write(journal, "line 1\n")
    run, reader = await journal.load_run(RUN), OutputReader(journal, anyio.CapacityLimiter(1))
    check_lines(await reader.read_soon(run), 1, 1)
    for number in range(MANY_EVENTS):  # more than one read of the index, since it was built
        write(journal, f"line {number + 2}\n")
    window = await reader.read_soon(run)
    check_lines(window, 1, MANY_EVENTS + 1)
    assert window.line_count == MANY_EVENTS + 1


async def test_a_long_running_output_begins_with_its_first_lines(journal: Journal) -> None:
    count = write_long(journal)
    run, reader = await journal.load_run(RUN), OutputReader(journal, anyio.CapacityLimiter(1))
    window = await reader.read_soon(run)
    check_lines(window, 1, FIRST_LINES)
    assert window.line_count is None
    check_lines(await reader.read_window(run), count - WINDOW_LINES + 1, count)
    check_lines(await reader.read_soon(run), count - WINDOW_LINES + 1, count)


async def test_styles_go_on_in_later_windows(journal: Journal) -> None:
    write(journal, "\x1b[31m" + "red\n" * (WINDOW_LINES * 2))
    run, reader = await finish(journal), OutputReader(journal, anyio.CapacityLimiter(1))
    window = await reader.read_window(run, WINDOW_LINES + 1)
    assert str(window.lines[0].markup) == '<span class="ansi-fg1">red</span>'
