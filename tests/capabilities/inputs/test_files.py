"""Files as inputs: only regular files below the roots, and never changed content."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.inputs import files, placement, store
from mcpruntime_server.capabilities.inputs.files import InputRoots, open_beneath
from mcpruntime_server.capabilities.inputs.sources import resolve_context
from mcpruntime_server.capabilities.inputs.store import (
    InputStore,
    compute_file_name,
    compute_input_id,
)
from mcpruntime_server.errors import CallFailed, InputChanged, InvalidRequest
from mcpruntime_server.journal.call_scope import CallScope, enter_call_scope
from mcpruntime_server.journal.events import InputEntry, RunFinished, RunStarted
from mcpruntime_server.journal.store import Journal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file in it, beside a secret."""
    folder = tmp_path / "root"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file.txt").write_text("mine")
    (tmp_path / "secret").write_text("secret")
    return folder


def content(roots: InputRoots, path: str) -> bytes:
    with roots.open_file(path) as (fd, _):
        return files.read_range(fd, 0, 1000)


def test_only_files_below_a_root_are_opened(root: Path, tmp_path: Path) -> None:
    roots = InputRoots((root,), tmp_path / "data")
    assert content(roots, f"{root}/inner/../inner/./file.txt") == b"mine"
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "inner" / "file.txt")
    assert content(roots, f"{root}/in") == b"mine"
    outside = (
        f"{root}/../secret",
        f"{root}/out",
        f"{root}/up/secret",
        "/etc/passwd",
        f"{tmp_path}/root2/x",
    )
    for path in outside:
        with pytest.raises(InvalidRequest, match="not in a folder that inputs may come from"):
            content(roots, path)
    with pytest.raises(InvalidRequest, match="is a folder"):
        content(roots, str(root))
    for path in ("relative", "", f"{root}/a\0b"):
        with pytest.raises(InvalidRequest, match="not an absolute path"):
            content(roots, path)
    with pytest.raises(InvalidRequest, match="No such file"):
        content(roots, f"{root}/none")


def test_a_root_may_be_a_link_and_the_servers_folder_is_refused(root: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    roots = InputRoots((linked,), tmp_path / "data")
    assert (
        content(roots, f"{linked}/inner/file.txt")
        == content(roots, f"{root}/inner/file.txt")
        == b"mine"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "journal.db").write_text("all")
    with pytest.raises(InvalidRequest, match="in the server's data folder"):
        content(InputRoots((tmp_path,), tmp_path / "data"), f"{tmp_path}/data/journal.db")
    with pytest.raises(InvalidRequest, match="context_roots"):
        content(InputRoots((), tmp_path / "data"), f"{root}/inner/file.txt")


def test_a_path_replaced_by_a_link_after_the_check_is_not_followed(
    root: Path, tmp_path: Path
) -> None:
    found = InputRoots((root,), tmp_path / "data").resolve_path(f"{root}/inner/file.txt")
    (root / "inner").rename(root / "gone")
    (root / "inner").symlink_to(tmp_path)
    (tmp_path / "file.txt").write_text("secret")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        open_beneath(*found)
    (root / "inner").unlink()
    (root / "inner").mkdir()
    (root / "inner" / "file.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidRequest, match="is a link"):
        open_beneath(*found)


def test_only_regular_files_are_opened_and_nothing_blocks(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = InputRoots((root,), tmp_path / "data")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(root)  # the path of a socket must be short
        listening.bind("socket")
        for name, kind in (("pipe", "a pipe"), ("socket", "a socket"), ("inner", "a folder")):
            with pytest.raises(InvalidRequest, match=f"is {kind}, not a file"):
                content(roots, f"{root}/{name}")
    with pytest.raises(InvalidRequest, match="is a device"):
        content(InputRoots((Path("/dev"),), tmp_path), "/dev/null")


def test_file_addresses_are_paths_of_this_machine() -> None:
    assert (
        files.parse_file_uri("file:///a%20b/c")
        == files.parse_file_uri("file://localhost/a%20b/c")
        == "/a b/c"
    )
    for address in ("file://other/x", "file:///x?y", "file:///x#y"):
        with pytest.raises(InvalidRequest, match="does not name a file of this machine"):
            files.parse_file_uri(address)


# entries ------------------------------------------------------------------------------------------


async def test_small_files_are_kept_by_content_and_large_ones_by_stamp(
    journal: Journal, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_CONTENT_BYTES", 10)
    inputs = InputStore(journal, [root])
    path = root / "inner" / "file.txt"
    real = str(path)
    small = await inputs.add_file(str(path))
    path.write_text("larger than that")
    large = await inputs.add_file(f"{root}/inner/../inner/file.txt")
    assert (small["path"], large["digest"]) == ("", "")
    assert large["path"] == real
    assert inputs.read_content(small) == b"mine"
    assert inputs.read_content(large) == b"larger than that"
    for change in (
        lambda: os.utime(path, ns=(1, 1)),
        lambda: path.write_text("short"),
        path.unlink,
        lambda: path.symlink_to("/etc/passwd"),
    ):
        change()
        with pytest.raises(InputChanged):
            inputs.read_content(large)


async def test_a_file_with_the_same_content_is_recognised(
    journal: Journal, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_CONTENT_BYTES", 3)
    await journal.create_session("s_1", None, "me")
    inputs, path = InputStore(journal, [root]), root / "inner" / "file.txt"
    entry = await inputs.add_file(str(path))
    await inputs.hash_files("s_1", "r_1", [entry], lambda: True)
    later = InputStore(journal, [root])
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputChanged):
        later.read_content(entry)
    await later.load_digests("s_1")
    assert later.read_content(entry) == b"mine"
    path.write_text("MINE")
    with pytest.raises(InputChanged):
        later.read_content(entry)


async def test_a_sandbox_gets_a_copy_of_the_file_that_it_can_read(
    journal: Journal, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_CONTENT_BYTES", 3)
    inputs, path, target = (
        InputStore(journal, [root]),
        root / "inner" / "file.txt",
        tmp_path / "target",
    )
    path.chmod(0o600)  # the user of the sandbox could not read it
    entry = await inputs.add_file(str(path))
    modified = inputs.place_content(entry, target, lambda _: None)
    assert not target.samefile(path)
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"mine", 0o644)
    assert modified == target.stat().st_mtime_ns == path.stat().st_mtime_ns
    target.unlink()

    def fail(_: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(placement, "_clone_blocks", lambda *_: False)
    with pytest.raises(ZeroDivisionError):
        inputs.place_content(entry, target, fail)
    assert not target.exists()
    assert [name for name in os.listdir(tmp_path) if "target" in name] == []


def test_file_names_in_the_sandbox_follow_from_the_content() -> None:
    entry = InputEntry(
        name="../../x/../a.csv.gz", digest="d", path="", size=1, stamp="", start=0, end=None
    )
    name = compute_file_name(entry)
    assert name.endswith(".csv.gz")
    assert "/" not in name
    assert len(name) == 16 + 7
    other = InputEntry(**{**entry, "name": "a" * 500 + "./..\0"})
    assert compute_file_name(other) == name[:16]
    assert compute_input_id(other) == compute_input_id(entry)
    assert compute_input_id(InputEntry(**{**entry, "end": 1})) != compute_input_id(entry)


# what clients name --------------------------------------------------------------------------------


async def test_an_error_names_the_input_that_is_wrong(journal: Journal, root: Path) -> None:
    inputs = InputStore(journal, [root])
    for given, wrong in (
        ([f"{root}/*.none"], "No file matches"),
        ([f"{root.parent}/*"], "not in a folder"),
        (["/etc/passwd"], r"context\[0\]: '/etc/passwd' .*not in a folder"),
        ([{"text": "x"}, {"txt": "y"}], r"context\[1\]"),
        ([{"text": 1}], "either `text` or `source`"),
        ([{"text": "x", "source": "y"}], "either `text` or `source`"),
        ([7], "does not name an input"),
        (["two\nlines"], r'Pass text as \{"text"'),
        (["a.txt"], "no file 'a.txt'.*none yet"),
        (["docs:x"], "No server has 'docs:x'"),
        ([{"text": "x"}] * 65, "at most 64 inputs"),
    ):
        with pytest.raises(InvalidRequest, match=f"(?s){wrong}"):
            await resolve_context(inputs, given, None)


async def test_names_are_printable_and_unique(journal: Journal, root: Path) -> None:
    given = [
        {"text": "1"},
        {"text": "2"},
        {"text": "3", "name": "a\n\x1b[31m\u202e\ud800"},
        f"{root}/inner/file.txt",
    ]
    found = await resolve_context(InputStore(journal, [root]), given, None)
    assert [each["name"] for each in found] == ["text", "text (2)", "a__[31m__", "file.txt"]


# references from code -----------------------------------------------------------------------------


async def test_a_reference_reaches_only_inputs_of_its_own_runs_lineage(journal: Journal) -> None:
    inputs = InputStore(journal)
    mine, other = await inputs.add_text("ab€cd"), await inputs.add_text("secret")
    for session, run, entry in (("s_1", "r_1", mine), ("s_2", "r_2", other)):
        await journal.create_session(session, None, "me")
        journal.append(
            session, RunStarted(run, None, 1, "1", "<step 1>", 1.0, context=[entry]), run
        )
        journal.append(session, RunFinished("ok"), run)

    async def text(key: object, start: object, end: object) -> bytes:
        reference = {"$slice": {"input": key, "start": start, "end": end}}
        piece = await inputs.add_slice("s_1", "r_1", reference, "piece")
        return inputs.read_content(piece)

    async with anyio.create_task_group() as tasks:  # concurrent lookups find the same input
        for _ in range(5):
            tasks.start_soon(text, compute_input_id(mine), 0, 2)
    assert await text(compute_input_id(mine), 2, 6) == "€c".encode()
    keys: list[object] = [compute_input_id(other), "", "../x", None, 1, [], {}]
    for key in keys:
        with pytest.raises(
            CallFailed,
            match="has never had the input of this slice"
            if isinstance(key, str)
            else "not a reference",
        ):
            await text(key, 0, 1)
    for start, end in ((-1, 2), (3, 2), (0, 8), (0, 10**30)):
        with pytest.raises(CallFailed, match="has no slice"):
            await text(compute_input_id(mine), start, end)
    spans: list[tuple[object, object]] = [(True, 2), (0, None), (0.5, 2), ("0", 1)]
    for first, last in spans:
        with pytest.raises(CallFailed, match="not a reference"):
            await text(compute_input_id(mine), first, last)


async def test_a_large_slice_is_an_input_of_the_same_content(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = InputStore(journal)
    whole = await inputs.add_text("0123456789")
    inputs.remember_inputs("s_1", [whole])
    monkeypatch.setattr(store, "MAX_CONTENT_BYTES", 3)
    reference = {"$slice": {"input": compute_input_id(whole), "start": 2, "end": 8}}
    part = await inputs.add_slice("s_1", "r_1", reference)
    assert (part["digest"], part["start"], part["end"], part["name"]) == (
        whole["digest"],
        2,
        8,
        "text 2:8",
    )
    inputs.remember_inputs("s_2", [part])
    with pytest.raises(CallFailed, match="has no slice 0:3"):
        await inputs.add_slice(
            "s_2", "r_2", {"$slice": {"input": compute_input_id(part), "start": 0, "end": 3}}
        )


async def test_slices_in_concurrent_calls_stay_within_the_memory_limit(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_HELD_BYTES", 10)
    monkeypatch.setattr(store, "MAX_SLICE_BYTES", 8)
    inputs = InputStore(journal)
    whole = await inputs.add_text("0123456789")
    inputs.remember_inputs("s_1", [whole])
    held = most = 0

    async def ask(size: int) -> None:
        nonlocal held, most
        enter_call_scope(
            CallScope("s_1", "r_1", "local", refuse_request, nullcontext, print, print)
        )
        async with inputs.resolve_data(
            {"$slice": {"input": compute_input_id(whole), "start": 0, "end": size}}
        ) as text:
            assert text == "0123456789"[:size]
            held += size
            most = max(most, held)
            await anyio.lowlevel.checkpoint()
            held -= size

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(ask, number % 9)
    assert most <= 10
    with pytest.raises(CallFailed, match="at most 8 bytes, not 9"):
        await ask(9)
    enter_call_scope(CallScope("s_1", "r_1", "local", refuse_request, nullcontext, print, print))
    async with inputs.resolve_data({"a": 1}) as data:
        assert data == {"a": 1}


async def refuse_request(_: Mapping[str, Any]) -> None:
    raise AssertionError("no model is asked")
