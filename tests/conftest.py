"""Fixtures for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)  # other processes may keep the machine busy
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The SDK and the server run on asyncio."""
    return "asyncio"


@pytest.fixture
def default_interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt; a background job starts with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
