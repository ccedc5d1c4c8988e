"""A file in another format is refused in one sentence and left as it is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mcpruntime_server.errors import JournalFailed
from mcpruntime_server.journal import schema
from mcpruntime_server.journal.store import open_journal


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE migrations (version INTEGER PRIMARY KEY, applied REAL NOT NULL)",
        "CREATE TABLE bookmarks (url TEXT); PRAGMA user_version = 1",
    ],
    ids=["development version", "another program"],
)
async def test_a_file_of_another_format_is_refused_and_left_as_it_is(
    tmp_path: Path, script: str
) -> None:
    path = tmp_path / "journal.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(script)
    connection.close()
    before = path.read_bytes()
    reason = r"is not a journal in the format of this program, version 1: .* Move it away, or give"
    with pytest.raises(JournalFailed, match=reason):
        async with open_journal(tmp_path):
            pass
    assert path.read_bytes() == before


async def test_a_migration_that_fails_leaves_the_version_and_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", None, "me")
    added = "ALTER TABLE sessions ADD COLUMN colour TEXT;\nALTER TABLE nowhere ADD COLUMN x TEXT"
    with monkeypatch.context() as broken:
        broken.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
        with pytest.raises(JournalFailed, match="nowhere"):
            async with open_journal(tmp_path):
                pass
    async with open_journal(tmp_path) as journal:
        assert [row.id for row in await journal.list_sessions()] == ["s_1"]
