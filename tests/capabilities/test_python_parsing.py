"""Python is parsed in several threads at once, whatever garbage is collected meanwhile."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mcpruntime_server.capabilities.python_parsing import parse_expression, parse_module

FUNCTION = "def f{}(a: int = 1, b: 'x' = [1, 2, {{}}]) -> dict[str, list[int]]: return a + b * c"
SOURCE = "\n".join(map(FUNCTION.format, range(50)))
THREADS = 4


class SlowGarbage:
    """Garbage whose finalizer lets other threads work while a tree is built."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        for _ in range(50):
            pass


@pytest.fixture
def many_collections() -> Iterator[None]:
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(20)
    sys.setswitchinterval(1e-5)
    yield
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def parse_beside_garbage(_: int) -> int:
    for _ in range(30):
        SlowGarbage()
    return len(parse_module(SOURCE).body)


@pytest.mark.usefixtures("many_collections")
def test_threads_that_parse_at_once_do_not_disturb_each_other() -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        assert set(threads.map(parse_beside_garbage, range(20 * THREADS))) == {50}


def test_what_is_no_python_is_refused_at_once() -> None:
    for source in ("(", "x = 1"):
        with pytest.raises(SyntaxError):
            parse_expression(source)
