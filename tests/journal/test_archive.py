"""An archive carries a session from one journal to another, whole, and nothing else."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.errors import InvalidRequest, JournalFailed, NotFound
from mcpruntime_server.journal.archive import export_session, import_session
from mcpruntime_server.journal.archive_file import write_archive
from mcpruntime_server.journal.events import (
    CallFinished,
    CallStarted,
    ClocksRead,
    Event,
    FileEntry,
    FilesChanged,
    OutputWritten,
    RunFinished,
    RunResumed,
    RunStarted,
    RunValue,
    SandboxStarted,
    SessionOpened,
    TipMoved,
    UnknownEvent,
)
from mcpruntime_server.journal.store import Journal, open_journal

LONG = "long ä\ud800 " * 5000


def started(run: str, step: int, parent: str | None) -> RunStarted:
    return RunStarted(
        run,
        parent,
        step,
        f"# {run}\n{LONG}",
        f"<step {step}>",
        120.0,
        idempotency_key="k",
        seed="s",
    )


async def a_file(journal: Journal, data: bytes) -> FileEntry:
    return {"digest": await journal.put_blob(data), "size": len(data), "mode": 0o644}


async def ran(
    journal: Journal, session: str, run: str, step: int, parent: str | None, *events: Event
) -> None:
    entry = await a_file(journal, run.encode() * 1000)
    value: RunValue = {"kind": "json", "text": run, "type": "str", "cut": False}
    for event in (
        started(run, step, parent),
        ClocksRead({"time": [1.5, 2.0]}),
        CallStarted(1, "t.echo", "{}", "write", 0),
        CallFinished(1, {"value": [LONG, 1, None]}, None, 1.5),
        OutputWritten("stdout", LONG),
        *events,
        RunFinished(
            "ok",
            value,
            usage={"wall_ms": 1.0},
            flags=["files"],
        ),
        FilesChanged({f"{run}.txt": entry, "folder/last": entry}, []),
    ):
        journal.append(session, event, run)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """A journal with a session `s_2`: forked from `s_1`, rewound, crashed, resumed, unfinished."""
    async with open_journal(tmp_path / "here") as opened:
        await opened.create_session("s_1", "base", "me")
        opened.append("s_1", SessionOpened("base", "me", "local"))
        opened.append("s_1", SandboxStarted("box", "sha256:1", "3.12", "linux"))
        await ran(opened, "s_1", "r_1", 1, None)
        await ran(opened, "s_1", "r_2", 2, "r_1")
        await ran(opened, "s_1", "r_private", 3, "r_2")
        await opened.create_session("s_2", "idea", "me", tip="r_2", purpose="fork")
        opened.append("s_2", SessionOpened("idea", "me", "local", "r_2", "fork"))
        await ran(
            opened, "s_2", "r_3", 3, "r_2", RunResumed(1), UnknownEvent("tea_served", {"cups": 2})
        )
        await ran(opened, "s_2", "r_4", 4, "r_3")
        opened.append("s_2", TipMoved("r_2", "r_4"))
        opened.append("s_2", started("r_5", 3, "r_2"), "r_5")
        opened.append("s_2", RunFinished("crashed", flags=["undone"]), "r_5")
        many = {f"file{number}": await a_file(opened, b"%d" % number) for number in range(300)}
        await ran(opened, "s_2", "r_6", 3, "r_2", FilesChanged(many))
        yield opened


async def told(journal: Journal, session: str) -> list[Any]:
    """Return the events of a session as an export keeps them."""
    return [
        (
            stored.sequence,
            stored.run_id,
            stored.recorded_at,
            vars(stored.event) | {"principal": "", "idempotency_key": None},
        )
        for stored in await journal.load_events(session)
    ]


# there and back -----------------------------------------------------------------------------------


async def test_an_import_restores_the_session_and_the_ancestors_of_its_runs(
    journal: Journal, there: Journal, tmp_path: Path
) -> None:
    said: list[str] = []
    manifest = await export_session(journal, "s_2", tmp_path / "idea.zip", progress=said.append)
    assert (manifest.run_count, manifest.skipped_blobs) == (6, [])
    row = await import_session(there, tmp_path / "idea.zip", "you", progress=said.append)
    assert (row.id, row.name, row.principal, row.purpose) == ("s_2", "idea", "you", "import")
    assert (row.tip, row.origin, row.owner) == ("r_6", "r_2", None)
    assert await told(there, "s_2") == await told(journal, "s_2")
    kept = [each for each in await told(journal, "s_1") if each[1] != "r_private"]
    assert await told(there, "s_1") == kept
    for run in ("r_2", "r_4", "r_5", "r_6"):
        assert [each.id for each in await there.load_lineage(run)] == [
            each.id for each in await journal.load_lineage(run)
        ]
        assert await there.load_files_at(run) == await journal.load_files_at(run)
    files, _ = await there.load_files_at("r_6")
    assert len(files) == 304
    for entry in files.values():
        assert len(await there.get_blob(entry["digest"])) == entry["size"]
    assert any("blobs are checked" in text for text in said)
    assert not [
        stored for stored in await there.load_events("s_2") if "me" in vars(stored.event).values()
    ]


async def test_an_imported_session_can_be_rewound_forked_used_and_exported_again(
    journal: Journal, there: Journal, tmp_path: Path
) -> None:
    await export_session(journal, "s_2", tmp_path / "idea.zip")
    row = await import_session(there, tmp_path / "idea.zip", "you")
    await there.claim_session(row.id)
    there.append(row.id, TipMoved("r_4", row.tip))
    await ran(there, row.id, "r_9", 5, "r_4")
    await there.create_session("s_9", None, "you", tip="r_1", purpose="fork")
    await there.flush()
    await export_session(there, row.id, tmp_path / "again.zip")
    again = await import_session(journal, tmp_path / "again.zip", "me")
    line = await journal.load_lineage(again.tip)
    assert [each.step for each in line] == [1, 2, 3, 4, 5]
    assert {each.session_id for each in line}.isdisjoint({"s_1", "s_2"})
    assert (again.name, again.id != "s_2") == ("idea 2", True)


async def test_all_ids_are_replaced_consistently_if_one_of_them_is_taken(
    journal: Journal, tmp_path: Path
) -> None:
    await export_session(journal, "s_2", tmp_path / "idea.zip")
    first = await import_session(journal, tmp_path / "idea.zip", "me")
    second = await import_session(journal, tmp_path / "idea.zip", "me")
    assert [first.name, second.name] == ["idea 2", "idea 3"]
    rows = await journal.list_runs(first.id)
    assert [row.status for row in rows] == ["ok", "ok", "crashed", "ok"]
    assert not {row.id for row in rows} & {f"r_{number}" for number in range(9)}
    assert [row.idempotency_key for row in rows] == [None] * 4
    (moved,) = await journal.load_events(first.id, event_type=TipMoved)
    assert moved.event == TipMoved(first.origin, rows[1].id)
    opened, *_ = await journal.load_events(first.id)
    assert opened.event == SessionOpened("idea", "me", "local", first.origin, "fork")
    for stored in await journal.load_events(first.id, event_type=RunStarted):
        assert isinstance(stored.event, RunStarted)
        assert (stored.event.run_id, stored.event.idempotency_key) == (stored.run_id, None)
    assert (await journal.load_files_at(first.tip))[0] == (await journal.load_files_at("r_6"))[0]


async def test_a_fork_without_own_runs_and_an_empty_session_can_be_exported(
    journal: Journal, there: Journal, tmp_path: Path
) -> None:
    await journal.create_session("s_3", None, "me", tip="r_4", purpose="fork")
    await journal.create_session("s_4", "empty", "me")
    for session in ("s_3", "s_4"):
        await export_session(journal, session, tmp_path / f"{session}.zip")
        await import_session(there, tmp_path / f"{session}.zip", "you")
    assert [
        row.id for row in await there.load_lineage((await there.find_session("s_3", "you")).tip)
    ] == [
        "r_1",
        "r_2",
        "r_3",
        "r_4",
    ]
    assert (await there.find_session("empty", "you")).tip is None


async def test_a_lineage_that_alternates_between_two_sessions_is_imported(
    journal: Journal, there: Journal, tmp_path: Path
) -> None:
    journal.append("s_1", TipMoved("r_4", "r_private"))
    await ran(journal, "s_1", "r_7", 5, "r_4")
    await export_session(journal, "s_1", tmp_path / "base.zip")
    row = await import_session(there, tmp_path / "base.zip", "you")
    assert [each.id for each in await there.load_lineage(row.tip)] == [
        "r_1",
        "r_2",
        "r_3",
        "r_4",
        "r_7",
    ]


async def test_a_failed_import_does_not_roll_back_a_concurrent_one(
    journal: Journal, there: Journal, tmp_path: Path
) -> None:
    await export_session(journal, "s_2", tmp_path / "idea.zip")
    refused = []

    async def take_in() -> None:
        try:
            await import_session(there, tmp_path / "idea.zip", "you")
        except InvalidRequest as exc:
            refused.append(exc.message)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(take_in)
    assert len(refused) < 4
    rows = [row for row in await there.list_sessions() if row.name and row.name.startswith("idea")]
    assert len(rows) == 4 - len(refused)
    for row in rows:
        assert len(await there.load_events(row.id)) == len(await journal.load_events("s_2"))
        assert len((await there.load_files_at(row.tip))[0]) == 304


async def test_an_unfinished_run_is_finished_by_the_import_and_not_resumed(
    journal: Journal, there: Journal, tmp_path: Path
) -> None:
    journal.append("s_2", started("r_7", 4, "r_6"), "r_7")
    await export_session(journal, "s_2", tmp_path / "idea.zip")
    row = await import_session(there, tmp_path / "idea.zip", "you")
    assert await there.list_interrupted_runs() == []
    assert row.tip == "r_6"
    run = await there.load_run("r_7")
    assert (run.status, run.flags) == ("cancelled", frozenset({"interrupted", "undone"}))


async def test_an_export_replaces_a_file_only_with_force(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "idea.zip"
    path.write_text("precious")
    with pytest.raises(InvalidRequest, match=r"There is already a file .*idea.zip"):
        await export_session(journal, "s_2", path)
    assert path.read_text() == "precious"
    await export_session(journal, "s_2", path, force=True)
    assert zipfile.is_zipfile(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["here", "idea.zip"]


async def test_equal_sessions_give_equal_archives(journal: Journal, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        await export_session(journal, "s_2", tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


async def test_an_export_that_cannot_be_written_leaves_nothing(
    journal: Journal, tmp_path: Path
) -> None:
    with pytest.raises(
        InvalidRequest, match=r"The file .* cannot be written: No such file or directory"
    ):
        await export_session(journal, "s_2", tmp_path / "nowhere" / "idea.zip")
    with pytest.raises(NotFound, match="There is no session 's_9'"):
        await export_session(journal, "s_9", tmp_path / "idea.zip")
    assert os.listdir(tmp_path) == ["here"]


@pytest.mark.parametrize("which", ["file", "list of files", "output"])
async def test_a_damaged_blob_fails_the_export_unless_damage_is_skipped(
    journal: Journal, there: Journal, tmp_path: Path, which: str
) -> None:
    files, _ = await journal.load_files_at("r_6")
    file = files["file7"]["digest"]
    listed = {
        name: await a_file(journal, b"%d" % int(name[4:])) for name in files if name[:4] == "file"
    }
    listing = json.dumps(listed, separators=(",", ":")).encode()
    output = json.dumps(LONG).encode()
    digest = {
        "file": file,
        "list of files": sha256(listing).hexdigest(),
        "output": sha256(output).hexdigest(),
    }[which]
    journal.blobs.blob_path(digest).write_bytes(b"damaged")
    with pytest.raises(
        JournalFailed, match=f"cannot be exported whole. The blob .*{digest} is damaged"
    ):
        await export_session(journal, "s_2", tmp_path / "idea.zip")
    assert not (tmp_path / "idea.zip").exists()
    assert (
        await export_session(journal, "s_2", tmp_path / "idea.zip", skip_damaged=True)
    ).skipped_blobs == [digest]
    row = await import_session(there, tmp_path / "idea.zip", "you")
    assert [each.id for each in await there.load_lineage(row.tip)] == ["r_1", "r_2", "r_6"]
    with pytest.raises(NotFound, match=f"The blob {digest} is not in"):
        await there.get_blob(digest)
    if which != "file":
        with pytest.raises(JournalFailed, match=r"is damaged: The blob .* is not in"):
            await there.load_events("s_2")


async def test_a_cancelled_export_or_import_leaves_nothing(
    journal: Journal, there: Journal, tmp_path: Path
) -> None:
    await export_session(journal, "s_2", tmp_path / "idea.zip")

    async def until(word: str, act: Callable[..., Any], *args: Any) -> None:
        with anyio.CancelScope() as scope:
            await act(*args, progress=lambda text: scope.cancel() if word in text else None)
        assert scope.cancelled_caught

    await until("blobs are written", export_session, journal, "s_2", tmp_path / "again.zip")
    await until("events are checked", import_session, there, tmp_path / "idea.zip", "you")
    await until("events are imported", import_session, there, tmp_path / "idea.zip", "you")
    assert sorted(os.listdir(tmp_path)) == ["here", "idea.zip", "there"]
    assert (
        await there.read(lambda rows: rows.execute("SELECT * FROM sessions, events").fetchall())
        == []
    )
    assert (await import_session(there, tmp_path / "idea.zip", "you")).id == "s_2"


def test_content_that_compresses_too_well_is_stored_as_it_is(tmp_path: Path) -> None:
    zeros, text = bytes(3 * 1024 * 1024), b"a line of text\n" * 50
    path = tmp_path / "session.zip"
    with write_archive(path, force=False) as archive:
        archive.add_blob("0" * 64, zeros)
        archive.add_blob("1" * 64, text)
    with zipfile.ZipFile(path) as file:
        methods = [member.compress_type for member in file.infolist()]
    assert methods == [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]
