"""The room alone: providers over an index in a folder of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.config import ProviderSettings
from mcpruntime_server.context.resources import Access
from mcpruntime_server.context.service import Providers, open_providers

SOON = 60.0  # seconds; only a test that fails waits so long
Opened = Callable[..., Any]


def no_server(name: str) -> Access:
    raise AssertionError(f"no test here has a server {name}")


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Return what opens providers, given by their settings."""

    @asynccontextmanager
    async def open_them(access: Callable[[str], Access] = no_server, **tables: Any) -> AsyncIterator[Providers]:
        settings = {name: ProviderSettings.model_validate(table) for name, table in tables.items()}
        with anyio.fail_after(SOON):
            async with open_providers(settings, tmp_path / "data", access) as providers:
                yield providers

    return open_them


async def looked(providers: Providers) -> Providers:
    """Have everything looked at anew, whenever that was done before, and wait for it."""
    for held in providers._held.values():
        held.due = float("-inf")
    await providers.examine(SOON)
    return providers


async def texts(providers: Providers, query: str, **more: Any) -> list[str]:
    """Return the texts that are found once everything is indexed."""
    await looked(providers)
    return [each["text"] for each in (await providers.search(query, **more))["passages"]]
