"""When the pool starts sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from mcpruntime_server.runtime.sandbox_pool import SandboxPool
from tests.helpers.server_connection import TEST_TIMEOUT_S
from tests.sandbox.conftest import make_backend, make_setup


@asynccontextmanager
async def open_pool(folder: Path) -> AsyncIterator[SandboxPool]:
    """Yield a pool that keeps one sandbox, which is ready."""
    backend = make_backend("local", folder)
    async with anyio.create_task_group() as tasks:
        pool = SandboxPool(backend, make_setup(backend), 1, tasks)
        pool.fill()
        await wait_until_ready(pool)
        yield pool
        tasks.cancel_scope.cancel()


async def wait_until_ready(pool: SandboxPool) -> None:
    with anyio.fail_after(TEST_TIMEOUT_S):
        while not pool.count_sandboxes()["ready"]:  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_a_sandbox_that_is_acquired_is_replaced_a_little_later(tmp_path: Path) -> None:
    async with open_pool(tmp_path) as pool:
        await pool.acquire()
        assert pool.count_sandboxes() == {"starting": 0, "ready": 0, "in_use": 1}
        await wait_until_ready(pool)


async def test_a_sandbox_that_is_waited_for_starts_at_once(tmp_path: Path) -> None:
    async with open_pool(tmp_path) as pool, anyio.create_task_group() as tasks:
        await pool.acquire()
        tasks.start_soon(pool.acquire)
        await anyio.wait_all_tasks_blocked()
        # One is in use, one is waited for, and one is to be kept ready; some may have started.
        assert sum(pool.count_sandboxes().values()) == 3
