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


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The SDK and the server run on asyncio.

    An async fixture that tests without `async` use asks for this: they may be the first to need it.
    """
    return "asyncio"


@pytest.fixture
def default_interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt; a background job starts with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
