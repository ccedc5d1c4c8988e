"""A long list of tools is described in a process of its own, like a short one in a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mcp import types

from mcpruntime_server.capabilities.tools.listed_tools import list_tool
from mcpruntime_server.capabilities.tools.server_description import (
    LONG_LIST_BYTES,
    MAX_REPLY_BYTES,
    DescriptionProcess,
    ListedServer,
    describe_server,
    encode_shapes,
    render_module,
)
from mcpruntime_server.capabilities.tools.shim_store import ShimStore

SHAPE = {"type": ["object"], "properties": {"found": {"type": ["integer"]}}, "required": ["found"]}
RECORD = {"type": "object", "properties": {f"field{n}": {"type": "string"} for n in range(40)}}


def make_tool(name: str, **more: object) -> types.Tool:
    properties = {"query": {"type": "string", "description": "words"}, "record": RECORD}
    schema = {"type": "object", "properties": properties, "required": ["query"]}
    return types.Tool.model_validate({"name": name, "inputSchema": schema, **more}, by_name=False)


def server_of(*tools: types.Tool) -> ListedServer:
    listed = list(map(list_tool, tools))
    shapes = encode_shapes(listed, {"look": SHAPE})
    return ListedServer("shop", "my shop", "shop@ann", listed, shapes)


@pytest.fixture
async def process() -> AsyncIterator[DescriptionProcess]:
    process = DescriptionProcess()
    yield process
    await process.close()


async def test_a_process_describes_what_a_thread_describes(
    process: DescriptionProcess, tmp_path: Path
) -> None:
    hints = {"readOnlyHint": True, "openWorldHint": False}
    server = server_of(
        make_tool("look", description="Look it up. It finds \u20ac."),
        make_tool("a b", annotations=hints, outputSchema=RECORD),
        make_tool("a-b", title="\n"),
    )
    described = await process.describe(server)
    assert described == describe_server(server)
    assert [tool.name for tool in described.tools] == ["look", "a_b", "a_b_2"]
    assert described.problems
    rendered = await process.render(server, tmp_path / "one")
    assert rendered == render_module(server, ShimStore(tmp_path / "other"))
    source = rendered.decode()["source"]
    assert 'Returns (observed, not promised): {"found": int}' in source
    for folder in ("one", "other"):
        assert (tmp_path / folder / "shop@ann.py").read_text() == source


async def test_a_server_without_tools_is_described(
    process: DescriptionProcess, tmp_path: Path
) -> None:
    assert not (await process.describe(server_of())).tools
    assert b"__all__ = []" in (await process.render(server_of(), tmp_path)).data


def test_a_list_is_long_by_its_text_and_by_what_was_observed() -> None:
    assert not server_of(make_tool("look")).is_long
    assert server_of(make_tool("look", description="d" * LONG_LIST_BYTES)).is_long
    shape = {"type": ["object"], "properties": {"p" * LONG_LIST_BYTES: {"type": ["string"]}}}
    listed = [list_tool(make_tool("t"))]
    assert ListedServer("a", "a", "a", listed, encode_shapes(listed, {"t": shape})).is_long


async def test_a_module_that_is_too_long_is_an_error(
    process: DescriptionProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "mcpruntime_server.capabilities.tools.server_description"
    monkeypatch.setattr(f"{module}.MAX_REPLY_BYTES", MAX_REPLY_BYTES // 100_000)
    with pytest.raises(ValueError, match="has ended"):
        await process.render(server_of(make_tool("look")), tmp_path)
