"""What an attack costs everybody else: latency, memory, and sandboxes that stay behind.

`observe` measures all three around an attack and checks them. The bounds on latency, and on memory
afterwards, are only checked where nothing else works on the machine: in `make attack`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import anyio
from anyio import to_thread

from mcpruntime_server.sandbox.docker_backend import DATA_FOLDER_LABEL, data_folder_digest
from mcpruntime_server.sandbox.docker_engine import DockerEngine

IS_MEASURED = os.environ.get("ATTACKS", "0") not in ("", "0")
MAX_P99_MS = 100.0
MAX_GROWTH_MB = 50.0
MAX_KEPT_MB = 30.0  # what a session keeps of its output, and allocators for later
SETTLE_S = 30.0  # for memory to fall back and for the engine to remove what was given up
BYSTANDER = "bystander"
PAUSE_S = 0.01


@dataclass
class Impact:
    """The milliseconds that each `1+1` of the bystander took, and the server's memory meanwhile."""

    latencies_ms: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    last_memory_mb: float = 0.0
    sandboxes_left: int = 0

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latencies."""
        ranked = sorted(self.latencies_ms)
        return ranked[math.ceil(len(ranked) * 0.99) - 1]

    @property
    def growth_mb(self) -> float:
        """By how much the server's memory grew at most."""
        return max(self.memory_mb) - self.memory_mb[0]

    @property
    def kept_mb(self) -> float:
        """By how much the server's memory was larger after the attack than before."""
        return max(0.0, self.last_memory_mb - self.memory_mb[0])

    @property
    def has_settled(self) -> bool:
        """Whether the memory fell back, where that is checked, and no sandbox stays behind."""
        fell_back = self.kept_mb <= MAX_KEPT_MB or not IS_MEASURED
        return fell_back and not self.sandboxes_left

    def check(self) -> None:
        """Assert that the bystander was served and that nothing stays of the attack."""
        assert self.growth_mb <= MAX_GROWTH_MB, f"the server grew by {self.growth_mb:.0f} MB"
        assert not self.sandboxes_left, f"{self.sandboxes_left} sandboxes are left"
        if IS_MEASURED:
            assert self.kept_mb <= MAX_KEPT_MB, f"the server kept {self.kept_mb:.0f} MB"
            assert self.p99_ms <= MAX_P99_MS, f"the bystander waited {self.p99_ms:.0f} ms"


class Connection(Protocol):
    """A client of the server that is attacked."""

    @property
    def data_dir(self) -> Path:
        """The data folder of the server."""

    @property
    def server_pids(self) -> list[int]:
        """The ids of its processes."""

    async def evaluate(self, code: str, session: str, /) -> Any:
        """Run code and return its value."""


impacts: dict[str, Impact] = {}  # by the id of the test


def resident_mb(server: Connection) -> float:
    """Return the resident memory of the server processes in MB."""
    pages = 0
    for pid in server.server_pids:
        with open(f"/proc/{pid}/statm") as file:
            pages += int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@cache
def docker_engine() -> DockerEngine:
    """Return the engine that the containers are counted on."""
    return DockerEngine()


def count_sandboxes_left(data_dir: Path) -> int:
    """Return how many containers of a data folder its server has given up, or have ended."""
    label = f"{DATA_FOLDER_LABEL}={data_folder_digest(data_dir)}"
    listed: list[dict[str, Any]] = docker_engine().call_api_blocking(
        lambda client: client.containers(all=True, filters={"label": label})
    )
    return sum(
        container["State"] == "exited"
        or not (data_dir / "inputs" / container["Names"][0].removeprefix("/")).exists()
        for container in listed
    )


@asynccontextmanager
async def observe(server: Connection) -> AsyncIterator[Impact]:
    """Let a bystander work during the block, and check what the block did to it."""
    impact = Impact()
    impacts[os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]] = impact
    await server.evaluate("1+1", BYSTANDER)
    impact.memory_mb.append(resident_mb(server))

    async def work() -> None:
        while True:
            started = time.perf_counter()
            assert await server.evaluate("1+1", BYSTANDER) == 2
            impact.latencies_ms.append((time.perf_counter() - started) * 1e3)
            impact.memory_mb.append(resident_mb(server))
            await anyio.sleep(PAUSE_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        yield impact
        while not impact.latencies_ms:  # noqa: ASYNC110 - the bystander is served in the end
            await anyio.sleep(PAUSE_S)
        tasks.cancel_scope.cancel()
    with anyio.move_on_after(SETTLE_S):
        while True:
            impact.last_memory_mb = resident_mb(server)
            impact.sandboxes_left = await to_thread.run_sync(count_sandboxes_left, server.data_dir)
            if impact.has_settled:
                break
            await anyio.sleep(PAUSE_S)
    impact.check()
