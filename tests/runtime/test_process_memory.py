"""Memory that is free returns to the system when work ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.runtime import process_memory
from mcpruntime_server.runtime.process_memory import find_c_library, return_free_memory

SOON_S = 20.0
BLOCK_BYTES = 2_000  # small enough to lie between others
BLOCKS = 40_000
KEPT_EVERY = 100  # so that no run of free blocks reaches the end of the heap

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(find_c_library(), "malloc_trim"),
    reason="the C library returns memory in its own way",
)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_free_memory_between_used_blocks_returns_once_nothing_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_memory, "INTERVAL_S", 0.01)
    is_quiet = False
    blocks = [bytes(BLOCK_BYTES) for _ in range(BLOCKS)]
    kept = blocks[::KEPT_EVERY]
    before = resident_bytes()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(return_free_memory, lambda: is_quiet)
        blocks.clear()
        is_quiet = True
        with anyio.fail_after(SOON_S):
            enough = before - BLOCKS * BLOCK_BYTES / 2
            while resident_bytes() > enough:  # noqa: ASYNC110 - nobody announces it
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert len(kept) == BLOCKS / KEPT_EVERY
