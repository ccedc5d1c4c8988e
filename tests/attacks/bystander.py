"""What an attack costs everybody else: time, memory, and sandboxes that stay behind.

`observe` measures them around an attack and checks them. The bounds on time, and on memory
afterwards, are only checked where nothing else works on the machine: in `make attack`.

Time is judged by two figures. The longest stall is how long the server's event loop served nobody
(`tests/helpers/loop_watch.py`). It leaves out the time in which the loop had no processor, so it is
the server's own, and hardly depends on what else works on the machine. The p99 of the bystander's
`1+1` is what a client notices. It includes that the processes of an attack want processors, too,
and of some 50 samples it is the greatest. So a round that exceeds either bound is repeated twice
with a new server (`rounds.py`), and the median of the three counts: what the server does wrong, it
does each time. Beside each attack stands the p99 of the same loop immediately before it.
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
from tests.helpers.forking import stalls_file
from tests.helpers.loop_watch import IS_MEASURED, read_stalls_s

MAX_P99_MS = 100.0
MAX_STALL_MS = 50.0  # of the event loop, without its waiting for a processor
MAX_GROWTH_MB = 50.0
MAX_KEPT_MB = 30.0  # what a session keeps of its output, and allocators for later
SETTLE_S = 30.0  # for memory to fall back and for the engine to remove what was given up
BYSTANDER = "bystander"
PAUSE_S = 0.01
CONTROL_S = 0.5 if IS_MEASURED else 0.0


class BystanderWaited(AssertionError):
    """The bystander or the event loop waited too long, which other processes can cause as well."""


@dataclass
class Impact:
    """The milliseconds that each `1+1` of the bystander took, and the server's memory meanwhile."""

    control_ms: list[float] = field(default_factory=list)  # the same immediately before the attack
    latencies_ms: list[float] = field(default_factory=list)
    stalls_ms: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    last_memory_mb: float = 0.0
    sandboxes_left: int = 0

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latencies."""
        return find_p99(self.latencies_ms)

    @property
    def control_p99_ms(self) -> float:
        """The same without the attack."""
        return find_p99(self.control_ms)

    @property
    def longest_stall_ms(self) -> float:
        """For how long the event loop served nobody at most."""
        return max(self.stalls_ms, default=0.0)

    @property
    def slowness(self) -> float:
        """The figures of time in proportion to their bounds: the larger one; up to 1 is allowed."""
        return max(self.p99_ms / MAX_P99_MS, self.longest_stall_ms / MAX_STALL_MS)

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
            if self.slowness > 1:
                raise BystanderWaited(
                    f"the bystander waited {self.p99_ms:.0f} ms, "
                    f"and the event loop was held for {self.longest_stall_ms:.0f} ms"
                )


def find_p99(values: list[float]) -> float:
    """Return the 99th percentile: the greatest of up to 100 values; 0 of none."""
    return sorted(values)[math.ceil(len(values) * 0.99) - 1] if values else 0.0


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

    async def work(latencies_ms: list[float], seconds: float) -> None:
        begun = time.perf_counter()
        while (started := time.perf_counter()) - begun < seconds:
            assert await server.evaluate("1+1", BYSTANDER) == 2
            latencies_ms.append((time.perf_counter() - started) * 1e3)
            impact.memory_mb.append(resident_mb(server))
            await anyio.sleep(PAUSE_S)

    await work(impact.control_ms, CONTROL_S)
    impact.memory_mb = [resident_mb(server)]
    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, impact.latencies_ms, math.inf)
        yield impact
        while not impact.latencies_ms:  # noqa: ASYNC110 - the bystander is served in the end
            await anyio.sleep(PAUSE_S)
        tasks.cancel_scope.cancel()
    if IS_MEASURED:
        for pid in server.server_pids:
            impact.stalls_ms += [stall * 1e3 for stall in read_stalls_s(stalls_file(pid), started)]
    with anyio.move_on_after(SETTLE_S):
        while True:
            impact.last_memory_mb = resident_mb(server)
            impact.sandboxes_left = await to_thread.run_sync(count_sandboxes_left, server.data_dir)
            if impact.has_settled:
                break
            await anyio.sleep(PAUSE_S)
    impact.check()
