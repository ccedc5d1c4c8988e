"""Events are recorded once and in order, and sessions belong to their owners."""

from __future__ import annotations

import json
import os
import sqlite3
from hashlib import sha256
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.errors import InvalidRequest, JournalFailed, NotFound
from mcpruntime_server.journal import schema, store
from mcpruntime_server.journal.events import (
    CallFinished,
    EncodedJson,
    Event,
    OutputWritten,
    RunFinished,
    RunStarted,
    UnknownEvent,
    encode_json,
    event_to_json,
)
from mcpruntime_server.journal.store import Journal, open_journal


def started(
    run: str, step: int = 1, parent: str | None = None, key: str | None = None
) -> RunStarted:
    return RunStarted(run, parent, step, "1 + 1", f"<step {step}>", 120.0, idempotency_key=key)


def printed(*texts: str) -> list[Event]:
    return [OutputWritten("stdout", text) for text in texts]


# events -------------------------------------------------------------------------------------------


async def test_events_are_numbered_from_one_and_read_back_as_they_were_appended(
    journal: Journal,
) -> None:
    given = [journal.append("s_1", event) for event in printed("a", "b", "c")]
    assert [stored.sequence for stored in given] == [1, 2, 3]
    assert await journal.load_events("s_1") == given


async def test_events_can_be_selected_by_run_place_and_type(journal: Journal) -> None:
    journal.append("s_1", started("r_1"), "r_1")
    journal.append("s_1", OutputWritten("stdout", "of the run"), "r_1")
    journal.append("s_1", OutputWritten("stdout", "of the session"))
    journal.append("s_1", RunFinished("ok"), "r_1")
    assert [stored.sequence for stored in await journal.load_events("s_1", run_id="r_1")] == [
        1,
        2,
        4,
    ]
    assert [
        stored.sequence for stored in await journal.load_events("s_1", run_id="r_1", after=1)
    ] == [2, 4]
    assert [stored.sequence for stored in await journal.load_events("s_1", after=1, limit=2)] == [
        2,
        3,
    ]
    assert [
        stored.sequence for stored in await journal.load_events("s_1", event_type=OutputWritten)
    ] == [2, 3]
    assert await journal.load_events("s_2") == []


async def test_sequence_numbers_continue_after_a_restart(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", None, "me")
        journal.append("s_1", OutputWritten("stdout", "before"))
    async with open_journal(tmp_path) as journal:
        await journal.claim_session("s_1")
        assert journal.append("s_1", OutputWritten("stdout", "after")).sequence == 2
        assert [stored.event for stored in await journal.load_events("s_1")] == printed(
            "before", "after"
        )


async def test_closing_the_journal_records_events_that_were_not_flushed(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", None, "me")
        for number in range(5000):
            journal.append("s_1", OutputWritten("stdout", str(number)))
    async with open_journal(tmp_path) as journal:
        assert len(await journal.load_events("s_1")) == 5000
        assert (await journal.list_sessions())[0].owner is None
    assert sorted(os.listdir(tmp_path)) == ["blobs", "journal.db", "servers"]


async def test_large_fields_are_blobs_and_equal_ones_are_stored_once(
    journal: Journal, tmp_path: Path
) -> None:
    long = ["ä" * 100_000]
    given = [journal.append("s_1", CallFinished(number, long)) for number in range(3)]
    assert await journal.load_events("s_1") == given
    assert len([path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]) == 1
    assert (tmp_path / "journal.db-wal").stat().st_size < 500_000


async def test_a_value_that_is_encoded_already_is_stored_as_it_is(
    journal: Journal, tmp_path: Path
) -> None:
    long = ["ä" * 100_000]
    encoded = EncodedJson(encode_json(long).encode("ascii"))
    appended = journal.append("s_1", CallFinished(1, encoded, summary={"args": {}, "outcome": "x"}))
    journal.append("s_1", CallFinished(2, long))
    read = await journal.load_events("s_1")
    assert [stored.event for stored in read] == [
        CallFinished(1, long, summary={"args": {}, "outcome": "x"}),
        CallFinished(2, long),
    ]
    assert len([path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]) == 1
    assert json.loads(event_to_json(appended.event))["value"] == long


async def test_an_event_that_is_not_json_is_rejected_at_once_and_leaves_no_gap(
    journal: Journal,
) -> None:
    with pytest.raises(ValueError, match="cannot be recorded"):
        journal.append("s_1", CallFinished(1, float("nan")))
    assert journal.append("s_1", CallFinished(1)).sequence == 1


async def test_only_the_owner_of_a_session_can_append(journal: Journal) -> None:
    with pytest.raises(JournalFailed, match="does not own the session 's_2'"):
        journal.append("s_2", OutputWritten("stdout", "x"))
    await journal.release_session("s_1")
    with pytest.raises(JournalFailed, match="does not own the session 's_1'"):
        journal.append("s_1", OutputWritten("stdout", "x"))


async def test_an_event_that_contradicts_the_journal_fails_alone(journal: Journal) -> None:
    await journal.create_session("s_2", None, "me")
    journal.append("s_2", OutputWritten("stdout", "before"))
    journal.append("s_1", started("r_1"), "r_1")
    journal.append("s_1", started("r_1"), "r_1")
    journal.append("s_2", OutputWritten("stdout", "after"))
    with pytest.raises(JournalFailed, match="An event could not be recorded"):
        await journal.flush()
    await journal.flush()
    assert [stored.event for stored in await journal.load_events("s_2")] == printed(
        "before", "after"
    )
    assert len(await journal.load_events("s_1")) == 1


async def test_flush_waits_for_a_concurrent_flush(journal: Journal, tmp_path: Path) -> None:
    journal.append("s_1", OutputWritten("stdout", "shared"))
    counts = []

    async def flush_and_count() -> None:
        await journal.flush()
        connection = sqlite3.connect(tmp_path / "journal.db")
        counts.append(connection.execute("SELECT count(*) FROM events").fetchone()[0])
        connection.close()

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(flush_and_count)
    assert counts == [1] * 5


async def test_append_refuses_when_too_much_waits_for_the_disk(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_BACKLOG_BYTES", 1000)
    blocker = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    journal.append("s_1", OutputWritten("stdout", "x" * 2000))
    with pytest.raises(JournalFailed, match="cannot keep up"):
        journal.append("s_1", OutputWritten("stdout", "x"))
    blocker.close()
    await journal.flush()
    assert journal.append("s_1", OutputWritten("stdout", "x")).sequence == 2


# sessions and runs --------------------------------------------------------------------------------


async def test_a_session_is_found_by_its_id_or_by_its_owners_name_for_it(journal: Journal) -> None:
    by_id = await journal.find_session("s_1", "me")
    assert by_id == await journal.find_session("report", "me")
    assert (by_id.name, by_id.owner, by_id.tip, by_id.run_count) == (
        "report",
        journal.owner,
        None,
        0,
    )


@pytest.mark.parametrize("name", ["s_1", "report", "s_2", "", "\ud800"])
async def test_another_principals_session_is_not_found(journal: Journal, name: str) -> None:
    with pytest.raises(NotFound, match="There is no"):
        await journal.find_session(name, "somebody else")
    assert await journal.list_sessions("somebody else") == []


async def test_two_principals_may_use_the_same_name_and_one_may_not_twice(journal: Journal) -> None:
    await journal.create_session("s_2", "report", "somebody else")
    with pytest.raises(InvalidRequest, match="There is already a session 'report'"):
        await journal.create_session("s_3", "report", "me")
    await journal.create_session("s_3", None, "me")
    await journal.create_session("s_4", None, "me")
    assert len(await journal.list_sessions("me")) == 3
    assert len(await journal.list_sessions()) == 4


async def test_a_name_that_is_not_valid_text_is_rejected(journal: Journal) -> None:
    with pytest.raises(InvalidRequest, match="not valid text"):
        await journal.create_session("s_2", "\udc00", "me")


async def test_runs_follow_their_events(journal: Journal) -> None:
    journal.append("s_1", started("r_1"), "r_1")
    assert (await journal.load_run("r_1")).status == "running"
    assert (await journal.find_session("s_1", "me")).tip == "r_1"
    finished = journal.append("s_1", RunFinished("ok"), "r_1")
    journal.append("s_1", started("r_2", 2, "r_1", "key \ud800"), "r_2")
    first, second = await journal.list_runs("s_1")
    assert (first.status, first.finished_at, first.step, first.parent_id) == (
        "ok",
        finished.recorded_at,
        1,
        None,
    )
    assert (second.status, second.finished_at, second.step, second.parent_id) == (
        "running",
        None,
        2,
        "r_1",
    )
    assert second.idempotency_key == "key \\ud800"
    assert await journal.load_run("r_2") == second
    session = await journal.find_session("s_1", "me")
    assert (session.tip, session.run_count, session.last_used_at) == ("r_2", 2, second.started_at)


async def test_an_unknown_run_or_session_is_not_found(journal: Journal) -> None:
    with pytest.raises(NotFound, match="There is no run 'r_9'"):
        await journal.load_run("r_9")
    with pytest.raises(NotFound, match="There is no session 's_9'"):
        await journal.claim_session("s_9")


async def test_claiming_twice_changes_nothing(journal: Journal) -> None:
    journal.append("s_1", OutputWritten("stdout", "a"))
    await journal.claim_session("s_1")
    assert journal.append("s_1", OutputWritten("stdout", "b")).sequence == 2


async def test_a_released_session_can_be_claimed_by_another_server(
    journal: Journal, tmp_path: Path
) -> None:
    async with open_journal(tmp_path) as other:
        journal.append("s_1", OutputWritten("stdout", "here"))
        await journal.release_session("s_1")
        assert (await other.claim_session("s_1")).owner == other.owner
        assert other.append("s_1", OutputWritten("stdout", "there")).sequence == 2
        await other.flush()
        assert [stored.event for stored in await journal.load_events("s_1")] == printed(
            "here", "there"
        )


# watching -----------------------------------------------------------------------------------------


async def test_an_appended_event_wakes_all_who_wait_for_a_change(journal: Journal) -> None:
    first, second = journal.next_change("s_1"), journal.next_change("s_1")
    assert first is second
    assert not first.is_set()
    journal.append("s_1", OutputWritten("stdout", "a"))
    assert first.is_set()
    assert not journal.next_change("s_1").is_set()


async def test_events_of_a_run_are_loaded_as_far_as_they_are_taken(journal: Journal) -> None:
    journal.append("s_1", started("r_1"), "r_1")
    for number in range(100):
        journal.append("s_1", OutputWritten("stdout", str(number)), "r_1")
    taken = await journal.scan_run_events(
        "r_1", 10, lambda _, events: [next(events) for _ in range(3)]
    )
    assert [stored.sequence for stored in taken] == [11, 12, 13]


# damage -------------------------------------------------------------------------------------------


async def test_a_damaged_blob_is_named_and_the_other_events_stay_readable(journal: Journal) -> None:
    digest = await journal.put_blob(b'"' + b"x" * 50_000 + b'"')
    assert await journal.get_blob(digest) == b'"' + b"x" * 50_000 + b'"'
    journal.append("s_1", OutputWritten("stdout", "x" * 50_000))
    journal.append("s_1", OutputWritten("stdout", "fine"))
    await journal.flush()
    journal.blobs.blob_path(digest).write_bytes(b"short")
    with pytest.raises(JournalFailed, match=f"{digest} is damaged"):
        await journal.load_events("s_1")
    assert [stored.event for stored in await journal.load_events("s_1", after=1)] == printed("fine")
    journal.blobs.blob_path(digest).unlink()
    with pytest.raises(
        JournalFailed, match=f"Event 1 of session 's_1' .* is damaged: The blob {digest} is not in"
    ):
        await journal.load_events("s_1")


async def test_a_damaged_page_is_reported_with_a_remedy(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", None, "me")
        for _ in range(500):
            journal.append("s_1", OutputWritten("stdout", "x" * 3000))
    path = tmp_path / "journal.db"
    with path.open("r+b") as file:
        for page in range(30, 300):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    async with open_journal(tmp_path) as journal:
        with pytest.raises(JournalFailed, match=r"journal.db is damaged. Restore it from a backup"):
            await journal.load_events("s_1")
        assert [row.id for row in await journal.list_sessions()] == ["s_1"]


async def test_a_blob_that_cannot_be_stored_is_a_journal_error(journal: Journal) -> None:
    folder = journal.blobs.blob_path(sha256(b"x").hexdigest()).parent
    folder.touch()
    with pytest.raises(JournalFailed, match="blobs failed: Not a directory"):
        await journal.put_blob(b"x")


async def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"something else entirely" * 1000)
    with pytest.raises(JournalFailed, match=r"journal.db is damaged"):
        async with open_journal(tmp_path):
            pass


async def test_a_data_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalFailed, match=r"file/data/journal.db failed: Not a directory"):
        async with open_journal(tmp_path / "file" / "data"):
            pass


async def test_a_journal_from_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with open_journal(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(
        JournalFailed, match=r"has format version 99; this program knows up to 1. Use the newer"
    ):
        async with open_journal(tmp_path):
            pass


async def test_an_older_journal_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", None, "me")
    added = (*schema.MIGRATIONS, "ALTER TABLE sessions ADD COLUMN colour TEXT;\n")
    monkeypatch.setattr(schema, "MIGRATIONS", added)
    async with open_journal(tmp_path) as journal:
        assert [row.id for row in await journal.list_sessions()] == ["s_1"]
    connection = sqlite3.connect(tmp_path / "journal.db")
    assert connection.execute("SELECT colour FROM sessions").fetchall() == [(None,)]
    connection.close()


async def test_a_kind_of_event_from_a_newer_version_is_read_as_unknown(journal: Journal) -> None:
    journal.append("s_1", UnknownEvent("tea_served", {"cups": 2}))
    assert (await journal.load_events("s_1"))[0].event == UnknownEvent("tea_served", {"cups": 2})
