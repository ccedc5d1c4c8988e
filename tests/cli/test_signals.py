"""How a server runs until a signal."""

from __future__ import annotations

import sys

import anyio

from mcpruntime_server.cli.signals import serve_until_signal
from mcpruntime_server.config import Config


def test_threads_that_compute_let_the_event_loop_of_a_server_work() -> None:
    intervals: list[float] = []

    async def serve(_: Config, __: anyio.Event) -> None:
        intervals.append(sys.getswitchinterval())

    usual = sys.getswitchinterval()
    try:
        serve_until_signal(serve, Config())
    finally:
        sys.setswitchinterval(usual)
    assert intervals[0] <= usual / 5
