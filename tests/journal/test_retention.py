"""Garbage collection removes whole unused sessions and unused blobs, and nothing else."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.errors import JournalFailed, NotFound, Unavailable
from mcpruntime_server.journal import mutations, retention
from mcpruntime_server.journal.events import (
    CallFinished,
    FileEntry,
    FilesChanged,
    OutputWritten,
    RunFinished,
    RunStarted,
)
from mcpruntime_server.journal.retention import (
    CollectionReport,
    SessionUsage,
    collect_garbage,
    plan_collection,
)
from mcpruntime_server.journal.store import Journal, open_journal

DAY = 24 * 3600.0


def later(days: float = 100.0) -> float:
    return time.time() + days * DAY


async def session(
    journal: Journal,
    name: str,
    data: bytes = b"",
    *,
    tip: str | None = None,
    purpose: str = "",
    release: bool = True,
) -> str:
    """Create a session `s_NAME` with a run `r_NAME`, a file and a long value; return the run."""
    run = f"r_{name}"
    await journal.create_session(f"s_{name}", None, "me", tip=tip, purpose=purpose)
    digest = await journal.put_blob(data or name.encode())
    entry: FileEntry = {"digest": digest, "size": len(data or name), "mode": 0o644}
    for event in (
        RunStarted(run, tip, 1, "1", "<step 1>", 1.0, seed="s"),
        CallFinished(1, f"{name}-long-" * 5000),
        RunFinished("ok", flags=["files"]),
        FilesChanged({"a": entry}),
    ):
        journal.append(f"s_{name}", event, run)
    if release:
        await journal.release_session(f"s_{name}")
    return run


@pytest.fixture
async def empty(tmp_path: Path, journal: Journal) -> Journal:
    await journal.release_session("s_1")
    await collect_garbage(journal, 1, 0, now=later())
    assert await journal.list_sessions() == []
    return journal


async def left(journal: Journal) -> set[str]:
    return {row.id.removeprefix("s_") for row in await journal.list_sessions()}


def blobs(journal: Journal) -> int:
    return len(list(journal.blobs.iter_blobs()))


# sessions -----------------------------------------------------------------------------------------


async def test_sessions_unused_for_keep_days_are_removed(empty: Journal) -> None:
    await session(empty, "a")
    assert await collect_garbage(empty, 90, 0, now=later(89)) == CollectionReport((), 0, 0, 0, {})
    found = await collect_garbage(empty, 90, 0, now=later(91))
    assert (found.sessions, found.events, found.blobs, found.kept) == (("s_a",), 4, 2, {})
    assert found.bytes > 30_000
    assert await left(empty) == set()
    assert await empty.load_events("s_a") == []
    assert blobs(empty) == 0
    with pytest.raises(NotFound):
        await empty.load_run("r_a")


async def test_no_limit_removes_no_session(empty: Journal) -> None:
    await session(empty, "a")
    assert (await collect_garbage(empty, 0, 0, now=later(99_999))).sessions == ()


async def test_a_dry_run_reports_the_same_and_changes_nothing(empty: Journal) -> None:
    await session(empty, "a")
    would = await collect_garbage(empty, 90, 0, now=later(), dry_run=True)
    assert await left(empty) == {"a"}
    assert blobs(empty) == 2
    assert would == await collect_garbage(empty, 90, 0, now=later())


async def test_a_session_of_a_live_server_stays(empty: Journal, tmp_path: Path) -> None:
    async with open_journal(tmp_path) as other:
        await session(other, "a", release=False)
        found = await collect_garbage(empty, 90, 0, now=later())
        assert (found.sessions, found.kept) == ((), {"s_a": "A live server owns it."})
        assert other.append("s_a", OutputWritten("stdout", "still mine")).sequence == 5
    assert (await collect_garbage(empty, 90, 0, now=later())).sessions == ("s_a",)


async def test_a_session_stays_as_long_as_others_depend_on_it(empty: Journal) -> None:
    run = await session(empty, "a")
    fork = await session(empty, "b", tip=run, purpose="fork")
    await empty.create_session(
        "s_c", None, "me", tip=fork, purpose="fork"
    )  # without runs of its own, and in use
    found = await collect_garbage(empty, 90, 0, now=later())
    builds = "Another session that is kept depends on it."
    assert found.kept == {"s_a": builds, "s_b": builds, "s_c": "A live server owns it."}
    assert len(await empty.load_lineage(fork)) == 2
    await empty.release_session("s_c")
    assert (await collect_garbage(empty, 90, 0, now=later())).sessions == ("s_c", "s_b", "s_a")


async def test_a_session_with_a_pinned_run_stays_with_everything_it_depends_on(
    empty: Journal,
) -> None:
    run = await session(empty, "a")
    fork = await session(empty, "b", tip=run, purpose="fork")
    await empty.pin_run(fork, "the skill fetch_weather")
    found = await collect_garbage(empty, 90, 0, now=later())
    assert found.sessions == ()
    assert found.kept["s_b"] == "One of its runs is pinned: the skill fetch_weather"
    await empty.unpin_run(fork)
    assert len((await collect_garbage(empty, 90, 0, now=later())).sessions) == 2


async def test_above_keep_mb_scratch_sessions_go_first_then_the_least_recently_used(
    empty: Journal,
) -> None:
    big = 700_000
    await session(empty, "old", os.urandom(big))
    await session(empty, "new", os.urandom(big))
    await session(empty, "scratch", os.urandom(big), purpose="rerun")
    for limit, gone in ((3, ()), (2, ("s_scratch",)), (1, ("s_old",)), (1, ())):
        assert (await collect_garbage(empty, 0, limit, now=later())).sessions == gone
    assert await left(empty) == {"new"}
    assert sum(size for _, size, _ in empty.blobs.iter_blobs()) < 1024 * 1024


async def test_shared_blobs_stay_until_the_last_session_that_uses_them_goes(empty: Journal) -> None:
    data = os.urandom(1000)
    await session(empty, "a", data)
    await session(empty, "b", data, release=False)
    await collect_garbage(empty, 90, 0, now=later())
    (files, _) = await empty.load_files_at("r_b")
    assert await empty.get_blob(files["a"]["digest"]) == data


usages = st.lists(
    st.tuples(
        st.sampled_from(["", "rerun"]),
        st.integers(0, 9),
        st.booleans(),
        st.integers(0, 99),
        st.integers(0, 5),
    ),
    max_size=12,
)


@given(usages, st.none() | st.integers(0, 9), st.integers(0, 300))
def test_a_plan_removes_everything_that_is_due_and_nothing_that_must_stay(
    rows: list[tuple[str, int, bool, int, int]], due: int | None, limit: int
) -> None:
    found = [
        SessionUsage(
            str(n),
            None,
            purpose,
            used,
            "pinned" if stays else "",
            size_bytes=size,
            blob_digests={f"b{used}"},
        )
        for n, (purpose, used, stays, size, _) in enumerate(rows)
    ]
    for n, (*_, step) in enumerate(rows):
        if 0 < step <= n:
            found[n].required_sessions = {str(n - step)}
    going, kept = plan_collection(
        found,
        {f"b{used}": 10 for used in range(10)},
        sum(each.size_bytes for each in found),
        due,
        limit,
    )
    gone = {each.id for each in going}
    staying = [each for each in found if each.id not in gone]
    assert not any(each.keep_reason for each in going)
    assert all(each.required_sessions.isdisjoint(gone) for each in staying)
    needed = {need for each in staying for need in each.required_sessions}
    assert all(
        each.keep_reason or each.id in needed
        for each in staying
        if due is not None and each.last_used_at < due
    )
    assert kept.keys() <= {each.id for each in staying}
    size = sum(each.size_bytes for each in staying) + 10 * len(
        {each.last_used_at for each in staying}
    )
    if limit and size > limit:
        assert all(each.keep_reason or each.id in needed for each in staying)
    if not limit and due is None:
        assert not going


async def test_a_session_that_is_used_required_or_pinned_during_a_collection_stays(
    empty: Journal,
) -> None:
    run = await session(empty, "a")
    (usage,) = await empty.read(lambda rows: retention._load_usages(empty, rows))
    await empty.claim_session("s_a")
    assert not await retention._remove_session(empty, usage)
    await empty.release_session("s_a")
    await empty.create_session("s_b", None, "me", tip=run, purpose="fork")
    assert not await retention._remove_session(empty, usage)
    await empty.release_session("s_b")
    await empty.pin_run(run, "kept")
    assert not await retention._remove_session(empty, usage)
    assert await left(empty) == {"a", "b"}


async def test_the_next_collection_completes_a_killed_removal_or_import(
    empty: Journal,
) -> None:
    await session(empty, "a")
    await session(empty, "b")
    await empty.write(lambda rows: mutations.hide_sessions(rows, ["s_a"]))
    await empty.write(lambda rows: mutations.erase_events(rows, "s_a", 1))
    await empty.write(
        lambda rows: rows.execute("UPDATE sessions SET purpose = 'partial' WHERE id = 's_b'")
    )
    assert await empty.list_sessions() == []
    with pytest.raises(NotFound):
        await empty.claim_session("s_b")
    await collect_garbage(empty, 0, 0, now=later())
    assert (
        await empty.read(
            lambda rows: rows.execute("SELECT * FROM sessions, runs, events").fetchall()
        )
        == []
    )
    assert blobs(empty) == 0


async def test_only_one_collection_runs_at_a_time(empty: Journal) -> None:
    with (
        retention.collection_lock(empty.data_dir),
        pytest.raises(Unavailable, match="garbage collection or a backup of the journal"),
    ):
        await collect_garbage(empty, 1, 0)
    await collect_garbage(empty, 1, 0)


# blobs --------------------------------------------------------------------------------------------


async def test_only_old_blobs_without_references_are_removed(
    empty: Journal,
) -> None:
    await session(empty, "a", release=False)
    digest = await empty.put_blob(b"not yet in an event")
    assert (await collect_garbage(empty, 0, 0)).blobs == 0
    assert (await collect_garbage(empty, 0, 0, now=time.time() + 3500)).blobs == 0
    os.utime(empty.blobs.blob_path(digest), (0, 0))
    await empty.put_blob(b"not yet in an event")
    assert (await collect_garbage(empty, 0, 0)).blobs == 0
    os.utime(empty.blobs.blob_path(digest), (0, 0))
    assert (await collect_garbage(empty, 0, 0)).blobs == 1
    assert (await collect_garbage(empty, 0, 0, now=later())).blobs == 0
    assert len(await empty.load_events("s_a")) == 4


async def test_a_list_of_files_that_is_itself_a_blob_keeps_the_files(empty: Journal) -> None:
    await empty.create_session("s_a", None, "me")
    many: dict[str, FileEntry] = {}
    for number in range(200):
        digest = await empty.put_blob(b"%d" % number)
        many[f"{number}"] = {"digest": digest, "size": 1, "mode": 0o644}
    empty.append("s_a", RunStarted("r_a", None, 1, "1", "<step 1>", 1.0), "r_a")
    stored = empty.append("s_a", FilesChanged(many), "r_a")
    assert (await collect_garbage(empty, 0, 0, now=later())).blobs == 0
    assert blobs(empty) == 201
    (name,) = {digest for digest, *_ in empty.blobs.iter_blobs()} - {
        entry["digest"] for entry in many.values()
    }
    empty.blobs.blob_path(name).write_bytes(b"damaged")
    found = await collect_garbage(empty, 0, 0, now=later())
    assert found.kept["blobs"].startswith(
        f"Event {stored.sequence} of session 's_a' is damaged, and may refer to any"
    )
    assert blobs(empty) == 201


async def test_a_blob_that_is_refreshed_while_it_is_discarded_stays(empty: Journal) -> None:
    digest = await empty.put_blob(b"again")
    path = empty.blobs.blob_path(digest)
    assert not empty.blobs.discard(digest, path.stat().st_mtime - 1)
    assert await empty.get_blob(digest) == b"again"
    path.rename(
        empty.blobs.root / "tmp" / f"aside-{digest}"
    )  # as a collector that was killed leaves it
    assert await empty.get_blob(digest) == b"again"
    path.rename(empty.blobs.root / "tmp" / f"aside-{digest}")
    os.utime(empty.blobs.root / "tmp" / f"aside-{digest}", (0, 0))
    async with open_journal(empty.data_dir):
        assert path.read_bytes() == b"again"
    assert empty.blobs.discard(digest, time.time() + 1)
    assert not empty.blobs.discard(digest, time.time() + 1)


# space --------------------------------------------------------------------------------------------


async def test_free_space_is_returned_to_the_file_system(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        await journal.create_session("s_1", None, "me")
        for _ in range(1000):
            journal.append("s_1", OutputWritten("stdout", "x" * 5000))
    before = (tmp_path / "journal.db").stat().st_size
    async with open_journal(tmp_path) as journal:
        assert (await collect_garbage(journal, 1, 0, now=later())).sessions == ("s_1",)
    assert (tmp_path / "journal.db").stat().st_size < before / 10
    connection = sqlite3.connect(tmp_path / "journal.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


async def test_a_damaged_page_is_named_and_nothing_is_removed(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        await session(journal, "a")
        await journal.create_session("s_1", None, "me")
        for _ in range(500):
            journal.append("s_1", OutputWritten("stdout", "x" * 3000))
    with (tmp_path / "journal.db").open("r+b") as file:
        for page in range(30, 300):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    async with open_journal(tmp_path) as journal:
        with pytest.raises(JournalFailed, match=r"journal.db is damaged"):
            await collect_garbage(journal, 1, 0, now=later())
        assert await left(journal) == {"a", "1"}
        assert blobs(journal) == 2


@pytest.mark.parametrize("broken", ["collect.lock", "blobs/ab"])
async def test_an_unusable_data_folder_is_reported(empty: Journal, broken: str) -> None:
    path = empty.data_dir / broken
    path.unlink(missing_ok=True)
    if broken == "collect.lock":
        path.mkdir()
    else:
        path.symlink_to(path)
    with pytest.raises(JournalFailed, match=str(empty.data_dir)):
        await collect_garbage(empty, 1, 0, now=later())
