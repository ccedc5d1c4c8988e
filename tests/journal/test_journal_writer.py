"""When events are committed, and by whom."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.errors import JournalFailed
from mcpruntime_server.journal import log_checkpoints
from mcpruntime_server.journal.events import OutputWritten
from mcpruntime_server.journal.store import Journal, open_journal


def count_events(folder: Path) -> int:
    connection = sqlite3.connect(folder / "journal.db")
    try:
        return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])
    finally:
        connection.close()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def test_an_event_that_nobody_waits_for_is_committed_soon(
    journal: Journal, tmp_path: Path
) -> None:
    journal.append("s_1", OutputWritten("stdout", "x"))
    await until(lambda: count_events(tmp_path) == 1)


async def test_flush_soon_commits_after_the_current_callbacks(
    journal: Journal, tmp_path: Path
) -> None:
    journal.append("s_1", OutputWritten("stdout", "x"))
    journal.flush_soon()
    journal.flush_soon()
    assert count_events(tmp_path) == 0
    await anyio.lowlevel.checkpoint()
    assert count_events(tmp_path) == 1


@pytest.mark.parametrize(("chars", "is_on_loop"), [(10, True), (20_000, False)])
async def test_small_batches_are_committed_on_the_loop_and_large_ones_by_the_thread(
    journal: Journal, *, chars: int, is_on_loop: bool
) -> None:
    threads: list[int] = []
    journal.append("s_1", OutputWritten("stdout", "x" * chars))
    journal._writer.enqueue(lambda _: threads.append(threading.get_ident()), 1)
    await journal.flush()
    assert (threads == [threading.get_ident()]) is is_on_loop


async def test_a_large_backlog_is_committed_at_once(journal: Journal, tmp_path: Path) -> None:
    for _ in range(3):
        journal.append("s_1", OutputWritten("stdout", "x" * 600_000))
    await until(lambda: count_events(tmp_path) == 3)


async def test_a_commit_of_another_process_does_not_block_the_loop(
    journal: Journal, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    journal.append("s_1", OutputWritten("stdout", "x"))
    wait = journal.start_flush()
    assert count_events(tmp_path) == 0
    other.execute("COMMIT")
    other.close()
    with anyio.fail_after(10):
        await wait()
    assert count_events(tmp_path) == 1


async def test_the_write_ahead_log_is_checkpointed_in_a_quiet_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_checkpoints, "CHECKPOINT_IDLE_S", 0.05)
    file = tmp_path / "journal.db"
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", None, "me")
        before = file.stat().st_size
        for number in range(20):
            journal.append("s_1", OutputWritten("stdout", f"{number:8000}"))
            await journal.flush()
        assert file.stat().st_size == before
        await until(lambda: file.stat().st_size > before)


async def test_a_commit_on_the_loop_does_not_begin_a_log_because_that_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_checkpoints, "CHECKPOINT_IDLE_S", 0.05)

    def read_salt() -> bytes:  # in the header of the log; each log has another one
        return (tmp_path / "journal.db-wal").read_bytes()[16:24]

    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", None, "me")
        before = read_salt()
        journal.append("s_1", OutputWritten("stdout", "x"))
        await until(lambda: read_salt() != before)
        after = read_salt()
        journal.append("s_1", OutputWritten("stdout", "y"))
        await journal.flush()
        assert read_salt() == after


async def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", None, "me")
    with pytest.raises(JournalFailed, match="is closed"):
        await journal.pin_run("r_1", "late")
