"""One server for the tests of a module, with a session that no test may affect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.upstreams import own_server_entry

from ..helpers.server_connection import ServerConnection, connect_server, write_settings


def upstream_entry(script: str, *arguments: str, **more: Any) -> dict[str, Any]:
    """Return one of our own upstream servers as an entry of a settings file."""
    return own_server_entry(script, *arguments, **more)


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server with Docker sandboxes and several upstreams, some of them broken."""
    upstreams = {
        "lively": upstream_entry("lively"),
        "slow": upstream_entry("lively", timeout_s=0.5),
        "hostile": upstream_entry("hostile"),
        "missing": {"command": "/nowhere/to/be/found"},
        **{
            mode: upstream_entry("raw", mode, timeout_s=3.0)
            for mode in ("garbage", "noisy", "silent", "dies", "shapeless")
        },
    }
    settings = write_settings(tmp_path_factory.mktemp("shared"), mcpServers=upstreams)
    async with connect_server(settings) as connection:
        await connection.run("n = 0", session="witness")
        yield connection


@pytest.fixture
async def server(
    shared: ServerConnection, request: pytest.FixtureRequest
) -> AsyncIterator[ServerConnection]:
    """The module's server; afterwards the session `witness` must be unchanged and working."""
    before = await shared.evaluate("n += 1; open('kept', 'w').write(str(n)); n", session="witness")
    yield shared
    code = "n -= 1\n[n + 1, open('kept').read(), n]"
    n, kept, _ = await shared.evaluate("[n, open('kept').read(), n]", session="witness")
    assert (n, kept) == (before, str(before)), code
