"""A process that does the work which would hold the interpreter's lock, one request at a time.

A request and a reply are a head in JSON and a body of bytes (`process_frames`). The process starts
when it is needed, ends after a while without work (`framed_worker`), and is ended when a request
takes too long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import Process

from .process_frames import MAX_HEAD_BYTES, PREFIX, encode_frame
from .schema_checks import EXIT_TIMEOUT_S, VARIABLES

WRITE_BYTES = 128 * 1024  # written at once, before others have their turn

Data = bytes | bytearray | memoryview
ENDED_ERRORS = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class FramedProcess:
    """The process that runs `module`; `on_end` is called when what it knew is lost."""

    def __init__(
        self, module: str, timeout_s: float, on_end: Callable[[], None] = lambda: None
    ) -> None:
        self._module = module
        self._timeout_s = timeout_s  # for one request, the start of the process included
        self._on_end = on_end
        self._process: Process | None = None
        self._lock = anyio.Lock()

    async def ask(
        self, build_head: Callable[[], Any], body: Data, max_reply_bytes: int
    ) -> tuple[Any, memoryview]:
        """Return head and body of the reply; raises `ValueError` if there is none.

        `build_head` is called again if the process has ended before it got the request.
        """
        async with self._lock:
            was_running = True
            while was_running:  # one that had nothing to do may end at this moment
                was_running = self._process is not None
                try:
                    with anyio.fail_after(self._timeout_s):
                        process = await self._ensure_started()
                        await _send(process, encode_frame(build_head(), len(body)))
                        await _send(process, body)
                        return await _receive(process, max_reply_bytes)
                except TimeoutError:
                    await self.close()
                    raise ValueError(f"reading it takes more than {self._timeout_s:g} s") from None
                except ENDED_ERRORS:
                    await self.close()
                except BaseException:  # a late reply would be taken for that of the next request
                    await self.close()
                    raise
            raise ValueError("the process that reads it has ended")

    async def _ensure_started(self) -> Process:
        if self._process is None:
            command = [sys.executable, "-P", "-m", self._module]  # -P: import nothing from the cwd
            environ = {name: os.environ[name] for name in VARIABLES if name in os.environ}
            self._process = await anyio.open_process(
                command, env=environ, stderr=subprocess.DEVNULL
            )
        return self._process

    async def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        self._on_end()
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        with anyio.move_on_after(EXIT_TIMEOUT_S, shield=True):
            await process.aclose()


async def _send(process: Process, data: Data) -> None:
    assert process.stdin is not None
    with memoryview(data) as whole:
        for start in range(0, len(whole), WRITE_BYTES):
            await process.stdin.send(bytes(whole[start : start + WRITE_BYTES]))


async def _receive(process: Process, max_bytes: int) -> tuple[Any, memoryview]:
    """Return a reply with a body of at most `max_bytes`, which is not copied."""
    assert process.stdout is not None
    data = bytearray()

    async def fill(size: int) -> None:
        while len(data) < size:
            data.extend(await process.stdout.receive())  # type: ignore[union-attr]

    await fill(PREFIX.size)
    head_bytes, body_bytes = PREFIX.unpack(data[: PREFIX.size])
    if head_bytes > MAX_HEAD_BYTES or body_bytes > max_bytes:
        raise OSError("the reply is too long")
    start = PREFIX.size + head_bytes
    await fill(start + body_bytes)
    whole = memoryview(data)
    return json.loads(bytes(whole[PREFIX.size : start])), whole[start:]
