"""A journal of one server, with one session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcpruntime_server.journal.store import Journal, open_journal


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with open_journal(tmp_path) as opened:
        await opened.create_session("s_1", "report", "me")
        yield opened


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Journal]:
    """Another journal, which is empty."""
    async with open_journal(tmp_path / "there") as opened:
        yield opened
