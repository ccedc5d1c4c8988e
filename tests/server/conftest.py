"""One server for the tests of a module, and a session in it that must never notice what the others suffer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.upstreams import own

from .client import Connection, connect, write_settings


def entry(script: str, *arguments: str, **more: Any) -> dict[str, Any]:
    """Return one of our own upstream servers as an entry of a settings file."""
    return own(script, *arguments, **more).model_dump(mode="json", include={"command", "args", *more})


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Connection]:
    """A server with Docker sandboxes and several upstreams, of which some are not well."""
    upstreams = {
        "lively": entry("lively"),
        "slow": entry("lively", timeout_s=0.5),
        "hostile": entry("hostile"),
        "missing": {"command": "/nowhere/to/be/found"},
        **{mode: entry("raw", mode, timeout_s=3.0) for mode in ("garbage", "noisy", "silent", "dies", "shapeless")},
    }
    settings = write_settings(tmp_path_factory.mktemp("shared"), mcpServers=upstreams)
    async with connect(settings) as connection:
        await connection.run("n = 0", session="witness")
        yield connection


@pytest.fixture
async def server(shared: Connection, request: pytest.FixtureRequest) -> AsyncIterator[Connection]:
    """The module's server; afterwards another session has all that it had, and the server answers."""
    before = await shared.value("n += 1; open('kept', 'w').write(str(n)); n", session="witness")
    yield shared
    code = "n -= 1\n[n + 1, open('kept').read(), n]"
    n, kept, _ = await shared.value("[n, open('kept').read(), n]", session="witness")
    assert (n, kept) == (before, str(before)), code
