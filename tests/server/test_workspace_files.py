"""Workspace files as resources, and copies of them for the user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mcp import MCPError
from mcp.types import BlobResourceContents, ResourceLink, TextResourceContents

from ..helpers.server_connection import ServerConnection, connect_server, write_settings

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


# exports ------------------------------------------------------------------------------------------


def exported_files(folder: Path) -> list[str]:
    """Return the names of the files that have been exported, without drafts."""
    return sorted(path.name for path in folder.glob("exports/[!.]*"))


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
    await server.run("export('a b.txt')", "s")
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
    assert exported_files(tmp_path) == []


FORGED = """
import hashlib, base64
from mcpruntime_sandbox.sandboxed.library import tools
def piece(**changes):
    data = b'content'
    fields = {'name': 'x', 'size': 7, 'sha256': hashlib.sha256(data).hexdigest(), 'offset': 0,
              'data': base64.b64encode(data).decode()}
    try:
        return tools.call_host('files.export', {**fields, **changes}, 'export')
    except tools.ToolError as exc:
        return str(exc)
"""


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ("sha256='0' * 64", "is incomplete"),
        ("size=10**12", "can be exported"),
        ("offset=-1", "not within the file"),
        ("offset=5", "not within the file"),
        ("data='???'", "is base64"),
        ("size=True", "a piece has"),
        ("data=None", "a piece has"),
    ],
)
async def test_a_forged_piece_leaves_no_file(
    server: ServerConnection, tmp_path: Path, changes: str, wrong: str
) -> None:
    said = await server.evaluate(f"{FORGED}\npiece({changes})", "s")
    assert wrong.lower() in str(said).lower()
    assert exported_files(tmp_path) == []


async def test_a_link_in_the_folder_is_not_followed(
    server: ServerConnection, tmp_path: Path
) -> None:
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "a").symlink_to(tmp_path / "outside")
    answer = await server.run("open('a', 'w').write('x')\nexport('a')", "s")
    assert answer.value == str(tmp_path / "exports" / "a (2)")
    assert not (tmp_path / "outside").exists()
