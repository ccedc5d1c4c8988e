"""A server that starts again: what its upstreams offer is there before they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.cli.demo.token_count import count_tokens
from mcpruntime_server.server.tool_schemas import MAX_LIST_TOKENS

from ..helpers.server_connection import ServerConnection, connect_server, write_settings
from .conftest import upstream_entry

SLOW_SERVERS = ("billing", "calendar", "mail")
FIND = """
import tools
from tools.lively import echo
from tools.billing import grow
found = [tool.name for tool in tools.search("grow")]
"""


def write_local_settings(folder: Path, upstreams: dict[str, Any]) -> Path:
    return write_settings(folder, sandbox={"backend": "local"}, mcpServers=upstreams)


async def list_description(server: ServerConnection) -> tuple[str, int]:
    """Return the description of `run_code`, and the number of tokens of the whole list."""
    tools = (await server.client.list_tools()).tools
    listed = json.dumps([[tool.name, tool.description, tool.input_schema] for tool in tools])
    return tools[0].description or "", count_tokens(listed)


async def test_code_finds_imports_and_calls_while_slow_servers_are_starting(
    tmp_path: Path,
) -> None:
    gate = anyio.Path(tmp_path / "open")
    slow = {
        name: upstream_entry("raw", "gated", str(gate), str(tmp_path / name), timeout_s=300)
        for name in SLOW_SERVERS
    }
    quick = {name: upstream_entry(name) for name in ("lively", "hinted")}
    quick |= {"old": upstream_entry("raw", "fine"), "paced": upstream_entry("paced", "notes")}
    settings = write_local_settings(tmp_path, {**quick, **slow})
    await gate.touch()
    async with connect_server(settings) as server:
        await server.run("import tools; everything = tools.list()")
        assert len(await server.evaluate("sorted({t.server for t in everything})")) == 7
    await gate.unlink()
    async with connect_server(settings) as server:
        answer = await server.run(f"{FIND}[found, echo('a')]", session="s")
        assert answer.status == "ok", answer.text
        assert {f"{name}.grow" for name in (*SLOW_SERVERS, "old")} <= set(answer.value[0])
        assert answer.value[1] == "a"
        waiting = await server.run("grow()", session="s", wait_s=0.2)
        assert waiting.status == "running"
        assert await server.evaluate("import tools; tools.lively.echo('b')", session="t") == "b"
        await gate.touch()
        assert (await server.run("1", session="s")).status == "ok"
        shown = await server.replay("show", run=waiting.run, session="s")
        assert "ok" in shown.text


async def test_a_restored_session_has_the_module_that_it_imported(tmp_path: Path) -> None:
    settings = write_local_settings(tmp_path, {"lively": upstream_entry("lively")})
    async with connect_server(settings) as server:
        await server.evaluate("from tools.lively import echo\necho('a')", session="s")
    edit_stored_tools(tmp_path / "data", "echo", "renamed")
    async with connect_server(settings) as server:
        assert await server.evaluate("echo('b')", session="s") == "b"
        # The stored list was wrong, and the import gets the one of the upstream after a call.
        assert await server.evaluate("from tools.lively import echo\necho('c')", session="s") == "c"
        again = await server.replay("rerun", "s")
        assert "The same as recorded" in again.text


def edit_stored_tools(data_dir: Path, old: str, new: str) -> None:
    [entry] = (data_dir / "catalogues").iterdir()
    text = entry.read_text()
    assert f'"name":"{old}"' in text
    entry.write_text(text.replace(f'"name":"{old}"', f'"name":"{new}"'))


@pytest.mark.parametrize(("script", "is_shown"), [(("raw", "fine"), True), (("hostile",), False)])
async def test_few_functions_are_in_the_description_once_they_are_known(
    tmp_path: Path, script: tuple[str, ...], is_shown: bool
) -> None:
    settings = write_local_settings(tmp_path, {"old": upstream_entry(*script)})
    async with connect_server(settings) as server:
        before, tokens = await list_description(server)
        assert ("They declare" in before, tokens <= MAX_LIST_TOKENS) == (False, True)
        assert (await server.run("import tools.old")).status == "ok"
    async with connect_server(settings) as server:
        after, tokens = await list_description(server)
        assert tokens <= MAX_LIST_TOKENS
        assert ("They declare: old." in after) is is_shown
        assert after.startswith(before)
        assert (await list_description(server))[0] == after
