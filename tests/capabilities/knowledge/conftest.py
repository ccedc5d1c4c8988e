"""The knowledge service alone, with an index in a folder of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.knowledge.resource_provider import ResourceAccess
from mcpruntime_server.capabilities.knowledge.service import KnowledgeService, open_knowledge
from mcpruntime_server.config import KnowledgeSettings

TEST_TIMEOUT_S = 60.0  # only a failing test waits so long
OpenProviders = Callable[..., Any]


def refuse_access(name: str) -> ResourceAccess:
    raise AssertionError(f"no test here has a server {name}")


@pytest.fixture
def opened(tmp_path: Path) -> OpenProviders:
    """Return a function that opens the service for provider settings."""

    @asynccontextmanager
    async def open_them(
        access: Callable[[str], ResourceAccess] = refuse_access, **tables: Any
    ) -> AsyncIterator[KnowledgeService]:
        settings = {name: KnowledgeSettings.from_mapping(table) for name, table in tables.items()}
        with anyio.fail_after(TEST_TIMEOUT_S):
            async with open_knowledge(settings, tmp_path / "data", access) as providers:
                yield providers

    return open_them


async def refresh_providers(providers: KnowledgeService) -> KnowledgeService:
    """Refresh the index now, even if it is fresh, and wait for it."""
    for held in providers._providers.values():
        held.refresh_due = float("-inf")
    await providers.check_providers(TEST_TIMEOUT_S)
    return providers


async def search_texts(providers: KnowledgeService, query: str, **more: Any) -> list[str]:
    """Return the texts that a search finds after everything is indexed."""
    await refresh_providers(providers)
    return [each["text"] for each in (await providers.search(query, **more))["passages"]]
