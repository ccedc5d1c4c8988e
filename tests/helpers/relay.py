"""A relay between clients and a server on this machine, whose line can be cut and mended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketAttribute, SocketStream


class Relay:
    """Passes on what clients and a server send, unless its line is cut."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._is_cut = False
        self._cut = anyio.Event()

    def cut(self) -> None:
        """End all connections, and those that come before the line is mended."""
        self._is_cut = True
        self._cut.set()
        self._cut = anyio.Event()

    def mend(self) -> None:
        """Pass on new connections again."""
        self._is_cut = False

    async def handle(self, client: SocketStream) -> None:
        """Pass on what one client and the server send, until one of them or the line ends."""
        cut = self._cut
        async with client:
            if self._is_cut:
                return
            async with (
                await anyio.connect_tcp("127.0.0.1", self._target_port) as server,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(copy_bytes, client, server, tasks.cancel_scope)
                tasks.start_soon(copy_bytes, server, client, tasks.cancel_scope)
                await cut.wait()
                tasks.cancel_scope.cancel()


async def copy_bytes(
    source: SocketStream, target: SocketStream, connection: anyio.CancelScope
) -> None:
    """Pass on what one side sends; the connection ends with it."""
    try:
        async for data in source:
            await target.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass  # the other side has left
    connection.cancel()


@asynccontextmanager
async def open_relay(target_port: int) -> AsyncIterator[Relay]:
    """Listen on a free port, and relay to a port of this machine."""
    relay = Relay(target_port)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        relay.port = listener.extra(SocketAttribute.local_port)
        tasks.start_soon(listener.serve, relay.handle)
        yield relay
        tasks.cancel_scope.cancel()
