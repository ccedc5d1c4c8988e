"""Experiment: many live sessions at once, and memory under steady work.

Sessions are opened one after the other and then used in turns; the latency of a warm run is
measured with one session and with all, and the memory of each sandbox. Then the same server works
for a while, and the slope of its memory is fitted. First runs are measured with the pool and
without it, at once one after the other and after pauses in which the pool is refilled. The bounds
of single rows are measured by `perf`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import anyio

from .harness import measure_ms, start_server
from .results import RESULTS_FOLDER, ResultRecorder, record_result
from .statistics import percentile

SESSIONS, QUICK_SESSIONS = 100, 5
SOAK_S, QUICK_SOAK_S = 60.0, 5.0
ROUNDS = 5
NEW_SESSIONS, QUICK_NEW_SESSIONS = 12, 3  # of each setting of the pool
POOL_SIZES = {"no pool": 0, "pool of 2": 2}
PAUSES_S = {"at once": 0.0, "after a pause": 1.5}  # long enough to refill the pool
WARM_UP_SHARE = 0.2  # of the soak, before memory counts


async def measure(recorder: ResultRecorder, sessions: int, soak_s: float) -> None:
    """Measure opening, working and memory."""
    room = sessions + 2  # else idle sessions give up their sandboxes
    limits = {"data_dir": "data", "max_sessions": room, "max_sessions_per_principal": room}
    async with start_server(sections={"server": limits}, memory_mb=128) as server:
        await server.run_code("n = 0", "s0")
        alone = [await measure_ms(server.run_code, "n += 1", "s0") for _ in range(50)]
        opened = [
            await measure_ms(server.run_code, "n = 0", f"s{number}")
            for number in range(1, sessions)
        ]
        crowded = [
            await measure_ms(server.run_code, "n += 1", f"s{number}")
            for _ in range(ROUNDS)
            for number in range(sessions)
        ]
        sandboxes = [
            await server.containers.memory_mib(each) for each in await server.containers.list_ids()
        ]
        memory: list[tuple[float, float]] = []
        began = time.monotonic()
        while (at := time.monotonic() - began) < soak_s:
            await server.run_code("n += 1", f"s{len(memory) % sessions}")
            memory.append((at, server.containers.server_memory_mb()))
    recorder.add("warm run, one session", "ms", alone)
    recorder.add("first run of a session, one after the other", "ms", opened)
    recorder.add(f"warm run, {sessions} live sessions", "ms", crowded)
    recorder.add("memory of a live session", "MiB", sandboxes)
    recorder.add(
        "memory of the server", "MB", [mb for _, mb in memory][:: max(1, len(memory) // 200)]
    )
    settled = [point for point in memory if point[0] > WARM_UP_SHARE * soak_s]
    slope, _ = statistics.linear_regression(*zip(*settled, strict=True))
    recorder.details |= {
        "sessions": sessions,
        "p99_ms": round(percentile(crowded, 0.99), 2),
        "p99_alone_ms": round(percentile(alone, 0.99), 2),
        "soak_s": soak_s,
        "soak_runs": len(memory),
        "slope_kb_per_minute": round(slope * 60 * 1e3, 1),
    }


async def measure_pool(recorder: ResultRecorder, sessions: int) -> None:
    """Measure first runs with and without the pool, with and without a pause before each."""
    for name, size in POOL_SIZES.items():
        async with start_server(pool_size=size, memory_mb=128) as server:
            await server.containers.wait_until_settled(size)
            for pause, seconds in PAUSES_S.items():
                took = []
                for number in range(sessions):
                    await anyio.sleep(seconds)
                    session = f"{pause} {number}"
                    took.append(await measure_ms(server.run_code, "n = 0", session))
                recorder.add(f"first run of a session, {name}, {pause}", "ms", took)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    top = argparse.ArgumentParser(prog="python -m bench run density", description=__doc__)
    top.add_argument("--quick", action="store_true")
    top.add_argument("--sessions", type=int, default=0)
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "density.json")
    options = top.parse_args(arguments)
    sessions = options.sessions or (QUICK_SESSIONS if options.quick else SESSIONS)
    soak_s = QUICK_SOAK_S if options.quick else SOAK_S
    new_sessions = QUICK_NEW_SESSIONS if options.quick else NEW_SESSIONS
    with record_result("density", options.json, is_quick=options.quick) as recorder:
        anyio.run(measure_pool, recorder, new_sessions)
        anyio.run(measure, recorder, sessions, soak_s)
    for each in recorder.measurements:
        median, p99 = statistics.median(each.samples), percentile(each.samples, 0.99)
        print(f"{each.name:44} {median:9.2f} {each.unit}, p99 {p99:.2f}")
    print(recorder.details)
    return 0
