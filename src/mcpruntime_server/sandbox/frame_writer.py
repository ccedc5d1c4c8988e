"""Writes frames to a sandbox without waiting, and says when too much of it has not been read.

A frame is written at once as far as it fits; only the rest is left to a task, because a task switch
costs more than the write. The supervisor reads at all times, also while its worker does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import anyio

from ..errors import SandboxFailed

MAX_UNREAD_BYTES = 8 * 1024 * 1024  # that a sandbox has not read: then it gets no more answers


class ByteSink(Protocol):
    """What frames are written to: a `SandboxChannel`, as far as it sends."""

    def send_nowait(self, data: bytes) -> int:
        """Write as much of `data` as possible without waiting; return the number of bytes."""
        ...

    async def send(self, data: bytes | memoryview) -> None:
        """Write all of `data`; raises `SandboxFailed` if the reader is gone."""
        ...


class FrameWriter:
    """Writes frames to a channel: at once as far as they fit, the rest in `write_loop`."""

    def __init__(self, channel: ByteSink, on_written: Callable[[], None]) -> None:
        self.unread_bytes = 0  # that the sandbox has not taken yet
        self._channel = channel
        self._on_written = on_written
        self._queue: list[memoryview] = []
        self._has_queued = anyio.Event()
        self._has_written = anyio.Event()
        self._is_idle = True  # nothing is being written, so that a frame does not overtake another

    def write(self, data: bytes) -> None:
        """Write `data`, or queue what does not fit; never waits."""
        rest = memoryview(data)
        if self._is_idle:
            rest = rest[self._channel.send_nowait(data) :]
        if rest:
            self.unread_bytes += len(rest)
            self._queue.append(rest)
            self._is_idle = False
            self._has_queued.set()

    async def write_loop(self) -> None:
        """Write what is queued, until the channel is gone."""
        while True:
            await self._has_queued.wait()
            self._has_queued = anyio.Event()
            while self._queue:
                data = self._queue.pop(0)
                try:
                    await self._channel.send(data)
                except SandboxFailed:
                    return  # the reader finds out why
                self.unread_bytes -= len(data)
                del data  # it would stay until there is another frame
                self._has_written.set()
                self._has_written = anyio.Event()
                self._on_written()
            self._is_idle = True

    @property
    def has_room(self) -> bool:
        """Whether the sandbox may get more answers."""
        return self.unread_bytes <= MAX_UNREAD_BYTES

    async def wait_for_room(self) -> None:
        """Wait until the sandbox has read so much that it may get more answers."""
        while not self.has_room:
            await self._has_written.wait()
