"""Attackers in processes of their own, so that they slow nobody in the process of the test.

This module has both sides of what is said over stdin and stdout. The attacker says that it is
connected, attacks when it is told to, says that it is done, and works as usual when it is told to.
It fails if an answer is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from itertools import count
from types import ModuleType
from typing import Any, Protocol, TypeVar

import anyio
from anyio import to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from ..helpers.child_processes import start_process
from ..helpers.http_service import HttpService
from ..helpers.server_connection import ServerConnection
from .bystander import observe

CONNECTED, ATTACK, DONE, WORK = "connected", "attack", "done", "work"
MAX_LINE_BYTES = 100
USERS = count()


class Worker(Protocol):
    """A client that can run code."""

    async def evaluate(self, code: str, session: str, /) -> Any:
        """Run code and return its value."""


Client = TypeVar("Client", bound=Worker)


async def run_attack(
    module: ModuleType, name: str, service: HttpService, bystander: ServerConnection
) -> None:
    """Let a new principal attack a service, and check what it costs the bystander."""
    token = service.create_token(f"mallory{next(USERS)}")
    command = [sys.executable, "-m", module.__name__, name, service.url, token]
    async with start_process(command, stderr=None) as attacker:
        assert attacker.stdin is not None
        assert attacker.stdout is not None
        lines = BufferedByteReceiveStream(attacker.stdout)
        assert await lines.receive_until(b"\n", MAX_LINE_BYTES) == CONNECTED.encode()
        async with observe(bystander):
            await attacker.stdin.send(f"{ATTACK}\n".encode())
            assert await lines.receive_until(b"\n", MAX_LINE_BYTES) == DONE.encode()
        await attacker.stdin.send(f"{WORK}\n".encode())
        assert await attacker.wait() == 0


def serve_attacks(
    attacks: Mapping[str, Callable[[Client], Awaitable[Any]]],
    connect: Callable[[str, str], AbstractAsyncContextManager[Client]],
) -> None:
    """Be the attacker: the arguments of the process are an attack, an address and a token."""
    name, url, token = sys.argv[1:]

    async def serve() -> None:
        async with connect(url, token) as attacker:
            print(CONNECTED, flush=True)
            assert await read_order() == ATTACK
            await attacks[name](attacker)
            print(DONE, flush=True)
            assert await read_order() == WORK
            assert await attacker.evaluate("1+1", "after") == 2

    anyio.run(serve)


async def read_order() -> str:
    """Return the next line of stdin."""
    line: str = await to_thread.run_sync(sys.stdin.readline)
    return line.rstrip("\n")
