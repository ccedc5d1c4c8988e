"""The journal with real processes: killed at any moment, sharing a folder, on a full disk."""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from mcpruntime_server.errors import Unavailable
from mcpruntime_server.journal.archive import export_session
from mcpruntime_server.journal.events import (
    FileEntry,
    FilesChanged,
    OutputWritten,
    RunFinished,
    RunStarted,
    TipMoved,
)
from mcpruntime_server.journal.retention import collect_garbage
from mcpruntime_server.journal.store import open_journal
from tests.helpers.child_processes import start_process
from tests.helpers.sizes import choose_size

CHILD = Path(__file__).with_name("child.py")
KILLS = choose_size("JOURNAL_KILLS", short=12, long=100)
SLOW_KILLS = choose_size("SLOW_JOURNAL_KILLS", short=10, long=50)  # during longer work


@asynccontextmanager
async def child(mode: str, data_dir: Path, session: str = "s_1") -> AsyncIterator[Process]:
    command = [sys.executable, str(CHILD), mode, str(data_dir), session]
    async with start_process(command, stderr=None) as process:
        yield process


async def listen(process: Process, said: bytearray) -> None:
    assert process.stdout is not None
    async for data in process.stdout:
        said += data


async def everything_said(running: AbstractAsyncContextManager[Process]) -> list[str]:
    said = bytearray()
    with anyio.fail_after(60):
        async with running as process:
            await listen(process, said)
            assert await process.wait() == 0
    return said.decode().splitlines()


async def killed_again_and_again(
    mode: str, data_dir: Path, session: str = "s_1", kills: int = KILLS
) -> int:
    """Return the highest number that a server printed before one of its deaths.

    The first dies when it has printed a number; the others live up to twice as long.
    """
    acknowledged, first_s = 0, 0.0
    for _ in range(kills):
        said = bytearray()
        async with child(mode, data_dir, session) as process:
            if not first_s:
                begun = time.monotonic()
                assert process.stdout is not None
                said += await process.stdout.receive()
                first_s = time.monotonic() - begun
            else:
                with anyio.move_on_after(random.uniform(0.0, 2.0) * first_s):
                    await listen(process, said)
            process.kill()
            await listen(process, said)
            await process.wait()
        whole_lines = said.decode().split("\n")[:-1]
        acknowledged = max(acknowledged, *map(int, whole_lines), 0)
    return acknowledged


async def test_what_was_acknowledged_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    acknowledged = await killed_again_and_again("append_for_ever", tmp_path)
    assert acknowledged > KILLS
    async with open_journal(tmp_path) as journal:
        await journal.claim_session("s_1")
        found = await journal.load_events("s_1")
        assert [stored.sequence for stored in found] == list(range(1, len(found) + 1))
        assert len(found) >= acknowledged
        for stored in found:
            assert isinstance(stored.event, OutputWritten)
            assert (
                stored.event.text == f"line {stored.sequence - 1}"
                or len(stored.event.text) == 50_000
            )
        assert (
            journal.append("s_1", OutputWritten("stdout", "still usable")).sequence
            == len(found) + 1
        )
    connection = sqlite3.connect(tmp_path / "journal.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_tips_and_runs_agree_with_the_events_after_a_kill_at_any_moment(
    tmp_path: Path,
) -> None:
    acknowledged = await killed_again_and_again("wander_for_ever", tmp_path)
    async with open_journal(tmp_path) as journal:
        found = await journal.load_events("s_1")
        assert len(found) >= acknowledged > KILLS
        tip, parents, flags, files = (
            None,
            dict[str, str | None](),
            dict[str, list[str]](),
            set[str](),
        )
        for stored in found:
            match stored.event:
                case RunStarted(run_id=run, parent_id=parent):
                    parents[run], tip = parent, run
                case RunFinished(flags=[*words]):
                    assert stored.run_id is not None
                    flags[stored.run_id], tip = (
                        words,
                        parents[stored.run_id] if "undone" in words else tip,
                    )
                case TipMoved(tip=moved):
                    tip = moved
                case FilesChanged(changed=changed):
                    files.update(changed)
        assert (await journal.list_sessions())[0].tip == tip
        rows = await journal.list_runs("s_1")
        assert {row.id: (row.parent_id, row.flags) for row in rows} == {
            run: (parents[run], frozenset(flags.get(run, []))) for run in parents
        }
        line = [row.id for row in await journal.load_lineage(tip)]
        kept = {run for run in line if "undone" not in flags.get(run, ["undone"])}
        assert set((await journal.load_files_at(tip))[0]) == kept & files


async def test_a_rewind_while_the_disk_is_full_takes_effect_once_there_is_room(
    tmp_path: Path,
) -> None:
    *refusals, while_full, after = await everything_said(child("rewind_on_a_full_disk", tmp_path))
    assert len(refusals) == 3
    for refusal in refusals:
        assert "journal.db cannot" in refusal
    assert while_full == "['r_2', 2, ({}, [])]"
    assert after == "r_1"
    async with open_journal(tmp_path) as journal:
        assert [(row.id, row.tip) for row in await journal.list_sessions()] == [
            ("s_2", "r_1"),
            ("s_1", "r_1"),
        ]
        assert await journal.load_pins() == {}


async def check_what_is_seen(data_dir: Path) -> int:
    """Read everything visible, collect garbage, and return the number of sessions."""
    async with open_journal(data_dir) as journal:
        for seen in range(2):
            rows = await journal.list_sessions()
            for row in rows:
                await journal.load_events(row.id)
                for run in await journal.list_runs(row.id):
                    files, _ = await journal.load_files_at(run.id)
                    for entry in files.values():
                        assert len(await journal.get_blob(entry["digest"])) == entry["size"]
            found = await collect_garbage(journal, 0, 0, now=time.time() + 4000)
            assert (found.sessions, found.kept, seen and found.blobs) == ((), {}, 0)
        hidden = "SELECT count(*) FROM sessions WHERE purpose = 'partial'"
        assert await journal.read(lambda connection: connection.execute(hidden).fetchall()) == [
            (0,)
        ]
    connection = sqlite3.connect(data_dir / "journal.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    return len(rows)


async def test_a_garbage_collection_killed_at_any_moment_leaves_whole_sessions(
    tmp_path: Path,
) -> None:
    assert await killed_again_and_again("collect_for_ever", tmp_path, kills=SLOW_KILLS) > 1
    assert await check_what_is_seen(tmp_path) <= SLOW_KILLS


async def test_an_import_killed_at_any_moment_leaves_whole_sessions_or_nothing(
    tmp_path: Path,
) -> None:
    async with open_journal(tmp_path / "from") as journal:
        await journal.create_session("s_1", None, "me")
        entry = FileEntry(digest=await journal.put_blob(b"x"), size=1, mode=0o644)
        for run, parent in (("r_1", None), ("r_2", "r_1")):
            journal.append(
                "s_1", RunStarted(run, parent, int(run[2:]), "1", "<step>", 1.0, seed="s"), run
            )
            for number in range(2000):
                journal.append("s_1", OutputWritten("stdout", f"{number}"), run)
            journal.append("s_1", RunFinished("ok", flags=["files"]), run)
            journal.append("s_1", FilesChanged({run: entry}), run)
        await export_session(journal, "s_1", tmp_path / "session.zip")
    data_dir = tmp_path / "to"
    await killed_again_and_again(
        "import_for_ever", data_dir, str(tmp_path / "session.zip"), kills=SLOW_KILLS
    )
    assert await check_what_is_seen(data_dir) > 0
    async with open_journal(data_dir) as journal:
        for row in await journal.list_sessions():
            assert len(await journal.load_events(row.id)) == 4006


async def test_two_servers_write_to_one_folder_at_once(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group:
        for session in ("s_1", "s_2", "s_3"):
            group.start_soon(everything_said, child("append_200", tmp_path, session))
    async with open_journal(tmp_path) as journal:
        assert len(await journal.list_sessions()) == 3
        for session in ("s_1", "s_2", "s_3"):
            found = await journal.load_events(session)
            assert [stored.event for stored in found] == [
                OutputWritten("stdout", str(number)) for number in range(200)
            ]


async def test_a_session_belongs_to_its_live_server_and_can_be_claimed_after_its_death(
    tmp_path: Path,
) -> None:
    async with open_journal(tmp_path) as journal:
        with anyio.fail_after(30):
            async with child("hold", tmp_path) as process:
                assert process.stdout is not None
                assert (
                    await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 100)
                    == b"holding"
                )
                with pytest.raises(
                    Unavailable, match=rf"in use by another server \(process {process.pid}\)"
                ):
                    await journal.claim_session("s_1")
                process.kill()
                await process.wait()
                assert (await journal.claim_session("s_1")).owner == journal.owner
        assert journal.append("s_1", OutputWritten("stdout", "mine now")).sequence == 1


@pytest.mark.parametrize(
    ("mode", "reason"), [("fill_with_rows", "cannot"), ("fill_with_blobs", "the disk is full")]
)
async def test_a_full_disk_is_reported_and_nothing_is_lost_once_there_is_room(
    tmp_path: Path, mode: str, reason: str
) -> None:
    refusal, readable, last = await everything_said(child(mode, tmp_path))
    assert reason in refusal
    assert "journal.db" in refusal
    async with open_journal(tmp_path) as journal:
        found = await journal.load_events("s_1")
    assert [stored.sequence for stored in found] == list(range(1, int(last) + 1))
    assert int(readable) == int(last) - 3  # without the refused one and the two after it
    assert [stored.event for stored in found[-2:]] == [
        OutputWritten("stdout", "appended while the disk was full"),
        OutputWritten("stdout", "after"),
    ]
