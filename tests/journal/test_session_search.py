"""What the runs of sessions have said and done is found, in bounded time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcpruntime_server.journal import session_search
from mcpruntime_server.journal.events import (
    CallStarted,
    Event,
    FileEntry,
    FilesChanged,
    OutputWritten,
    RunFinished,
    RunStarted,
)
from mcpruntime_server.journal.session_search import SearchResult, search_sessions
from mcpruntime_server.journal.store import Journal, open_journal

LONG = 300_000  # characters, in several pieces of a blob


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with open_journal(tmp_path) as opened:
        yield opened


async def write_run(journal: Journal, session: str, *events: Event, code: str = "1") -> None:
    run = f"r_{session}"
    await journal.create_session(session, session, "ann")
    journal.append(session, RunStarted(run, None, 1, code, "<step 1>", 60.0), run)
    for event in events:
        journal.append(session, event, run)
    journal.append(session, RunFinished("ok"), run)


async def search(journal: Journal, text: str) -> SearchResult:
    return await journal.read(lambda rows: search_sessions(rows, journal.blobs, "ann", text, 10, 3))


async def find(journal: Journal, text: str) -> list[tuple[str, str]]:
    """Return the kind and the text of each match."""
    result = await search(journal, text)
    assert result.is_complete
    return [(match.kind, match.found) for _, matches in result.sessions for match in matches]


@pytest.mark.parametrize("place", [0, 64 * 1024 - 3, 64 * 1024, 200_000, LONG])
async def test_a_long_text_is_searched_to_its_end(journal: Journal, place: int) -> None:
    text = "é" * place + 'The "Needle"\n' + "\\n" * ((LONG - place) // 2)
    await write_run(journal, "s_long", OutputWritten("stdout", text))
    assert await find(journal, 'the "needle"') == [("output_written", 'The "Needle"')]
    assert await find(journal, "needles") == []
    [(_, [match])] = (await search(journal, "Needle")).sessions
    assert match.before.endswith('The "')
    assert match.after.startswith('"\n')


async def test_an_escape_in_json_is_not_found_as_letters(journal: Journal) -> None:
    await write_run(journal, "s_lines", OutputWritten("stdout", "\n" * LONG), code="a\nb")
    assert await find(journal, "n") == []
    assert await find(journal, "\n") != []


async def test_code_arguments_and_paths_are_found(journal: Journal) -> None:
    entry = FileEntry(digest="0" * 64, size=1, mode=0o644)
    await write_run(
        journal,
        "s_parts",
        CallStarted(1, "tools.crm.find", '{"q":"say \\"hi\\""}', "read", 1),
        FilesChanged({"reports/May.csv": entry}, []),
        code="x = 'Grüße'",
    )
    assert await find(journal, 'say "hi"') == [("call_started", 'say \\"hi\\"')]
    assert await find(journal, "may.CSV") == [("files_changed", "May.csv")]
    assert await find(journal, "grüße") == [("run_started", "Grüße")]
    assert await find(journal, "0000") == []


async def test_a_search_without_time_says_how_far_it_got(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await write_run(journal, f"s_{number}", OutputWritten("stdout", "x" * LONG))
    monkeypatch.setattr(session_search, "MAX_SEARCH_S", 0.0)
    result = await search(journal, "y")
    assert (result.searched_count, result.session_count, result.is_complete) == (0, 3, False)


async def test_a_statement_that_finds_nothing_ends_with_the_time(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [OutputWritten("stdout", f"{number} lines") for number in range(2_000)]
    await write_run(journal, "s_many", *texts)
    monkeypatch.setattr(session_search, "CHECKED_STEPS", 1)
    is_over = iter([False, True])
    monkeypatch.setattr(
        session_search.SessionSearch, "is_over", property(lambda _: next(is_over, True))
    )
    result = await search(journal, "nowhere")
    assert (result.searched_count, result.is_complete) == (0, False)
    monkeypatch.undo()
    assert (await search(journal, "1999 lines")).sessions


async def test_matches_of_one_kind_in_a_run_are_one(journal: Journal) -> None:
    texts = [OutputWritten("stdout", f"row {number}\n") for number in range(20)]
    await write_run(journal, "s_rows", *texts, code="'row'")
    [(_, matches)] = (await search(journal, "row")).sessions
    assert [(each.kind, each.step) for each in matches] == [
        ("output_written", 1),
        ("run_started", 1),
    ]
