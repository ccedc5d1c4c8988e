"""Guides and documents of strangers become neither long answers nor long work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mcp.types as types
import pytest
from mcp import MCPError
from mcp.types import TextResourceContents

from tests.helpers.server_connection import ServerConnection, connect_server, write_settings

from .bystander import observe

MAX_ANSWER_CHARS = 60_000
ALIASES = "\n".join(
    [
        "a0: &a0 [x, x, x, x]",
        *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 16)),
    ]
)
FRONT_MATTER = {
    "aliases": f"description: d\n{ALIASES}",
    "merging": "description: d\nx: &x {a: 1}\n<<: *x",
    "nesting": f"description: d\nx: {'[' * 7_000}",
    "braces": f"description: d\nx: {'{a: ' * 3_000}",
    "binary": "description: !!binary 2AA=",
    "tags": "description: !!python/object/apply:os.system [id]",
    "documents": "description: d\n--- \n" * 100,
    "keys": "description: d\n" + "\n".join(f"k{n}: v" for n in range(1_500)),
    "a_long_key": f"description: d\n? {'k' * 12_000}\n: v",
    "a_long_description": f"description: {'word ' * 3_000}",
    "quotes": 'description: "' + "\\x41" * 3_900 + '"',
    "block": "description: |\n" + "  line\n" * 2_000,
}  # fmt: skip
TEXTS = {
    "a_long_text": "text\n" * 50_000,
    "a_long_line": "x" * 250_000,
    "strange_letters": "\u202e\U0001f600\x1b]0;title\x07" * 15_000,
    "many_fences": "---\n" * 60_000,
}


def write_guide(folder: Path, name: str, front_matter: str, text: str) -> None:
    folder.mkdir(parents=True)
    head = f"---\nname: {name.replace('_', '-')}\n{front_matter}\n---\n"
    (folder / "SKILL.md").write_text(head + text)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server with hostile guides, and a folder of long documents."""
    folder = tmp_path_factory.mktemp("guides")
    for name, front_matter in FRONT_MATTER.items():
        write_guide(folder / "guides" / name, name, front_matter, "text")
    for name, text in TEXTS.items():
        write_guide(folder / "guides" / name, name, "description: d", text)
    write_guide(folder / "guides" / "files", "files", "description: d", "text")
    (folder / "guides" / "files" / "large.txt").write_text("x" * 5_000_000)
    write_guide(folder / "guides" / "many", "many", "description: d", "text")
    for number in range(600):
        (folder / "guides" / "many" / f"{number}.txt").write_text("x")
    (folder / "documents").mkdir()
    (folder / "documents" / "long.md").write_text("a line of a document\n" * 40_000)
    settings = write_settings(
        folder,
        skills={"folders": [str(folder / "guides")]},
        knowledge={"documents": {"path": str(folder / "documents")}},
    )
    async with connect_server(settings) as connection:
        yield connection


async def show_skill(server: ServerConnection, name: str) -> str:
    result = await server.client.call_tool("list_skills", {"name": name})
    return result.model_dump_json()


async def read(server: ServerConnection, uri: str) -> str:
    [contents] = (await server.client.read_resource(uri)).contents
    assert isinstance(contents, TextResourceContents)
    return contents.text


@pytest.mark.parametrize("name", [*FRONT_MATTER, *TEXTS, "many", "files"])
async def test_a_guide_is_shown_within_bounds(server: ServerConnection, name: str) -> None:
    async with observe(server):
        assert len(await show_skill(server, name)) < 3 * MAX_ANSWER_CHARS
        found = await server.client.call_tool("list_skills", {"query": name})
        assert len(found.model_dump_json()) < 5_000


async def test_a_long_guide_says_how_to_read_the_rest(server: ServerConnection) -> None:
    shown = await show_skill(server, "a_long_text")
    assert "more characters; in run_code: print(skills.a_long_text.__doc__[20000:])" in shown
    answer = await server.run(
        "import skills\nlen(skills.a_long_text.__doc__[20000:])", "reader", timeout_s=60
    )
    assert int(answer.value) > 200_000


async def test_a_long_document_says_where_the_rest_is(server: ServerConnection) -> None:
    async with observe(server):
        text = await read(server, "knowledge://documents/long.md")
        rest = "more characters: knowledge://documents/long.md#C20000-840000]"
        assert text.endswith(rest)
        assert len(text) < 20_200
        part = await read(server, "knowledge://documents/long.md#C20000-20020")
        assert part in "a line of a document\n" * 2


async def test_a_file_of_a_guide_is_whole_or_an_error(server: ServerConnection) -> None:
    async with observe(server):
        assert len(await read(server, "skill://a-long-text/SKILL.md")) > 250_000
        with pytest.raises(MCPError, match="5,000,000 bytes; a resource has"):
            await read(server, "skill://files/large.txt")


class Page(types.Result):
    skills: tuple[dict[str, Any], ...] = ()
    next_cursor: str | None = None


async def test_skills_are_listed_in_pages_of_bounded_length(server: ServerConnection) -> None:
    class Request(types.Request[dict[str, Any], str]):
        method: str
        params: dict[str, Any]

    found: list[str] = []
    cursor: str | None = ""
    async with observe(server):
        while cursor is not None:
            request = Request(method="skills/list", params={"cursor": cursor} if cursor else {})
            page = await server.client.session.send_request(request, Page)
            assert len(page.model_dump_json()) < 300_000
            found += [each["uri"] for each in page.skills]
            cursor = page.next_cursor
    assert "skill://a-long-text/SKILL.md" in found
    assert len(found) == len(set(found))
