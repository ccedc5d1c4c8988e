"""The rows about time: what checkpoints cost, and how long it takes to move to another step or to execute one again."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio

from harness import Ours, Row, our_server, timed
from rows import Bench

HEAPS = {
    "small": "heap = [(n, str(n)) for n in range({mb} * 5_900)]",  # about 178 bytes each, as resident memory grows
    "large": "heap = [bytearray(b'x' * 1_000_000) for _ in range({mb})]",
}
SIZES_MB = (0, 10, 100, 400)
BOUND_AT_MB = 100
MEMORY_MB = 1024
PAUSE_S = 0.15  # a copy stands and has been measured by then
BURST = 6  # steps one after the other: each but the first pays for the checkpoint of the one before
FILES = (10, 1_000, 10_000)
STEPS = 50
JOURNALED = 200  # steps

numbers = count(1)


async def checkpoint_small(bench: Bench) -> list[Row]:
    """What a checkpoint costs a step where the heap is many small objects."""
    return await _checkpoints(bench, "small")


async def checkpoint_large(bench: Bench) -> list[Row]:
    """What a checkpoint costs a step where the heap is a few large buffers."""
    return await _checkpoints(bench, "large")


async def _checkpoints(bench: Bench, heap: str) -> list[Row]:
    rows = []
    async with _both() as (ours, baseline):
        for mb in SIZES_MB:
            for server in (ours, baseline):
                await server.run(f"{HEAPS[heap].format(mb=mb)}\nn = len(heap)", f"{mb}")
            title = f"step, {mb} MB in {heap} objects"
            bound = 2.0 if mb == BOUND_AT_MB else None
            at_once = Row(f"checkpoint-{heap}-{mb}", f"{title}, at once", "no checkpoints", "difference", bound)
            paused = Row(f"checkpoint-{heap}-{mb}-paused", f"{title}, paused", "no checkpoints", "difference", None)
            for _ in range(bench.samples(12, 2)):
                at_once.ours += await _burst(ours, f"{mb}")
                at_once.baseline += await _burst(baseline, f"{mb}")
            for _ in range(bench.samples(15, 4)):
                for server, samples in ((ours, paused.ours), (baseline, paused.baseline)):
                    await anyio.sleep(PAUSE_S)
                    samples.append(await timed(server.run, "n += 1", f"{mb}"))
            rows += [at_once, paused]
            for server in (ours, baseline):
                await server.run("del heap", f"{mb}")
    return rows


@asynccontextmanager
async def _both() -> AsyncIterator[tuple[Ours, Ours]]:
    """Run a server that keeps checkpoints and one that keeps none."""
    async with (
        our_server(memory_mb=MEMORY_MB, checkpoints=16) as ours,
        our_server(memory_mb=MEMORY_MB, checkpoints=0) as baseline,
    ):
        yield ours, baseline


async def _burst(server: Ours, session: str) -> list[float]:
    took = [await timed(server.run, "n += 1", session) for _ in range(BURST)]
    return took[1:]


async def checkpoint_files(bench: Bench) -> list[Row]:
    """What files in the workspace cost a step that changes one of them."""
    rows = []
    async with our_server() as server:
        await server.run("import os", "few")
        for files in FILES:
            name = f"{files} files"
            make = "for n in range({}): open(f'{{n:05}}', 'w').write('x' * 100)"
            await server.run(f"import os\n{make.format(files)}", name)
            row = Row(
                f"checkpoint-files-{files}", f"step, changes 1 of {files:,} files", "of 1 file", "difference", None
            )
            for _ in range(bench.samples(30, 6)):
                change = f"open('00000', 'w').write('{next(numbers)}')"
                row.ours.append(await timed(server.run, change, name))
                row.baseline.append(await timed(server.run, change, "few"))
            rows.append(row)
    return rows


# moving -----------------------------------------------------------------------------------------------


async def rewind(bench: Bench) -> list[Row]:
    """Going back to a parked step and running there, against a warm run; files change in between."""
    return [await _move(bench, f"rewind-{mb}", f"rewind and a run, {mb} MB", mb, _rewound) for mb in (0, BOUND_AT_MB)]


async def fork(bench: Bench) -> list[Row]:
    """Forking a parked step and running in the fork, against a warm run; files change in between."""
    return [
        await _move(bench, f"fork-{mb}", f"fork and its first run, {mb} MB", mb, _forked) for mb in (0, BOUND_AT_MB)
    ]


async def _move(bench: Bench, name: str, title: str, mb: int, move: Callable[[Ours, str, str], Awaitable[None]]) -> Row:
    row = Row(name, title, "warm run", "difference", 20.0)
    async with our_server(memory_mb=MEMORY_MB) as server:
        await server.run(f"{HEAPS['small'].format(mb=mb)}\nn = 0", "line")
        for _ in range(bench.samples(25, 5)):
            await server.run("n += 1\nopen('kept', 'w').write('x' * 10_000 + str(n))", "line")
            at = (await server.run("n += 1\nopen(f'old{n}', 'w').write('x' * 10_000)", "line"))["run"]
            await server.run("n += 1\nopen(f'new{n}', 'w').write('x' * 10_000)\nopen('kept', 'w').close()", "line")
            await anyio.sleep(PAUSE_S)  # before both, or one of them pays for the checkpoint of the step before
            row.baseline.append(await timed(server.run, "n += 1", "line"))
            await anyio.sleep(PAUSE_S)
            row.ours.append(await timed(move, server, "line", at))
    return row


async def _rewound(server: Ours, session: str, run: str) -> None:
    await server.replay("rewind", session, run=run)
    check_brought(await server.run("n += 1", session))


async def _forked(server: Ours, session: str, run: str) -> None:
    forked = await server.replay("fork", session, run=run)
    check_brought(await server.run("n += 1", forked["session"]))


def check_brought(result: dict[str, Any]) -> None:
    """Raise `RuntimeError` if a state was not brought from a parked copy."""
    if "executed again" in result.get("note", ""):
        raise RuntimeError(f"the step was not parked: {result['note']}")


# executing again --------------------------------------------------------------------------------------


async def rerun(bench: Bench) -> list[Row]:
    """Executing many small steps again: in a fresh sandbox by `rerun`, and in the session's own by a rewind."""
    bound = 2.0
    again = Row("rerun-step", f"rerun, each of {STEPS} steps", "the code's own time", "difference", bound)
    whole = Row("rerun-one", "rerun of one step, its sandbox included", "warm run", "difference", None)
    rebuilt = Row("rebuild-step", f"rebuild, each of {STEPS} steps", "the code's own time", "difference", bound)
    async with our_server(checkpoints=0, pool_size=2) as server:
        await server.run("n = 0", "one")
        own_ms = [(await server.run(f"n = {n}\nprint(n)", "many"))["usage"]["wall_ms"] for n in range(STEPS + 1)]
        for _ in range(bench.samples(8, 2)):
            whole.baseline.append(await timed(server.run, "1", "one"))
            await server.containers.until_settled(4)  # two sessions, two in the pool
            whole.ours.append(await timed(server.replay, "rerun", "one", step=1))
            await server.containers.until_settled(4)  # two sessions, two in the pool
            took = await timed(_told, server.replay("rerun", "many"), f"The same as recorded in all {STEPS + 1} steps")
            again.ours.append((took - whole.ours[-1]) / STEPS)
            await server.run("n", "many")
            await server.replay("rewind", "many", step=STEPS)
            took = await timed(_told, server.run("n", "many"), f"{STEPS} of its steps were executed again")
            rebuilt.ours.append((took - whole.baseline[-1]) / STEPS)
            await server.replay("rewind", "many", step=STEPS + 1)
    again.baseline = rebuilt.baseline = own_ms
    return [again, rebuilt, whole]


async def _told(answer: Awaitable[dict[str, Any]], words: str) -> None:
    """Raise `RuntimeError` unless `answer` says so: what was not done is not to be measured."""
    note = (await answer).get("note", "")
    if words not in note:
        raise RuntimeError(f"the note is {note!r}, not {words!r}")


async def journal(bench: Bench) -> Row:
    """What the data folder grows by with each plain step."""
    row = Row("journal-bytes", "journal, each plain step", "its code and output", "value", None, "B")
    steps = bench.samples(JOURNALED, 50)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with our_server(Path(folder)) as server:
            await server.run("n = 0", "plain")
        before = size_of(Path(folder))
        code = "n += 1\nprint(n)"
        async with our_server(Path(folder)) as server:
            for _ in range(steps):
                await server.run(code, "plain")
        row.ours.append((size_of(Path(folder)) - before) / steps)
        row.baseline.append(len(code) + 4)
    return row


def size_of(folder: Path) -> int:
    """Return the bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


TIME_ROWS: Sequence[Callable[[Bench], Awaitable[Row | list[Row]]]] = (
    checkpoint_small,
    checkpoint_large,
    checkpoint_files,
    rewind,
    fork,
    rerun,
    journal,
)
