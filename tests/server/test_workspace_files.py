"""Workspace files as resources, and copies of them for the user."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import MCPError
from mcp.types import BlobResourceContents, ElicitResult, ResourceLink, TextResourceContents

from mcpruntime_server.capabilities.file_exports import DRAFT_PREFIX
from mcpruntime_server.journal.store import open_journal

from ..helpers.server_connection import ServerConnection, connect_server, write_settings
from ..helpers.server_killing import start_ready_server
from .test_approvals import attach
from .test_resume import until

WRITE = "open('a b.txt', 'w').write('text')\nopen('x.bin', 'wb').write(b'\\0\\xff')"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerConnection]:
    """A server whose export folder is a folder of the test."""
    settings = write_settings(tmp_path, server={"export_dir": str(tmp_path / "exports")})
    async with connect_server(settings) as connection:
        yield connection


# resources ----------------------------------------------------------------------------------------


async def test_changed_files_are_links_that_can_be_read(server: ServerConnection) -> None:
    result = await server.client.call_tool("run_code", {"code": WRITE, "session": "my work"})
    links = [each for each in result.content if isinstance(each, ResourceLink)]
    assert [(each.name, each.uri, each.mime_type) for each in links] == [
        ("a b.txt", "workspace://my%20work/a%20b.txt", "text/plain"),
        ("x.bin", "workspace://my%20work/x.bin", "application/octet-stream"),
    ]
    [text] = (await server.client.read_resource(links[0].uri)).contents
    assert isinstance(text, TextResourceContents)
    assert text.text == "text"
    [data] = (await server.client.read_resource(links[1].uri)).contents
    assert isinstance(data, BlobResourceContents)
    assert data.blob == "AP8="
    listed = {each.uri for each in (await server.client.list_resources()).resources}
    assert {each.uri for each in links} <= listed


async def test_many_files_have_few_links_and_removed_ones_none(server: ServerConnection) -> None:
    code = "for n in range(60): open(f'f{n:02}', 'w').close()"
    result = await server.client.call_tool("run_code", {"code": code, "session": "s"})
    assert len([each for each in result.content if isinstance(each, ResourceLink)]) == 10
    code = "import os\nos.remove('f00')"
    result = await server.client.call_tool("run_code", {"code": code, "session": "s"})
    assert [each.type for each in result.content] == ["text"]


@pytest.mark.parametrize(
    "uri",
    ["workspace://s/none", "workspace://other/a", "workspace://s/../../etc/passwd", "workspace://"],
)
async def test_what_is_not_there_is_not_found(server: ServerConnection, uri: str) -> None:
    await server.run(WRITE, "s")
    with pytest.raises(MCPError, match=r"There is no session|has no file"):
        await server.client.read_resource(uri)


async def test_names_that_cannot_be_shown_have_no_links(server: ServerConnection) -> None:
    code = "for name in ('-x', 'a\\x1b[2Jb', 'a\\nb', 'y' * 250): open(name, 'w').close()"
    result = await server.client.call_tool("run_code", {"code": code, "session": "s"})
    links = [each for each in result.content if isinstance(each, ResourceLink)]
    assert [each.name for each in links] == ["-x"]
    listed = (await server.client.list_resources()).resources
    assert all(each.name.isprintable() for each in listed)


async def test_a_large_file_is_not_a_resource(server: ServerConnection) -> None:
    await server.run("open('big', 'wb').truncate((1 << 20) + 1)", "s")
    with pytest.raises(MCPError, match="at most 1,048,576"):
        await server.client.read_resource("workspace://s/big")


async def test_a_session_of_somebody_else_is_not_found(tmp_path: Path) -> None:
    settings = write_settings(tmp_path)
    async with connect_server(settings) as server:
        await server.run(WRITE, "s")
        mine = (await server.client.list_resources()).resources
    async with open_journal(tmp_path / "data") as journal:
        await journal.create_session("s_other", "theirs", "somebody else")
    async with connect_server(settings) as server:
        for handle in ("s_other", "theirs"):
            with pytest.raises(MCPError, match="There is no session"):
                await server.client.read_resource(f"workspace://{handle}/a")
        listed = (await server.client.list_resources()).resources
        assert [each.uri for each in listed] == [each.uri for each in mine]


# exports ------------------------------------------------------------------------------------------


async def test_an_export_names_the_path_and_overwrites_nothing(
    server: ServerConnection, tmp_path: Path
) -> None:
    folder = tmp_path / "exports"
    await server.run(WRITE, "s")
    answer = await server.run("export('a b.txt')", "s")
    assert answer.value == str(folder / "a b.txt")
    assert str(folder / "a b.txt") in answer.calls[0]["call"]
    again = await server.run("export('x.bin', 'a b.txt')", "s")
    assert again.value == str(folder / "a b (2).txt")
    assert (folder / "a b.txt").read_text() == "text"
    assert (folder / "a b (2).txt").read_bytes() == b"\0\xff"
    assert [oct(each.stat().st_mode & 0o777) for each in folder.iterdir()] == ["0o600"] * 2


async def test_a_large_file_arrives_whole(server: ServerConnection, tmp_path: Path) -> None:
    code = "data = bytes(range(256)) * 40_000\nopen('big', 'wb').write(data)\nexport('big')"
    assert (await server.run(code, "s")).value == str(tmp_path / "exports" / "big")
    assert (tmp_path / "exports" / "big").read_bytes() == bytes(range(256)) * 40_000
    assert len(list((tmp_path / "exports").iterdir())) == 1  # no draft is left


async def test_a_replay_writes_nothing_and_a_plan_only_when_it_is_committed(
    server: ServerConnection, tmp_path: Path
) -> None:
    await server.run(WRITE, "s")
    planned = await server.run("export('a b.txt')", "s", dry_run=True)
    assert planned.status == "waiting"
    assert not (tmp_path / "exports").exists()
    answers = {"run": planned.run, "answers": {"*": "allow"}}
    committed = await server.client.call_tool("run_code", answers)
    assert committed.structured_content is not None
    assert committed.structured_content["value"] == str(tmp_path / "exports" / "a b.txt")
    (tmp_path / "exports" / "a b.txt").write_text("changed by the user")
    again = await server.replay("rerun", "s", step=2)
    assert "The same as recorded" in again.text
    assert len(list((tmp_path / "exports").iterdir())) == 1


@pytest.mark.parametrize(
    "name", ["../x", "/x", ".x", "", "a/b", "x" * 201, "a\0b", "a\nb", "a\x1b[2Jb"]
)
async def test_a_name_that_is_no_plain_name_is_refused(
    server: ServerConnection, tmp_path: Path, name: str
) -> None:
    answer = await server.run(f"open('a', 'w').close()\nexport('a', {name!r})", "s")
    assert answer.status == "error"
    assert "not a name for an exported file" in answer.text
    assert not (tmp_path / "exports").exists()


async def test_an_archive_made_again_with_other_dates_does_not_differ(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"backend": "local", "pool_size": 0})
    code = """
import os, zipfile
open('a', 'w').write('x')
os.utime('a', (10**9, 10**9 + 2 * os.getpid()))  # another time in each interpreter
with zipfile.ZipFile('a.zip', 'w') as archive:
    archive.write('a')
path = export('a.zip')
path"""
    async with connect_server(settings) as server:
        first = await server.run(code, "s")
        again = await server.replay("rerun", "s", run=first.run)
        assert again.value == first.value, again.text
    async with connect_server(settings) as server:
        assert await server.evaluate("path", "s") == first.value
    assert len(list((tmp_path / "data" / "exports").iterdir())) == 1


async def test_the_same_content_is_written_once(server: ServerConnection, tmp_path: Path) -> None:
    code = "open('a', 'w').write('x')\n[export('a'), export('a')]"
    assert (await server.run(code, "s")).value == [str(tmp_path / "exports" / "a")] * 2


async def test_an_empty_file_can_be_exported(server: ServerConnection, tmp_path: Path) -> None:
    await server.run("open('empty', 'w').close()\nexport('empty')", "s")
    assert (tmp_path / "exports" / "empty").read_bytes() == b""


@pytest.mark.parametrize("verdict", ["deny", "ask"])
async def test_the_policy_rules_exports(tmp_path: Path, verdict: str) -> None:
    settings = write_settings(tmp_path, policy={"tools": {"files.export": verdict}})

    async def refuse(context: Any, params: Any) -> ElicitResult:
        assert "files.export" in params.message
        return ElicitResult(action="decline")

    async with connect_server(settings, mode="legacy", elicitation_callback=refuse) as server:
        await server.run(WRITE, "s")
        code = "try: export('x.bin')\nexcept tools.ToolDeniedError: said = 'denied'\nsaid"
        assert await server.evaluate(code, "s") == "denied"
    assert not (tmp_path / "data" / "exports").exists()


async def test_a_rewind_and_a_fork_export_nothing_again(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"checkpoints": 0})  # so that steps run again
    async with connect_server(settings) as server:
        await server.run(WRITE, "s")
        path = await server.evaluate("where = export('x.bin')\nwhere", "s")
        os.unlink(path)
        await server.run("later = 1", "s")
        await server.replay("rewind", "s", step=2)
        assert await server.evaluate("where", "s") == path
        await server.replay("fork", "s", step=2, name="branch")
        assert await server.evaluate("where", "branch") == path
    assert os.listdir(os.path.dirname(path)) == []


FORGED = """
from mcpruntime_sandbox.sandboxed.library import tools
def call(target, data=b'', **arguments):
    try:
        return tools.host.call(target, arguments, data)
    except tools.HostError as exc:
        return str(exc)
"""


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ("call('uploads.piece', bytes(4 * 1024 * 1024 + 1))", "at most 4,194,304 bytes"),
        ("call('files.export', name='x', pieces=['0' * 64])", "has not sent the piece"),
        ("call('files.export', name='x', pieces=['../../x'])", "has not sent the piece"),
        (
            "call('files.export', name='x', pieces=[call('uploads.piece', b'x')] * 2)",
            "has not sent the piece",
        ),
        ("call('files.export', name='x', pieces=[1])", "named by its digest"),
        ("call('files.export', name=1, pieces=[])", "a name and pieces"),
        ("[call('uploads.piece', bytes(4194304)) for _ in range(65)][-1]", "A run can send"),
    ],
)
async def test_a_forged_call_leaves_no_file(
    server: ServerConnection, tmp_path: Path, call: str, wrong: str
) -> None:
    said = await server.evaluate(f"{FORGED}\n{call}", "s")
    assert wrong in str(said)
    assert not (tmp_path / "exports").exists() or not list((tmp_path / "exports").iterdir())


async def test_the_journal_knows_an_export_by_name_size_and_path(
    server: ServerConnection, tmp_path: Path
) -> None:
    await server.run(WRITE, "s")
    live = await server.run("export('x.bin')", "s")
    [line] = live.calls
    assert line["call"] == f"files.export(name='x.bin', size=2) = {tmp_path}/exports/x.bin"
    shown = await server.replay("show", run=live.run)
    assert [each["call"] for each in shown.calls] == [line["call"]]
    again = await server.replay("rerun", "s", step=2)
    assert [each["call"] for each in again.calls] == [line["call"]]
    shown = await server.replay("show", run=again.run)
    assert [each["call"] for each in shown.calls] == [line["call"]]
    moved = await server.replay("rewind", "s", step=1)
    assert line["call"] in moved.text


async def test_half_written_files_of_killed_servers_are_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "exports"
    folder.mkdir()
    names = {
        "old": f"{DRAFT_PREFIX}{'0' * 16}",
        "young": f"{DRAFT_PREFIX}{'1' * 16}",
        "other": f"{DRAFT_PREFIX}notes",
        "link": f"{DRAFT_PREFIX}{'2' * 16}",
    }
    for name in ("old", "young", "other"):
        (folder / names[name]).write_text("half")
    (folder / names["link"]).symlink_to(folder / names["other"])
    for name in ("old", "other", "link"):
        os.utime(folder / names[name], (1, 1), follow_symlinks=False)
    settings = write_settings(
        tmp_path, server={"export_dir": str(folder)}, sandbox={"backend": "local"}
    )
    async with connect_server(settings):
        await until(lambda: not (folder / names["old"]).exists())
    assert set(os.listdir(folder)) == {names["young"], names["other"], names["link"]}


async def test_a_run_that_another_server_continues_has_what_is_left_of_its_budget(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "go"
    code = f"""
import os, time
open('half', 'wb').write(os.urandom(600_000))
export('half')
while not os.path.exists({str(gate)!r}): time.sleep(0.01)
open('half', 'wb').write(os.urandom(600_000))
export('half')"""
    settings = write_settings(tmp_path, sandbox={"backend": "local", "workspace_mb": 1})
    exports = tmp_path / "data" / "exports"
    async with start_ready_server(settings) as server:
        first = await server.call_run_code({"code": code, "session": "s", "background": True}, {})
        await until(lambda: exports.exists() and os.listdir(exports) == ["half"])
        server.kill()
    gate.touch()
    async with connect_server(settings) as connection:
        answer = await attach(connection.client, first["run"])
        assert answer.status == "error"
        assert "A run can send 1,048,576 bytes" in answer.error["message"]
        assert (await connection.run("export('half')", "s")).status == "ok"  # a run of its own


async def test_a_link_in_the_folder_is_not_followed(
    server: ServerConnection, tmp_path: Path
) -> None:
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "a").symlink_to(tmp_path / "outside")
    answer = await server.run("open('a', 'w').write('x')\nexport('a')", "s")
    assert answer.value == str(tmp_path / "exports" / "a (2)")
    assert not (tmp_path / "outside").exists()
