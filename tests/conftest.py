"""Fixtures for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from .helpers.sizes import choose_size

settings.register_profile(
    "tests",
    deadline=None,  # other processes may keep the machine busy
    max_examples=choose_size("EXAMPLES", short=30, long=300),
)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def anyio_backend() -> str:
    """The SDK and the server run on asyncio.

    Tests without `async` use this as well, for they may be the first to need an async fixture.
    """
    return "asyncio"


@pytest.fixture
def default_interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt; a background job starts with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
