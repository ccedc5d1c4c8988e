"""A journal that an earlier version wrote is read well, and goes on."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.journal import open_journal, schema
from mcpruntime_server.journal.events import RunFinished, RunStarted, SandboxStarted, TipMoved

FILE = {"digest": "0" * 64, "size": 1, "mode": 0o644}
START = {
    "parent": None,
    "step": 1,
    "code": "1 + 1",
    "name": "<step 1>",
    "timeout_s": 120.0,
    "idempotency_key": None,
}
BEGIN = {
    "sandbox": "box",
    "image": "sha256:1",
    "python": "3.12",
    "platform": "linux",
    "seed": "old",
}
EVENTS: list[tuple[str | None, str, dict[str, Any]]] = [  # of a session, as version 1 wrote them
    (None, "session_opened", {"name": "report", "principal": "me", "backend": "local"}),
    (None, "sandbox_started", BEGIN),
    ("r_1", "run_started", {"run": "r_1", **START}),
    ("r_1", "clocks_read", {"readings": {"time": [1.5]}}),
    (
        "r_1",
        "run_finished",
        {"status": "ok", "value": None, "error": None, "usage": None, "flags": []},
    ),
    ("r_1", "files_changed", {"changed": {"a": FILE}, "removed": []}),
    ("r_2", "run_started", {"run": "r_2", **START, "parent": "r_1", "step": 2}),
    ("r_2", "run_finished", {"status": "crashed", "flags": ["state_lost", "threads"]}),
    ("r_3", "run_started", {"run": "r_3", **START, "parent": "r_2", "step": 3}),
]
RUNS = [
    ("r_1", None, 1, "ok", 5.0, 3),
    ("r_2", "r_1", 2, "crashed", 8.0, 7),
    ("r_3", "r_2", 3, "running", None, 9),
]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a journal of schema 1, one run of which was under way when its server died."""
    with monkeypatch.context() as earlier:
        earlier.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        rows = schema.open_for_writing(tmp_path / "journal.db")
    rows.execute("INSERT INTO sessions VALUES ('s_1', 'report', 'me', 1.0, 9.0, 'dead', NULL)")
    for run, parent, step, status, finished, first in RUNS:
        values = (run, parent, step, f"<step {step}>", status, float(first), finished, first)
        rows.execute("INSERT INTO runs VALUES (?, 's_1', ?, ?, ?, ?, ?, ?, NULL, ?)", values)
    rows.execute("UPDATE sessions SET tip = 'r_3'")
    for n, (run_id, kind, fields) in enumerate(EVENTS, 1):
        event = (n, run_id, float(n), kind, json.dumps(fields))
        rows.execute("INSERT INTO events VALUES ('s_1', ?, ?, ?, ?, 1, ?, NULL)", event)
    rows.close()
    return tmp_path


async def test_a_journal_of_schema_1_is_summed_up_as_if_it_were_written_today(old: Path) -> None:
    async with open_journal(old) as journal:
        session = await journal.find_session("report", "me")
        assert (session.tip, session.origin, session.purpose, session.run_count) == (
            "r_3",
            None,
            "",
            3,
        )
        flags = [{"unseeded"}, {"unseeded", "state_lost", "threads"}, {"unseeded"}]
        assert [row.flags for row in await journal.load_lineage("r_3")] == flags
        assert await journal.load_files_at("r_3") == ({"a": FILE}, [])
        assert [run.id for _, run in await journal.list_interrupted_runs()] == ["r_3"]
        assert [stored.sequence for stored in await journal.load_events("s_1", run_id="r_1")] == [
            3,
            4,
            5,
            6,
        ]
        assert [stored.sequence for stored in await journal.load_events("s_1", run_id="r_2")] == [
            7,
            8,
        ]
        found = [stored.event for stored in await journal.load_events("s_1")]
        assert found[1] == SandboxStarted("box", "sha256:1", "3.12", "linux")
        assert isinstance(found[2], RunStarted)
        assert (found[2].seed, found[2].replayed_run) == ("", None)


async def test_a_session_of_schema_1_goes_on_and_can_be_rewound_and_forked(old: Path) -> None:
    async with open_journal(old) as journal:
        await journal.claim_session("s_1")
        journal.append("s_1", RunFinished("crashed", flags=["undone"]), "r_3")
        journal.append("s_1", TipMoved("r_1", "r_2"))
        assert (
            await journal.create_session("s_2", None, "me", tip="r_1", purpose="fork")
        ).origin == "r_1"
        assert (await journal.find_session("s_1", "me")).tip == "r_1"
        assert (await journal.load_run("r_3")).flags == {"unseeded", "undone"}


async def test_a_damaged_event_does_not_keep_an_old_journal_from_being_opened(old: Path) -> None:
    rows = sqlite3.connect(old / "journal.db", isolation_level=None)
    rows.execute("UPDATE events SET body = '{' WHERE n = 8")
    rows.execute('UPDATE events SET body = \'{"status":"ok","flags":"text"}\' WHERE n = 5')
    rows.close()
    async with open_journal(old) as journal:
        assert [row.flags for row in await journal.list_runs("s_1")] == [
            {"unseeded", "text"},
            {"unseeded"},
            {"unseeded"},
        ]
