"""Experiment: go back by rewind and fork, with large variables and many files.

The alternatives are measured in the same session: `docker commit` of its container, which keeps
neither memory nor tmpfs, and pickling the namespace and reading it back.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread
from docker import APIClient
from docker.utils import kwargs_from_env

from .engine import API_VERSION
from .harness import TestServer, measure_ms, start_server
from .results import RESULTS_FOLDER, ResultRecorder, record_result

SIZES_MB, QUICK_SIZES_MB = (1, 100, 1_000), (1,)
FILES = 1_000
WAIT_S = 250.0  # to pickle a gigabyte
PAUSE_S = 0.3  # long enough to park a fork of the session
SAMPLES, QUICK_SAMPLES = 10, 3
PROGRAMS, QUICK_PROGRAMS = 200, 10
PICKLE_CODE = """
import pickle, time
started = time.perf_counter()
copy = pickle.loads(pickle.dumps(heap, protocol=5))
took = (time.perf_counter() - started) * 1e3
del copy
took
"""
WRITE_CODE = f"for n in range({FILES}): open(f'f{{n}}', 'w').write('TEXT')"
LOOK_CODE = """
import os
[data, sorted((name, open(name).read()) for name in os.listdir(".") if name[0] == "f")]
"""


async def measure_size(recorder: ResultRecorder, mb: int, samples: int) -> None:
    """Measure rewind, fork and the alternatives with variables of `mb` megabytes."""
    rewinds, forks, pickles = [], [], []
    memory_mb = 512 + 3 * mb
    limits = {"server": {"data_dir": "data", "wait_s": WAIT_S}}
    async with start_server(
        sections=limits, pool_size=0, memory_mb=memory_mb, checkpoint_mb=4 * mb + 256
    ) as server:
        make = f"heap = [bytearray(b'x' * 1_000_000) for _ in range({mb})]\nn = 0"
        await server.run_code(make, "line")
        [container] = await server.containers.wait_until_settled(1)
        for _ in range(samples):
            run = (await server.run_code("n += 1", "line"))["run"]
            await anyio.sleep(PAUSE_S)
            await server.run_code("n += 100\nheap[0][0] = n % 256", "line")
            rewinds.append(await measure_ms(server.call_replay, "rewind", "line", run=run))
            forks.append(await measure_ms(server.call_replay, "fork", "line", run=run))
            pickles.append(float((await server.run_code(PICKLE_CODE, "line"))["value"]))
        engine = APIClient(version=API_VERSION, timeout=60, **kwargs_from_env())
        commits = [await measure_ms(commit_container, engine, container) for _ in range(3)]
        engine.close()
    for name, values in (
        ("rewind", rewinds),
        ("fork", forks),
        ("pickle and unpickle", pickles),
        ("docker commit", commits),
    ):
        recorder.add(f"{name}, {mb} MB", "ms", values)


async def commit_container(engine: APIClient, container: str) -> None:
    """Commit a container and remove the image."""
    image = await anyio.to_thread.run_sync(engine.commit, container)
    await anyio.to_thread.run_sync(engine.remove_image, image["Id"])


async def measure_files(recorder: ResultRecorder, samples: int) -> None:
    """Measure a rewind that restores a thousand files."""
    async with start_server() as server:
        took: list[float] = []
        for _ in range(samples):
            run = (await server.run_code(WRITE_CODE.replace("TEXT", "old"), "files"))["run"]
            await anyio.sleep(PAUSE_S)
            await server.run_code(WRITE_CODE.replace("TEXT", "new"), "files")
            took.append(await measure_ms(server.call_replay, "rewind", "files", run=run))
            check = "assert all(open(f'f{n}').read() == 'old' for n in range(1000))"
            await server.run_code(check, "files")
    recorder.add(f"rewind, {FILES} files", "ms", took)


async def check_programs(recorder: ResultRecorder, programs: int, seed: int) -> None:
    """Run random programs, go back to a random step, and compare the state with that step's."""
    draw = random.Random(seed)
    right = 0
    async with start_server() as server:
        await server.run_code("data = {}", "random")
        for number in range(programs):
            states: list[tuple[str, object]] = []
            for _ in range(3):
                run = (await server.run_code(random_step(draw), "random"))["run"]
                states.append((run, (await server.run_code(LOOK_CODE, "random"))["value"]))
            run, expected = draw.choice(states)
            right += await is_restored(server, run, expected)
            if number % 50 == 49:
                print(f"{right} of {number + 1} programs restored")
    recorder.details["restored"] = [right, programs]
    recorder.add("restored programs", "share", [right / programs], "higher")


def random_step(draw: random.Random) -> str:
    """Return a program that changes variables and files."""
    key, value = draw.randint(0, 9), draw.randint(0, 999)
    return draw.choice(
        [
            f"data[{key}] = [{value}] * {draw.randint(1, 5)}",
            f"data.pop({key}, None)",
            f"data.setdefault('log', []).append({value})",
            f"open('f{key}', 'w').write('{value}')",
            f"import os\nif os.path.exists('f{key}'): os.remove('f{key}')",
        ]
    )


async def is_restored(server: TestServer, run: str, expected: object) -> bool:
    """Rewind to a run and return whether variables and files are as they were after it."""
    await server.call_replay("rewind", "random", run=run)
    return bool((await server.run_code(LOOK_CODE, "random"))["value"] == expected)


async def measure_all(
    recorder: ResultRecorder, sizes: Sequence[int], is_quick: bool, seed: int
) -> None:
    """Measure everything, with variables of `sizes` in MB."""
    samples = QUICK_SAMPLES if is_quick else SAMPLES
    for mb in sizes:
        await measure_size(recorder, mb, samples)
    await measure_files(recorder, samples)
    await check_programs(recorder, QUICK_PROGRAMS if is_quick else PROGRAMS, seed)


def main(arguments: Sequence[str]) -> int:
    """Measure; return 1 if a state was not restored."""
    top = argparse.ArgumentParser(prog="python -m bench run undo", description=__doc__)
    top.add_argument("--quick", action="store_true")
    top.add_argument("--sizes", type=int, nargs="+", metavar="MB", help=f"default: {SIZES_MB}")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "undo.json")
    options = top.parse_args(arguments)
    facts = {"seed": options.seed, "is_quick": options.quick}
    with record_result("undo", options.json, **facts) as recorder:
        sizes = options.sizes or (QUICK_SIZES_MB if options.quick else SIZES_MB)
        anyio.run(measure_all, recorder, sizes, options.quick, options.seed)
    for each in recorder.measurements:
        print(f"{each.name:32} {sorted(each.samples)[len(each.samples) // 2]:10.2f} {each.unit}")
    right, programs = recorder.details["restored"]
    return int(right < programs)
