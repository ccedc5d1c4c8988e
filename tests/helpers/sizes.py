"""How large random tests are: short by default, long with LONG_TESTS=1 (`make test-all`)."""

from __future__ import annotations

import os

IS_LONG = os.environ.get("LONG_TESTS", "0") not in ("", "0")


def choose_size(name: str, *, short: int, long: int) -> int:
    """Return how often a test repeats something; the environment variable `name` overrides it."""
    return int(os.environ.get(name, long if IS_LONG else short))
