"""Experiment: go back by rewind and fork, with large variables and many files.

The alternatives are measured in the same session: `docker commit` of its container, which keeps
neither memory nor tmpfs, and pickling the namespace and reading it back. Whether a state is right
is looked at on random programs, some of which make values that no pickle has: after a rewind, in a
fork, and in a new process that reads a pickle of each variable that can be pickled.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread
from docker import APIClient
from docker.utils import kwargs_from_env

from .engine import API_VERSION
from .harness import TestServer, measure_ms, start_server
from .results import RESULTS_FOLDER, ResultRecorder, record_result
from .time_rows import fork_and_run, rewind_and_run

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
PICKLE_STATE_CODE = """
import os, pickle, subprocess, sys
def _pickled(value):
    try:
        return pickle.dumps(value)
    except Exception:
        return None
_found = {name: _pickled(value) for name, value in data.items()}
_read = "import pickle, sys; print({name: repr(pickle.loads(value)) for name, value in " \
    "pickle.load(sys.stdin.buffer).items()})"
_some = {name: value for name, value in _found.items() if value is not None}
_command = [sys.executable, "-c", _read]
_done = subprocess.run(_command, input=pickle.dumps(_some), capture_output=True)
_done.returncode == 0 and len(_some) == len(_found)
"""
WRITE_CODE = f"for n in range({FILES}): open(f'f{{n}}', 'w').write('TEXT')"
STEPS = 3  # of a random program
WAYS = ("rewind", "fork", "pickle")
PARTS = ("sizes", "files", "programs")
RESET_CODE = """
import os
for name in os.listdir("."):
    os.remove(name)
def count_from(at):
    while True:
        yield at
        at += 1
data = {}
"""
LOOK_CODE = """
import os
[{name: value(1) if callable(value) else value.gi_frame.f_locals["at"]
  if hasattr(value, "gi_frame") else value for name, value in data.items()},
 sorted((name, open(name).read()) for name in os.listdir(".") if name[0] == "f")]
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
            rewinds.append(await measure_ms(rewind_and_run, server, "line", run))
            forks.append(await measure_ms(fork_and_run, server, "line", run))
            pickles.append(float((await server.run_code(PICKLE_CODE, "line"))["value"]))
        engine = APIClient(version=API_VERSION, timeout=60, **kwargs_from_env())
        commits = [await measure_ms(commit_container, engine, container) for _ in range(3)]
        engine.close()
    for name, values in (
        ("rewind and a run", rewinds),
        ("fork and its first run", forks),
        ("pickle and unpickle", pickles),
        ("docker commit", commits),
    ):
        recorder.add(f"{name}, {mb:,} MB", "ms", values)


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
            took.append(await measure_ms(rewind_and_run, server, "files", run))
            check = "assert all(open(f'f{n}').read() == 'old' for n in range(1000))"
            await server.run_code(check, "files")
    recorder.add(f"rewind and a run, {FILES:,} files", "ms", took)


async def check_programs(recorder: ResultRecorder, programs: int, seed: int) -> None:
    """Run random programs, go back to a random step in each way, and compare with that step."""
    draw = random.Random(seed)
    right = Counter[str]()
    async with start_server() as server:
        for number in range(programs):
            states: list[tuple[str, object]] = []
            await server.run_code(RESET_CODE, "random")
            for _ in range(STEPS):
                run = (await server.run_code(random_step(draw), "random"))["run"]
                states.append((run, await look(server, "random")))
            run, expected = draw.choice(states)
            await server.call_replay("rewind", "random", run=run)
            right["rewind"] += await look(server, "random") == expected
            forked = (await server.call_replay("fork", "random", run=run))["session"]
            right["fork"] += await look(server, forked) == expected
            was_pickled = (await server.run_code(PICKLE_STATE_CODE, "random"))["value"]
            right["pickle"] += bool(was_pickled)
            if number % 50 == 49:
                print(f"{dict(right)} of {number + 1} programs", flush=True)
    recorder.details["right"] = {way: right[way] for way in WAYS}
    recorder.details["programs"] = programs
    for way in WAYS:
        recorder.add(f"programs right after {way}", "share", [right[way] / programs], "higher")


def random_step(draw: random.Random) -> str:
    """Return a program that changes variables and files."""
    key, value = draw.randint(0, 9), draw.randint(0, 999)
    return draw.choice(
        [
            f"data[{key}] = [{value}] * {draw.randint(1, 5)}",
            f"data.pop({key}, None)",
            f"data.setdefault('log', []).append({value})",
            f"data[{key}] = (lambda seen: lambda n: seen[0] + n)([{value}])",
            f"data[{key}] = count_from({value})\nnext(data[{key}])",
            f"open('f{key}', 'w').write('{value}')",
            f"import os\nif os.path.exists('f{key}'): os.remove('f{key}')",
        ]
    )


async def look(server: TestServer, session: str) -> object:
    """Return variables and files of a session."""
    return (await server.run_code(LOOK_CODE, session))["value"]


async def measure_parts(recorder: ResultRecorder, options: argparse.Namespace) -> None:
    """Measure the chosen parts."""
    samples = QUICK_SAMPLES if options.quick else SAMPLES
    sizes = options.sizes or (QUICK_SIZES_MB if options.quick else SIZES_MB)
    for mb in sizes if "sizes" in options.only else ():
        await measure_size(recorder, mb, samples)
    if "files" in options.only:
        await measure_files(recorder, samples)
    if "programs" in options.only:
        programs = QUICK_PROGRAMS if options.quick else PROGRAMS
        await check_programs(recorder, programs, options.seed)


def main(arguments: Sequence[str]) -> int:
    """Measure; return 1 if a rewind or a fork had another state.

    The report shows the parts of several results together.
    """
    top = argparse.ArgumentParser(prog="python -m bench run undo", description=__doc__)
    top.add_argument("--quick", action="store_true")
    top.add_argument("--sizes", type=int, nargs="+", metavar="MB", help=f"default: {SIZES_MB}")
    top.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "undo.json")
    options = top.parse_args(arguments)
    facts = {"seed": options.seed, "is_quick": options.quick}
    with record_result("undo", options.json, **facts) as recorder:
        anyio.run(measure_parts, recorder, options)
    for each in recorder.measurements:
        print(f"{each.name:32} {sorted(each.samples)[len(each.samples) // 2]:10.2f} {each.unit}")
    if "programs" not in options.only:
        return 0
    right, programs = recorder.details["right"], recorder.details["programs"]
    print(f"{right} of {programs} programs right")
    return int(min(right["rewind"], right["fork"]) < programs)
