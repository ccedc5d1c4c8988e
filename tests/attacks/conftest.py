"""One server with an upstream for the attacks of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.upstreams import own_server_entry


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server with an upstream."""
    upstreams = {"lively": own_server_entry("lively")}
    settings = write_settings(tmp_path_factory.mktemp("server"), mcpServers=upstreams)
    async with connect_server(settings) as connection:
        yield connection
