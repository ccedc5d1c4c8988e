"""The resources of upstreams are listed within bounds and read as text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.tools.resource_listing import (
    ResourceList,
    list_resources,
    read_text_resource,
    upstream_digest,
)
from mcpruntime_server.capabilities.tools.upstream import Upstream, open_upstreams
from mcpruntime_server.errors import CallFailed
from tests.upstreams import own_server

SOON = 60.0  # seconds; only a test that fails waits so long


@asynccontextmanager
async def notes(folder: Path, mode: str, **more: Any) -> AsyncIterator[Upstream]:
    async with open_upstreams(
        {"up": own_server("notes", mode, **more)}, folder, folder / "logs"
    ) as upstreams:
        with anyio.fail_after(SOON):
            yield upstreams["up"]


async def test_all_pages_are_listed_and_texts_read(tmp_path: Path) -> None:
    async with notes(tmp_path, "fine") as upstream:
        listed = {each.uri: each for each in (await list_resources(upstream)).resources}
        assert len(listed) == 6
        assert listed["notes://a/travel%20rules.md"].mime_type == "text/markdown"
        assert listed["notes://count"].version
        assert not listed["notes://logo"].version
        text = await read_text_resource(upstream, "notes://a/travel%20rules.md")
        assert text is not None
        assert text.startswith("# Travel")
        assert await read_text_resource(upstream, "notes://logo") is None
        with pytest.raises(CallFailed, match="No such thing"):
            await read_text_resource(upstream, "notes://gone")


async def test_a_credential_of_the_upstream_does_not_come_back(tmp_path: Path) -> None:
    async with notes(tmp_path, "fine", env={"API_TOKEN": "hunter2hunter2"}) as upstream:
        assert await read_text_resource(upstream, "notes://secret?q=1#x") == "the token is ***"


async def test_a_list_without_end_has_one_here(tmp_path: Path) -> None:
    async with notes(tmp_path, "endless") as upstream:
        listed = await list_resources(upstream)
    assert len(listed.resources) == 10_000
    assert listed.note == (
        "The list of resources of up is cut after 10,000: it has more than 10,000. "
        "`max_resources` under [mcpServers.up] raises that."
    )


async def test_the_settings_bound_a_list(tmp_path: Path) -> None:
    async with notes(tmp_path, "endless", max_resources=150) as upstream:
        listed = await list_resources(upstream)
    assert len(listed.resources) == 150
    async with notes(tmp_path, "endless", max_pages=3) as upstream:
        listed = await list_resources(upstream)
    assert len(listed.resources) == 300
    assert "it has more than 3 pages. `max_pages` under" in listed.note


async def test_an_upstream_without_resources_has_none(tmp_path: Path) -> None:
    async with notes(tmp_path, "empty") as upstream:
        assert await list_resources(upstream) == ResourceList([], "")


def test_another_server_under_the_same_name_is_another(tmp_path: Path) -> None:
    one, other = (
        Upstream("up", own_server("notes", mode), tmp_path, tmp_path) for mode in ("fine", "empty")
    )
    assert upstream_digest(one) != upstream_digest(other)
