"""The stream to a sandbox over real sockets: what waits, what is cancelled, what is closed."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import anyio
import pytest
from anyio.abc import TaskStatus, UNIXSocketStream

from mcpruntime_server.errors import SandboxFailed
from mcpruntime_server.sandbox.stream import SandboxStream

MORE = bytes(8 * 1024 * 1024)  # than the buffers of a socket hold


@pytest.fixture
async def ends() -> AsyncIterator[tuple[SandboxStream, socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        async with SandboxStream(await UNIXSocketStream.from_socket(ours)) as stream:
            yield stream, theirs


def drain(end: socket.socket) -> int:
    read = 0
    while True:
        try:
            read += len(end.recv(65536))
        except BlockingIOError:
            return read


async def test_a_write_that_is_cancelled_when_it_could_continue_leaves_nothing_behind(
    ends: tuple[SandboxStream, socket.socket],
) -> None:
    stream, theirs = ends
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.send, MORE)
        await anyio.wait_all_tasks_blocked()
        drain(theirs)  # the loop learns of it in the very turn that this task goes on in
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint()
    drain(theirs)
    await stream.send(b"after")
    assert theirs.recv(10) == b"after"


async def test_all_of_a_long_write_arrives(ends: tuple[SandboxStream, socket.socket]) -> None:
    stream, theirs = ends
    read = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.send, MORE)
        with anyio.fail_after(30):
            while read < len(MORE):
                await anyio.wait_readable(theirs)
                read += drain(theirs)
    assert read == len(MORE)


async def test_closing_wakes_readers_and_writers(
    ends: tuple[SandboxStream, socket.socket],
) -> None:
    stream, _ = ends

    async def read(*, task_status: TaskStatus[None]) -> None:
        task_status.started()
        assert await stream.receive() == b""

    async def write(*, task_status: TaskStatus[None]) -> None:
        task_status.started()
        with pytest.raises(SandboxFailed):
            await stream.send(MORE)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            await tasks.start(read)
            await tasks.start(write)
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()
