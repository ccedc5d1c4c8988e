"""The event loop of a server works on a few descriptors at a time, in turns."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator

import pytest

from mcpruntime_server.app.event_loop import MAX_READY, FairSelector, create_event_loop

COUNT = 3 * MAX_READY + 5


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    opened = [socket.socketpair() for _ in range(COUNT)]
    yield opened
    for pair in opened:
        for each in pair:
            each.close()


def test_all_have_their_turn_though_some_are_always_ready(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    with FairSelector() as selector:
        for ours, theirs in pairs:
            selector.register(ours, selectors.EVENT_READ)
            theirs.send(b"x")  # which nobody reads
        found: list[int] = []
        for _ in range(4):
            ready = selector.select(0)
            assert len(ready) == MAX_READY
            found += [key.fd for key, _ in ready]
        assert set(found) == {ours.fileno() for ours, _ in pairs}
        assert max(map(found.count, found)) <= 2


def test_few_are_reported_at_once(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    with FairSelector() as selector:
        for ours, theirs in pairs[:MAX_READY]:
            selector.register(ours, selectors.EVENT_READ)
            theirs.send(b"x")
        assert len(selector.select(0)) == MAX_READY
        assert len(selector.select(0)) == MAX_READY


def test_the_loop_runs() -> None:
    loop = create_event_loop()

    async def answer() -> int:
        return 1

    try:
        assert loop.run_until_complete(answer()) == 1
    finally:
        loop.close()
