"""The rows about time travel: the cost of checkpoints, of moving to a step, and of replays."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio

from .harness import BenchmarkRow, TestServer, measure_ms, start_server
from .rows import BenchContext

HEAPS = {
    # about 178 bytes of resident memory for each object
    "small": "heap = [(n, str(n)) for n in range({mb} * 5_900)]",
    "large": "heap = [bytearray(b'x' * 1_000_000) for _ in range({mb})]",
}
SIZES_MB = (0, 10, 100, 400)
BOUND_AT_MB = 100
MEMORY_MB = 1024
PAUSE_S = 0.15  # long enough to park a fork of the session
# Steps without a pause: each but the first pays for the checkpoint of the step before it.
BURST_STEPS = 6
FILE_COUNTS = (10, 1_000, 10_000)
REPLAYED_STEPS = 50
JOURNALED_STEPS = 200

file_numbers = count(1)


async def checkpoint_small(bench: BenchContext) -> list[BenchmarkRow]:
    """The cost of a checkpoint with a heap of many small objects."""
    return await _measure_checkpoints(bench, "small")


async def checkpoint_large(bench: BenchContext) -> list[BenchmarkRow]:
    """The cost of a checkpoint with a heap of a few large buffers."""
    return await _measure_checkpoints(bench, "large")


async def _measure_checkpoints(bench: BenchContext, heap: str) -> list[BenchmarkRow]:
    rows = []
    async with _start_servers() as (ours, baseline):
        for mb in SIZES_MB:
            for server in (ours, baseline):
                await server.run_code(f"{HEAPS[heap].format(mb=mb)}\nn = len(heap)", f"{mb}")
            title = f"step, {mb} MB in {heap} objects"
            bound = 2.0 if mb == BOUND_AT_MB else None
            at_once = BenchmarkRow(
                f"checkpoint-{heap}-{mb}",
                f"{title}, at once",
                "no checkpoints",
                "difference",
                bound,
            )
            paused = BenchmarkRow(
                f"checkpoint-{heap}-{mb}-paused",
                f"{title}, paused",
                "no checkpoints",
                "difference",
                None,
            )
            for _ in range(bench.samples(12, 2)):
                at_once.ours += await _run_burst(ours, f"{mb}")
                at_once.baseline += await _run_burst(baseline, f"{mb}")
            for _ in range(bench.samples(15, 4)):
                for server, samples in ((ours, paused.ours), (baseline, paused.baseline)):
                    await anyio.sleep(PAUSE_S)
                    samples.append(await measure_ms(server.run_code, "n += 1", f"{mb}"))
            rows += [at_once, paused]
            for server in (ours, baseline):
                await server.run_code("del heap", f"{mb}")
    return rows


@asynccontextmanager
async def _start_servers() -> AsyncIterator[tuple[TestServer, TestServer]]:
    """Run a server that keeps checkpoints and one that keeps none."""
    async with (
        start_server(memory_mb=MEMORY_MB, checkpoints=16) as ours,
        start_server(memory_mb=MEMORY_MB, checkpoints=0) as baseline,
    ):
        yield ours, baseline


async def _run_burst(server: TestServer, session: str) -> list[float]:
    took = [await measure_ms(server.run_code, "n += 1", session) for _ in range(BURST_STEPS)]
    return took[1:]


async def checkpoint_files(bench: BenchContext) -> list[BenchmarkRow]:
    """The cost of the files in the workspace for a step that changes one of them."""
    rows = []
    async with start_server() as server:
        await server.run_code("import os", "few")
        for files in FILE_COUNTS:
            name = f"{files} files"
            make = "for n in range({}): open(f'{{n:05}}', 'w').write('x' * 100)"
            await server.run_code(f"import os\n{make.format(files)}", name)
            row = BenchmarkRow(
                f"checkpoint-files-{files}",
                f"step, changes 1 of {files:,} files",
                "of 1 file",
                "difference",
                None,
            )
            for _ in range(bench.samples(30, 6)):
                change = f"open('00000', 'w').write('{next(file_numbers)}')"
                row.ours.append(await measure_ms(server.run_code, change, name))
                row.baseline.append(await measure_ms(server.run_code, change, "few"))
            rows.append(row)
    return rows


# rewind and fork ----------------------------------------------------------------------------------


async def rewind_session(bench: BenchContext) -> list[BenchmarkRow]:
    """A rewind to a parked step and a run there, compared with a warm run; files change between."""
    return [
        await _measure_move(bench, f"rewind-{mb}", f"rewind and a run, {mb} MB", mb, rewind_and_run)
        for mb in (0, BOUND_AT_MB)
    ]


async def fork_session(bench: BenchContext) -> list[BenchmarkRow]:
    """A fork of a parked step and a run in it, compared with a warm run; files change between."""
    return [
        await _measure_move(
            bench, f"fork-{mb}", f"fork and its first run, {mb} MB", mb, fork_and_run
        )
        for mb in (0, BOUND_AT_MB)
    ]


async def _measure_move(
    bench: BenchContext,
    name: str,
    title: str,
    mb: int,
    move: Callable[[TestServer, str, str], Awaitable[None]],
) -> BenchmarkRow:
    row = BenchmarkRow(name, title, "warm run", "difference", 20.0)
    async with start_server(memory_mb=MEMORY_MB) as server:
        await server.run_code(f"{HEAPS['small'].format(mb=mb)}\nn = 0", "line")
        for _ in range(bench.samples(25, 5)):
            await server.run_code("n += 1\nopen('kept', 'w').write('x' * 10_000 + str(n))", "line")
            at = (
                await server.run_code("n += 1\nopen(f'old{n}', 'w').write('x' * 10_000)", "line")
            )["run"]
            await anyio.sleep(PAUSE_S)  # without a pause, the step would not be parked
            await server.run_code(
                "n += 1\nopen(f'new{n}', 'w').write('x' * 10_000)\nopen('kept', 'w').close()",
                "line",
            )
            # Both measurements follow a pause, so that neither pays for the checkpoint before it.
            await anyio.sleep(PAUSE_S)
            row.baseline.append(await measure_ms(server.run_code, "n += 1", "line"))
            await anyio.sleep(PAUSE_S)
            row.ours.append(await measure_ms(move, server, "line", at))
    return row


async def rewind_and_run(server: TestServer, session: str, run: str) -> None:
    """Rewind to a parked step, and run there: a rewind alone restores nothing yet."""
    await server.call_replay("rewind", session, run=run)
    check_was_parked(await server.run_code("n += 1", session))


async def fork_and_run(server: TestServer, session: str, run: str) -> None:
    """Fork a parked step, and run in the fork."""
    forked = await server.call_replay("fork", session, run=run)
    check_was_parked(await server.run_code("n += 1", forked["session"]))


def check_was_parked(result: dict[str, Any]) -> None:
    """Raise `RuntimeError` if steps were executed again instead of restored from a parked fork."""
    if "executed again" in result.get("note", ""):
        raise RuntimeError(f"the step was not parked: {result['note']}")


# replays ------------------------------------------------------------------------------------------


async def rerun_steps(bench: BenchContext) -> list[BenchmarkRow]:
    """Replays of many small steps: in a new sandbox with `rerun`, and in place after a rewind."""
    bound = 2.0
    again = BenchmarkRow(
        "rerun-step",
        f"rerun, each of {REPLAYED_STEPS} steps",
        "the code's own time",
        "difference",
        bound,
    )
    whole = BenchmarkRow(
        "rerun-one", "rerun of one step, its sandbox included", "warm run", "difference", None
    )
    rebuilt = BenchmarkRow(
        "rebuild-step",
        f"rebuild, each of {REPLAYED_STEPS} steps",
        "the code's own time",
        "difference",
        bound,
    )
    async with start_server(checkpoints=0, pool_size=2) as server:
        await server.run_code("n = 0", "one")
        own_ms = [
            (await server.run_code(f"n = {n}\nprint(n)", "many"))["usage"]["wall_ms"]
            for n in range(REPLAYED_STEPS + 1)
        ]
        for _ in range(bench.samples(8, 2)):
            whole.baseline.append(await measure_ms(server.run_code, "1", "one"))
            await server.containers.wait_until_settled(4)  # two sessions, two in the pool
            whole.ours.append(await measure_ms(server.call_replay, "rerun", "one", step=1))
            await server.containers.wait_until_settled(4)  # two sessions, two in the pool
            took = await measure_ms(
                _expect_note,
                server.call_replay("rerun", "many"),
                f"The same as recorded in all {REPLAYED_STEPS + 1} steps",
            )
            again.ours.append((took - whole.ours[-1]) / REPLAYED_STEPS)
            await server.run_code("n", "many")
            await server.call_replay("rewind", "many", step=REPLAYED_STEPS)
            took = await measure_ms(
                _expect_note,
                server.run_code("n", "many"),
                f"{REPLAYED_STEPS} of its steps were executed again",
            )
            rebuilt.ours.append((took - whole.baseline[-1]) / REPLAYED_STEPS)
            await server.call_replay("rewind", "many", step=REPLAYED_STEPS + 1)
    again.baseline = rebuilt.baseline = own_ms
    return [again, rebuilt, whole]


async def _expect_note(answer: Awaitable[dict[str, Any]], words: str) -> None:
    """Raise `RuntimeError` unless the note contains `words`."""
    note = (await answer).get("note", "")
    if words not in note:
        raise RuntimeError(f"the note is {note!r}, not {words!r}")


async def journal_growth(bench: BenchContext) -> BenchmarkRow:
    """The growth of the data folder with each plain step."""
    row = BenchmarkRow(
        "journal-bytes", "journal, each plain step", "its code and output", "value", None, "B"
    )
    steps = bench.samples(JOURNALED_STEPS, 50)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with start_server(Path(folder)) as server:
            await server.run_code("n = 0", "plain")
        before = folder_bytes(Path(folder))
        code = "n += 1\nprint(n)"
        async with start_server(Path(folder)) as server:
            for _ in range(steps):
                await server.run_code(code, "plain")
        row.ours.append((folder_bytes(Path(folder)) - before) / steps)
        row.baseline.append(len(code) + 4)
    return row


def folder_bytes(folder: Path) -> int:
    """Return the total size in bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


TIME_ROWS: Sequence[Callable[[BenchContext], Awaitable[BenchmarkRow | list[BenchmarkRow]]]] = (
    checkpoint_small,
    checkpoint_large,
    checkpoint_files,
    rewind_session,
    fork_session,
    rerun_steps,
    journal_growth,
)
