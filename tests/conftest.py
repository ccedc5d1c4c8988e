"""Fixtures that every test may use."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None)  # the machine may be busy with something else
settings.load_profile("steady")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The SDK and the server run on asyncio."""
    return "asyncio"
