"""Processes that a test starts, and that end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import Process

EXIT_TIMEOUT_S = 20.0  # for a process that was asked to end, before it is killed


@asynccontextmanager
async def start_process(command: Sequence[str], **options: Any) -> AsyncIterator[Process]:
    """Start a process and end it afterwards, also if the test fails; takes what anyio takes.

    A process of anyio alone is waited for, and a server does not end by itself.
    """
    async with await anyio.open_process(command, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            with anyio.move_on_after(EXIT_TIMEOUT_S, shield=True):
                await process.wait()
            with suppress(ProcessLookupError):
                process.kill()
