"""An archive is not trusted: its problem is named, and nothing of it remains."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import struct
import zipfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.errors import InvalidRequest, NotFound
from mcpruntime_server.journal import archive_events, archive_file
from mcpruntime_server.journal.archive import import_session
from mcpruntime_server.journal.events import QuestionAnswered, RunStarted
from mcpruntime_server.journal.store import Journal

Members = dict[str, bytes]


def blob_of(data: bytes) -> tuple[str, bytes]:
    return f"blobs/{sha256(data).hexdigest()}", data


FILE = blob_of(b"content")
DIGEST = FILE[0][6:]
GOOD_MANIFEST: dict[str, Any] = {
    "format": "mcpruntime-server session archive",
    "version": 1,
    "sessions": [{"id": "s_1", "name": "x", "created_at": 1.0, "origin": None}],
    "run_count": 1,
    "event_count": 3,
    "skipped_blobs": [],
}
START = {
    "run_id": "r_1",
    "parent_id": None,
    "step": 1,
    "code": "1",
    "name": "<step 1>",
    "timeout_s": 1,
    "seed": "s",
}


ASKED = {"question_id": "q1", "kind": "approval", "call_id": 1, "expires_at": 1e300}


def event(n: int, kind: str, body: Any, run: str | None = "r_1", **more: Any) -> dict[str, Any]:
    return {
        "session": 0,
        "sequence": n,
        "run_id": run,
        "recorded_at": 1.0,
        "kind": kind,
        "version": 1,
        "body": body,
        **more,
    }


def good_events() -> list[Any]:
    entry = {"digest": DIGEST, "size": 7, "mode": 0o644}
    return [
        event(1, "run_started", dict(START)),
        event(2, "run_finished", {"status": "ok"}),
        event(3, "files_changed", {"changed": {"a/b.txt": entry}, "removed": []}),
    ]


def packed(
    events: list[Any] | None = None,
    manifest: dict[str, Any] | None = None,
    blobs: Members | None = None,
) -> Members:
    found = good_events() if events is None else events
    told = {**GOOD_MANIFEST, "event_count": len(found), **(manifest or {})}
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in found)
    given = dict([FILE]) if blobs is None else blobs
    return {"manifest.json": json.dumps(told).encode(), "events.jsonl": lines, **given}


def with_member(name: str, data: bytes) -> Members:
    return {**packed(), name: data}


def with_event(place: int, **changes: Any) -> Members:
    events = good_events()
    events[place] = {**events[place], **changes}
    return packed(events)


def with_body(place: int, **changes: Any) -> Members:
    events = good_events()
    events[place]["body"] |= changes
    return packed(events)


def with_file(path: str = "a", **changes: Any) -> Members:
    return with_body(2, changed={path: {"digest": DIGEST, "size": 7, "mode": 0o644, **changes}})


def zipped(members: Members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return made.getvalue()


async def count_rows(journal: Journal) -> int:
    tables = ("sessions", "runs", "events")
    count = "SELECT count(*) FROM "
    return sum(
        await journal.read(
            lambda rows: [rows.execute(count + each).fetchone()[0] for each in tables]
        )
    )


async def refused(journal: Journal, tmp_path: Path, data: bytes, reason: str) -> str:
    path = tmp_path / "hostile.zip"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        await import_session(journal, path, "you")
    assert await count_rows(journal) == 0
    assert [found for found in journal.blobs.root.rglob("*") if found.is_file()] == []
    return str(caught.value)


async def test_the_valid_archive_of_these_tests_is_imported(there: Journal, tmp_path: Path) -> None:
    (tmp_path / "good.zip").write_bytes(zipped(packed()))
    row = await import_session(there, tmp_path / "good.zip", "you")
    assert (await there.load_files_at(row.tip))[0] == {
        "a/b.txt": {"digest": DIGEST, "size": 7, "mode": 0o644}
    }


TWO_RUNS = {"run_count": 2}
OBJECTS = blob_of(b'{"x": [' + b"{}," * 700_000 + b"{}]}")
DEEP = blob_of(b"[" * 101 + b"]" * 101)
VERY_DEEP = blob_of(b"[" * 100_000 + b"]" * 100_000)
TEXT_WITHOUT_END = blob_of(b'"' + rb"\"" * 600_000 + b"," * 1_000_001)


def with_field(blob: tuple[str, bytes]) -> Members:
    started = {"call_id": 1, "target": "x", "effect": "read", "nth": 0}
    changed = event(2, "call_started", started, large_fields={"args": blob[0][6:]})
    start, finish, _ = good_events()
    finish["sequence"] = 3
    return packed([start, changed, finish], blobs=dict([blob]))


HOSTILE: dict[str, tuple[Members, str]] = {
    "many objects": (with_field(OBJECTS), "holds more than 1,000,000 values"),
    "deep field": (with_field(DEEP), "is nested more than 100 levels deep"),
    "very deep field": (with_field(VERY_DEEP), "is nested more than 100 levels deep"),
    "text without an end": (with_field(TEXT_WITHOUT_END), "is not JSON"),
    "many objects in a line": (
        with_body(0, more=[{}] * 700_000),
        "line 1' holds more than 1,000,000 values",
    ),
    "deep line": (with_body(0, more=json.loads(DEEP[1])), "levels deep"),
    "deep manifest": (
        with_member("manifest.json", b"[" * 5_000 + b"]" * 5_000),
        "is nested more than 100",
    ),
    "traversal": (with_member("../../evil", b""), r"'../../evil' does not belong"),
    "absolute": (with_member("/etc/passwd", b""), r"'/etc/passwd' does not belong"),
    "folder": (with_member("blobs/", b""), r"'blobs/' does not belong"),
    "blob that is no digest": (with_member("blobs/../x", b""), "does not belong"),
    "wrong digest": (
        packed(blobs={FILE[0]: b"other"}),
        "has content with another digest",
    ),
    "no manifest": ({"events.jsonl": b""}, r"'manifest.json' is missing"),
    "no events": ({"manifest.json": packed()["manifest.json"]}, r"'events.jsonl' is missing"),
    "manifest that is no JSON": (
        with_member("manifest.json", b"{"),
        r"'manifest.json' is not JSON",
    ),
    "manifest of something else": (with_member("manifest.json", b"[]"), "is not a JSON object"),
    "manifest with a number for text": (
        packed(manifest={"skipped_blobs": [1]}),
        "has an invalid 'skipped_blobs'",
    ),
    "manifest without a session": (packed(manifest={"sessions": []}), "names no session"),
    "manifest with a number for sessions": (packed(manifest={"sessions": 1.5}), "names no session"),
    "manifest with a text for a session": (
        packed(manifest={"sessions": ["s_1"]}),
        "has an invalid 'sessions'",
    ),
    "manifest without a version": (
        packed(manifest={"version": None}),
        "version None; this program reads",
    ),
    "manifest with a broken session": (
        packed(manifest={"sessions": [{"id": 1}]}),
        "has an invalid 'id'",
    ),
    "manifest with an odd name": (
        packed(manifest={"sessions": [{**GOOD_MANIFEST["sessions"][0], "name": "s_secret"}]}),
        "has an invalid session name 's_secret'",
    ),
    "manifest with an unknown origin": (
        packed(manifest={"sessions": [{**GOOD_MANIFEST["sessions"][0], "origin": "r_9"}]}),
        "names an unknown run 'r_9'",
    ),
    "newer archive": (packed(manifest={"version": 2}), "has version 2.*Use the newer"),
    "wrong counts": (
        packed(manifest={"event_count": 9}),
        "has 3 events of 1 runs, which the manifest contradicts",
    ),
    "line that is no JSON": (
        with_member("events.jsonl", b"{]\n"),
        r"'events.jsonl, line 1' is not JSON",
    ),
    "line that is no event": (packed([1]), "line 1' is not an event"),
    "line without a run": (
        packed([{key: each for key, each in good_events()[0].items() if key != "run_id"}]),
        "is not an",
    ),
    "nested too deeply": (
        with_member("events.jsonl", b"[" * 100_000),
        "line 1' is nested more than 100",
    ),
    "infinity": (with_member("events.jsonl", b"[1e999]\n"), "is too large"),
    "not a number": (with_member("events.jsonl", b"[NaN]\n"), "NaN is not a JSON number"),
    "endless integer": (with_member("events.jsonl", b"[" + b"9" * 9999 + b"]\n"), "is not JSON"),
    "event of a session that is not there": (with_event(1, session=7), "line 2' is out of order"),
    "event twice": (with_event(1, sequence=1), "line 2' is out of order"),
    "event with a huge number": (with_event(1, sequence=2**80), "line 2' is out of order"),
    "event of a newer version": (
        with_event(1, version=2),
        "written by a newer version. Use that version",
    ),
    "event with an odd kind": (with_event(1, kind="\ud800"), "has an invalid kind"),
    "event of another run": (
        with_event(1, run_id="r_9"),
        "belongs to run 'r_9', which the session has not started",
    ),
    "event with a missing field": (with_event(1, body={}), "has no status"),
    "event with a field of a wrong type": (
        with_body(0, timeout_s="1"),
        "has an invalid 'timeout_s'",
    ),
    "event with a truth for a number": (with_body(0, step=True), "has an invalid 'step'"),
    "list for an object": (with_body(2, changed=[]), "has an invalid 'changed'"),
    "file entry of a wrong shape": (
        with_body(2, changed={"a": {"digest": DIGEST}}),
        "has an invalid 'changed'",
    ),
    "run that is its own parent": (with_body(0, parent_id="r_1"), "whose parent 'r_1' is missing"),
    "run without its parent": (with_body(0, parent_id="r_9"), "whose parent 'r_9' is missing"),
    "cycle of runs": (
        packed(
            [event(1, "run_started", {**START, "parent_id": "r_2", "step": 2}), good_events()[0]],
            TWO_RUNS,
        ),
        "whose parent 'r_2' is missing or comes later",
    ),
    "step that does not follow": (with_body(0, step=0), "contradicts its parent's"),
    "huge step": (with_body(0, step=2**40), "contradicts its parent's"),
    "run twice": (
        packed([good_events()[0], event(2, "run_started", START)]),
        "again or under two ids",
    ),
    "run of two names": (with_body(0, run_id="r_2"), "again or under two ids"),
    "end twice": (
        packed([*good_events()[:2], event(3, "run_finished", {"status": "ok"})]),
        "finishes a run that is not unfinished",
    ),
    "run that waits for its turn": (
        packed(
            [
                *good_events(),
                event(4, "run_queued", {"run_id": "r_2", "code": "1", "timeout_s": 1}, "r_2"),
            ]
        ),
        "line 4' queues a run, which is not",
    ),
    "run that waits and begins": (
        packed(
            [
                event(1, "run_queued", {"run_id": "r_1", "code": "1", "timeout_s": 1}),
                event(2, "run_started", START),
            ]
        ),
        "line 1' queues a run, which is not",
    ),
    "question for no run": (
        packed([*good_events(), event(4, "question_asked", ASKED, None)]),
        "line 4' asks a question without a run",
    ),
    "tip that is not there": (
        packed([*good_events(), event(4, "tip_moved", {"tip": "r_9", "previous_tip": None}, None)]),
        "moves the tip from or to an unknown run",
    ),
    "blob that is not there": (packed(blobs={}), f"needs blob '{DIGEST}', which is missing"),
    "large field that is not there": (
        with_event(1, large_fields={"value": "0" * 64}),
        "which is missing",
    ),
    "large field that is no digest": (
        with_event(1, large_fields={"value": "../x"}),
        "which is missing",
    ),
    "large field that is no JSON": (with_event(1, large_fields={"value": DIGEST}), "is not JSON"),
    "name of a run in a blob": (
        with_event(0, large_fields={"parent_id": DIGEST}),
        "has 'parent_id' as a blob",
    ),
    "file outside": (
        with_file("../../.bashrc"),
        "names a file '../../.bashrc' outside the workspace",
    ),
    "file at the root": (with_file("/etc/passwd"), "outside the workspace"),
    "file with a detour": (with_file("a/../b"), "outside the workspace"),
    "file with a zero": (with_file("a\0b"), "outside the workspace"),
    "removed file outside": (with_body(2, removed=["/"]), "outside the workspace"),
    "file of a wrong size": (with_file(size=8), "has a wrong size"),
    "file of a wrong mode": (with_file(mode=0o170000), "has an invalid file mode"),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_archive_is_rejected_and_leaves_nothing(
    there: Journal, tmp_path: Path, what: str
) -> None:
    members, reason = HOSTILE[what]
    assert "hostile.zip is rejected" in await refused(there, tmp_path, zipped(members), reason)


async def test_questions_and_approvals_of_an_archive_have_no_effect(
    there: Journal, tmp_path: Path
) -> None:
    scope = blob_of(b'"session"')
    leave = {"decision": "allow", "target": "tools.mail.send"}
    approved = [{"target": "tools.mail.send", "args": "{}", "nth": 0, "sent": "{}", "person": True}]
    events = [
        event(1, "run_started", {**START, "dry_run": True, "approved_calls": approved}),
        event(2, "question_asked", ASKED),
        event(3, "question_asked", {**ASKED, "question_id": "q2"}),
        event(4, "question_answered", {**leave, "question_id": "q1", "scope": "session"}),
        event(
            5,
            "question_answered",
            {**leave, "question_id": "q2"},
            large_fields={"scope": scope[0][6:]},
        ),
        event(6, "question_answered", {**leave, "question_id": "q3", "scope": "run"}),
        event(7, "question_answered", {**leave, "question_id": "q4", "scope": "session"}, None),
        event(8, "run_finished", {"status": "ok"}),
        event(9, "question_asked", {**ASKED, "question_id": "q9"}),
    ]
    (tmp_path / "leave.zip").write_bytes(zipped(packed(events, blobs=dict([scope]))))
    row = await import_session(there, tmp_path / "leave.zip", "you")
    found = [stored.event for stored in await there.load_events(row.id)]
    assert [each.scope for each in found if isinstance(each, QuestionAnswered)] == ["once"] * 4
    assert [each.approved_calls for each in found if isinstance(each, RunStarted)] == [[]]
    assert await there.read(lambda rows: rows.execute("SELECT * FROM questions").fetchall()) == []
    with pytest.raises(NotFound):
        await there.submit_answer("r_1", "q9", '"allow"')


async def test_links_are_rejected(there: Journal, tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in packed().items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(member, data)
    await refused(there, tmp_path, made.getvalue(), "is not a regular file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
async def test_a_duplicate_member_is_rejected(there: Journal, tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in [*packed().items(), ("manifest.json", b"{}")]:
            file.writestr(name, data)
    await refused(there, tmp_path, made.getvalue(), "'manifest.json' occurs twice")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_other_compressions_are_rejected(there: Journal, tmp_path: Path, method: int) -> None:
    await refused(
        there, tmp_path, zipped(packed(), method), "uses a compression other than deflate"
    )


async def test_bombs_are_rejected_while_they_are_read(
    there: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = bytes(8 * 1024 * 1024)
    for name in ("MAX_BLOB_BYTES", "MAX_MANIFEST_BYTES"):
        monkeypatch.setattr(archive_file, name, 1024 * 1024)
    monkeypatch.setattr(archive_file.ArchiveReader.iter_chunks, "__defaults__", (1024 * 1024,))
    await refused(
        there, tmp_path, zipped(packed(blobs=dict([FILE, blob_of(zeros)]))), "is larger than 1 MB"
    )
    await refused(
        there,
        tmp_path,
        zipped(with_member("manifest.json", zeros)),
        "'manifest.json' is larger than 1 MB",
    )
    await refused(
        there, tmp_path, zipped(with_member("events.jsonl", zeros)), "line 1' is longer than 4 MB"
    )
    monkeypatch.setattr(archive_file, "MAX_TOTAL_BYTES", 2 * 1024 * 1024)
    several = dict(blob_of(bytes([number]) * 900_000) for number in range(3))
    await refused(there, tmp_path, zipped(packed(blobs=several)), "makes it larger than 2 MB")
    lines = b"".join(
        json.dumps(event(n, "tea", {"x": "y" * 1000}, None)).encode() + b"\n"
        for n in range(1, 3000)
    )
    await refused(
        there,
        tmp_path,
        zipped(with_member("events.jsonl", lines)),
        "'events.jsonl' makes it larger than 2 MB",
    )
    monkeypatch.setattr(archive_file, "MAX_TOTAL_BYTES", 1 << 40)
    monkeypatch.setattr(archive_file, "FREE_BYTES", 1024 * 1024)
    bombs = dict(blob_of(bytes([number]) * 900_000) for number in range(3))
    await refused(there, tmp_path, zipped(packed(blobs=bombs)), "MB, which its size allows")
    monkeypatch.setattr(archive_file, "MAX_MEMBERS", 3)
    await refused(there, tmp_path, zipped(packed(blobs=several)), "exceeds the limit of 3 members")
    monkeypatch.setattr(archive_events, "MAX_RUNS", 1)
    two = [event(n, "run_started", {**START, "run_id": f"r_{n}"}, f"r_{n}") for n in (1, 2)]
    await refused(there, tmp_path, zipped(packed(two, TWO_RUNS)), "starts more than 1 runs")


async def test_a_huge_directory_is_rejected_before_it_is_read(
    there: Journal, tmp_path: Path
) -> None:
    whole = zipped(packed())
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 500_000_000, 0, 0)
    await refused(there, tmp_path, whole[:-22] + end, "its directory is larger than 40 MB")
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 9, 9, 500_000_000, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(whole) - 22, 1)
    await refused(
        there,
        tmp_path,
        whole[:-22] + end64 + locator + whole[-22:],
        "its directory is larger than 40 MB",
    )
    elsewhere = struct.pack("<4sLQL", b"PK\6\7", 0, 5, 1)
    await refused(
        there,
        tmp_path,
        whole[:-22] + end64 + elsewhere + whole[-22:],
        "its end is not where the file says",
    )


async def test_an_incomplete_or_damaged_zip_is_rejected(there: Journal, tmp_path: Path) -> None:
    whole = zipped(packed())
    for data in (
        b"",
        b"PK",
        b"not a zip at all" * 100,
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"x",
    ):
        assert "Export the session again" in await refused(
            there, tmp_path, data, "is not a complete archive"
        )
    for place in range(
        0, len(whole), 7
    ):  # any damage is refused or harmless, and never another error
        broken = bytearray(whole)
        broken[place] ^= 0x5A
        (tmp_path / "broken.zip").write_bytes(broken)
        with suppress(InvalidRequest):
            await import_session(there, tmp_path / "broken.zip", "you")


async def test_pipes_folders_and_missing_files_are_rejected(there: Journal, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with anyio.fail_after(5):
        for name, reason in (
            ("pipe", "is not a regular file"),
            (".", "is not a regular file"),
            ("none", "No such file"),
        ):
            with pytest.raises(InvalidRequest, match=reason):
                await import_session(there, tmp_path / name, "you")


async def test_ids_of_another_form_are_replaced(there: Journal, tmp_path: Path) -> None:
    odd = [{**each, "run_id": "--force"} for each in good_events()]
    odd[0]["body"] = {**START, "run_id": "--force", "replayed_run": "r_of_somebody"}
    sessions = [{"id": "report\ud800", "name": None, "created_at": 1.0, "origin": None}]
    (tmp_path / "odd.zip").write_bytes(zipped(packed(odd, {"sessions": sessions})))
    row = await import_session(there, tmp_path / "odd.zip", "you")
    assert row.id.startswith("s_")
    (run,) = await there.list_runs(row.id)
    assert run.id.startswith("r_")
    started, *_ = await there.load_events(row.id)
    assert isinstance(started.event, RunStarted)
    assert (started.event.run_id, started.event.replayed_run) == (run.id, None)


async def test_what_an_archive_does_not_hold_stays_missing_though_the_journal_has_it(
    there: Journal, tmp_path: Path
) -> None:
    """An archive lists what its export has skipped: that could be any blob of the importer."""
    secret = b'"the secret of somebody else"'
    digest = await there.put_blob(secret)
    changed = {"a": {"digest": digest, "size": len(secret), "mode": 0o644}}
    listed = await there.put_blob(json.dumps(changed).encode())
    context = [{"name": "x", "path": "", "stamp": "", "start": 0, "end": None, **changed["a"]}]
    del context[0]["mode"]
    call = {"call_id": 1, "target": "web.GET x", "args": "{}", "effect": "read", "nth": 0}
    events = [
        event(1, "run_started", {**START, "context": context}),
        event(2, "call_started", call),
        event(3, "call_finished", {"call_id": 1, "blobs": [digest]}),
        event(4, "output_written", {"stream": "stdout"}, large_fields={"text": digest}),
        event(5, "run_finished", {"status": "ok"}),
        event(6, "files_changed", {"changed": changed}),
    ]
    skipped = {"skipped_blobs": [digest, listed]}
    (tmp_path / "skipped.zip").write_bytes(zipped(packed(events, skipped, {})))
    row = await import_session(there, tmp_path / "skipped.zip", "you")
    damage: list[str] = []
    found = [stored.event for stored in await there.load_events(row.id, damage=damage)]
    assert any("has lost its text" in each for each in damage)
    assert digest not in repr(found)
    for name in re.findall("[0-9a-f]{64}", repr(found)):
        with pytest.raises(NotFound):
            await there.get_blob(name)


async def test_a_list_of_files_that_an_archive_holds_names_only_what_it_holds(
    there: Journal, tmp_path: Path
) -> None:
    digest = await there.put_blob(b"the secret of somebody else")
    entry = {"digest": digest, "size": 27, "mode": 0o644}
    listed = blob_of(json.dumps({"a": entry, "b": {**entry, "digest": DIGEST, "size": 7}}).encode())
    start, finish, _ = good_events()
    files = event(3, "files_changed", {}, large_fields={"changed": listed[0][6:]})
    members = packed([start, finish, files], {"skipped_blobs": [digest]}, dict([listed, FILE]))
    (tmp_path / "skipped.zip").write_bytes(zipped(members))
    row = await import_session(there, tmp_path / "skipped.zip", "you")
    found, _ = await there.load_files_at(row.tip)
    assert found["b"]["digest"] == DIGEST
    with pytest.raises(NotFound):
        await there.get_blob(found["a"]["digest"])
