"""The rows about `[journal] durability`: what "disk" costs, compared with "process" in turns.

The data folders are beside the results and not in the folder for temporary files, which may be in
memory, where an fsync costs nothing.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from .harness import BenchmarkRow, TestServer, measure_ms, sample_in_turns, start_server
from .rows import CALLS_PER_RUN, BenchContext, unique_numbers

FOLDER = Path(__file__).with_name("results")
FILES_PER_RUN = 20
SESSIONS_AT_ONCE = 8
PAGE = bytes(4096)
CALLS_CODE = """
import time
from tools.bare import TOOL
took = []
for n in range(FIRST, FIRST + COUNT):
    started = time.perf_counter()
    TOOL(n=n)
    took.append((time.perf_counter() - started) * 1e3)
took
""".replace("COUNT", str(CALLS_PER_RUN))
FILES_CODE = f"""
for n in range({FILES_PER_RUN}):
    open(f'f{{n}}', 'w').write(f'MARK {{n}}')
"""


async def durability(bench: BenchContext) -> list[BenchmarkRow]:
    """Runs and calls that wait for the disk, compared with the same that do not."""
    run = _make_row("run", 'warm run_code("1+1")')
    files = _make_row("files", f"run that writes {FILES_PER_RUN} files")
    at_once = _make_row("at-once", f"{SESSIONS_AT_ONCE} runs at once")
    write = _make_row("write", "call from inside that may write")
    read = _make_row("read", "call from inside that reads")
    async with _start_with("disk") as ours, _start_with("process") as baseline:
        samples = bench.samples(100, 30)
        await _sample_runs(run, ours, baseline, samples, lambda: "1+1")
        await _sample_runs(files, ours, baseline, samples // 4, _code_with_new_files)
        await sample_in_turns(
            at_once, partial(_run_at_once, ours), partial(_run_at_once, baseline), samples // 4
        )
        for row, tool in ((write, "unsaid"), (read, "noop")):
            for _ in range(bench.samples(8, 3)):
                first = next(unique_numbers) * 1000
                code = CALLS_CODE.replace("TOOL", tool).replace("FIRST", str(first))
                row.ours += (await ours.run_code(code))["value"]
                row.baseline += (await baseline.run_code(code))["value"]
    return [_measure_fsync(bench.samples(100, 30)), run, files, at_once, write, read]


def _make_row(name: str, title: str) -> BenchmarkRow:
    return BenchmarkRow(
        f"durability-{name}", f'{title}, "disk"', 'durability "process"', "ratio", None
    )


@asynccontextmanager
async def _start_with(durability: str) -> AsyncIterator[TestServer]:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=FOLDER) as folder:
        sections = {"journal": {"durability": durability}}
        async with start_server(Path(folder), sections) as server:
            await server.run_code("import tools.bare")
            yield server


async def _sample_runs(
    row: BenchmarkRow,
    ours: TestServer,
    baseline: TestServer,
    samples: int,
    make_code: Callable[[], str],
) -> None:
    async def take(server: TestServer) -> float:
        return await measure_ms(server.run_code, make_code())

    await sample_in_turns(row, partial(take, ours), partial(take, baseline), samples, warm_up=5)


def _code_with_new_files() -> str:
    return FILES_CODE.replace("MARK", str(next(unique_numbers)))


async def _run_at_once(server: TestServer) -> float:
    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for number in range(SESSIONS_AT_ONCE):
            tasks.start_soon(server.run_code, "1+1", f"session {number}")
    return (time.perf_counter() - started) * 1e3


def _measure_fsync(samples: int) -> BenchmarkRow:
    """Return what the disk takes at least: for a page that is appended to a file."""
    row = BenchmarkRow("durability-fsync", "fdatasync of a page", "", "value", None)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=FOLDER) as file:
        for _ in range(samples):
            file.write(PAGE)
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            row.ours.append((time.perf_counter() - started) * 1e3)
    return row


DURABILITY_ROWS: Sequence[Callable[[BenchContext], Awaitable[Any]]] = (durability,)
