"""Resources of real upstreams: found by server and address, or by an address that only one has."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.tools.input_resources import UpstreamResources, matches_template
from mcpruntime_server.capabilities.tools.upstream import Upstream, open_upstreams
from mcpruntime_server.errors import CallFailed, InvalidRequest
from tests.upstreams import own_server

TOKEN = "a-token-that-nobody-may-see"


@asynccontextmanager
async def opened(folder: Path, denied: str = "") -> AsyncIterator[UpstreamResources]:
    settings = {
        "left-shelf": own_server("shelves", "left", env={"SHELF_TOKEN": TOKEN}),
        "right": own_server("shelves", "right"),
        "lively": own_server("lively"),
    }
    async with open_upstreams(settings, folder, folder / "logs") as upstreams:
        named = {name.replace("-", "_"): upstream for name, upstream in upstreams.items()}

        async def find_upstreams() -> dict[str, Upstream]:
            return named

        with anyio.fail_after(60):
            yield UpstreamResources(find_upstreams, lambda name: name != denied)


async def test_resources_are_found_by_server_or_by_an_address_that_one_server_has(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as resources:
        assert await resources.read_resource("right:note://shared") == (
            "note://shared",
            b"of all, told by right",
        )
        for place in ("left_shelf:note://shared", "left-shelf:note://shared"):
            assert (await resources.read_resource(place))[1] == b"of all, told by left"
        assert (await resources.read_resource("note://right"))[
            1
        ] == "of right: ä\nno token".encode()
        assert (await resources.read_resource("right:pack://bytes"))[1] == bytes(range(256))
        assert (await resources.read_resource("right:page://3/of/x"))[1] == b"page 3 of x"
        with pytest.raises(InvalidRequest, match="2 servers have this resource") as found:
            await resources.read_resource("note://shared")
        assert "left_shelf:note://shared, right:note://shared" in found.value.remedy
        with pytest.raises(InvalidRequest, match=r"No server has this resource") as none:
            await resources.read_resource("other://x")
        assert "Servers: left_shelf, right, lively" in none.value.remedy
        with pytest.raises(CallFailed):
            await resources.read_resource("right:note://none")


async def test_credentials_do_not_come_back_and_what_is_denied_is_not_asked(tmp_path: Path) -> None:
    async with opened(tmp_path, denied="right") as resources:
        _, content = await resources.read_resource("note://left")
        assert TOKEN.encode() not in content
        assert b"***" in content
        with pytest.raises(InvalidRequest, match="forbid reading"):
            await resources.read_resource("right:note://right")
        with pytest.raises(InvalidRequest, match="No server has this resource"):
            await resources.read_resource("note://right")
        assert (await resources.read_resource("note://shared"))[1] == b"of all, told by left"


@pytest.mark.parametrize(
    ("template", "address", "matches"),
    [
        ("a://{x}/b", "a://1/b", True),
        ("a://{x}/b", "a:///c", False),
        ("a://{x}/b", "a://1/b/b", True),
        ("a://{x}/b", "a://1/c", False),
        ("a://{x}", "a://", False),
        ("a://{x}{y}", "a://1", False),
        ("a://{x}{y}", "a://12", True),
        ("a://b", "a://b", True),
        ("a://b", "a://bc", False),
        ("a://{+path}.md{?line,column}", "a://x/y.md", True),
        ("a://{+path}.md{?line,column}", "a://x/y.md?line=3", True),
        ("a://{x}/{y}/z", "a://1/2/3/z", True),
        ("a://{x}", "a://1 2", False),
        ("{a}{b}{c}{d}{e}{f}{g}{h}x", "y" * 4000, False),
    ],
)
def test_an_address_matches_a_template(template: str, address: str, matches: bool) -> None:
    assert matches_template(template, address) is matches


@given(
    texts=st.lists(st.text("ab/", max_size=3), min_size=2, max_size=5),
    address=st.text("ab/", max_size=12),
)
def test_matching_is_that_of_a_regular_expression(texts: list[str], address: str) -> None:
    pattern = ".+".join(map(re.escape, texts))
    expected = re.fullmatch(pattern, address) is not None
    assert matches_template("{x}".join(texts), address) is expected
