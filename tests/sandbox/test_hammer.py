"""A thousand interrupts at random moments lose no session and mix up no runs."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.protocol import wire
from mcpruntime_server.sandbox.link import open_link

from ..helpers.sizes import choose_size
from .conftest import RunRecorder, SandboxDriver, make_backend, make_setup

PRELUDE = """
import asyncio, os, subprocess, sys, time, threading
from mcpruntime_sandbox.sandboxed.library.tools import host
kept = 0
"""
UNTIL = "end = time.monotonic() + {s}\nwhile time.monotonic() < end: "
THREADS = """
def work(): [host.call('t', {{'n': {n}}}) for _ in range(20)]
workers = [threading.Thread(target=work) for _ in range(4)]
for worker in workers: worker.start()
for worker in workers: worker.join()
time.sleep({s})
"""
BODIES = {  # each says only `{n}` and calls only with `{n}`, for about `{s}` seconds
    "prints": UNTIL + "print({n})",
    "flushes": UNTIL + "print({n}, flush=True, file=sys.stderr)",
    "calls": UNTIL + "assert host.call('t', {{'n': {n}}})['n'] == {n}",
    "naps": "host.call('test.nap', {{'seconds': {s}, 'n': {n}}})",
    "awaits": UNTIL + "assert (await host.acall('t', {{'n': {n}}}))['n'] == {n}",
    "gathers": "await asyncio.gather(*(host.acall('test.nap', {{'seconds': {s}, 'n': {n}}}) "
    "for _ in range(8)))",
    "sleeps": "time.sleep({s})",
    "computes": UNTIL + "sum(range(1000))",
    "threads": THREADS,
    "processes": "subprocess.run([sys.executable, '-c', 'print({n}, flush=True); import time; "
    "time.sleep({s})'])",
    "cleans up": "try: time.sleep({s})\nfinally: print({n})",
    "ends at once": "{n}",
}


async def hammer(driver: SandboxDriver, times: int, chance: random.Random) -> Counter[str]:
    """Interrupt `times` runs of one session at random moments; return how the runs ended."""
    ends: Counter[str] = Counter()
    left: set[int] = (
        set()
    )  # runs whose threads or tasks may still call, or whose processes print: by design
    await driver(PRELUDE)
    for number in range(1, times + 1):
        name = chance.choice(list(BODIES))
        code = f"kept += 1\n{BODIES[name].format(n=number, s=0.5)}"
        recorder = RunRecorder()
        async with anyio.create_task_group() as tasks:

            async def interrupt() -> None:
                await anyio.sleep(chance.random() * 0.03)
                driver.link.stop_run("cancelled")

            tasks.start_soon(interrupt)
            with anyio.fail_after(60):
                done = await driver(code, recorder=recorder)
            tasks.cancel_scope.cancel()
        ends[done.status] += 1
        check_only(name, done, recorder, left | {number})
        if name in ("threads", "processes", "gathers"):
            left.add(number)
    return ends


def check_only(name: str, done: wire.RunDone, recorder: RunRecorder, own: set[int]) -> None:
    """Check that all a run said is its own, and that it ended in a way that keeps the session."""
    assert done.status in ("ok", "interrupted"), (name, done.error)
    assert done.usage is not None, (name, done.error)
    said = {
        int(line)
        for line in recorder.output_text().split() + recorder.output_text("stderr").split()
        if line.isdigit()
    }
    assert said <= own, name
    assert {
        call.args["n"] for call in recorder.calls if call.target != wire.ABANDON_TARGET
    } <= own, name


@pytest.mark.parametrize(
    ("backend_name", "sessions", "times"),
    [
        ("local", 4, choose_size("LOCAL_INTERRUPTS", short=25, long=1000)),
        ("docker", 2, choose_size("DOCKER_INTERRUPTS", short=25, long=300)),
    ],
)
async def test_interrupts_at_random_moments_lose_no_session_and_mix_up_no_runs(
    tmp_path: Path, backend_name: str, sessions: int, times: int
) -> None:
    backend = make_backend(backend_name, tmp_path)
    total: Counter[str] = Counter()

    async def one(seed: int) -> None:
        async with open_link(backend, make_setup(backend)) as link:
            driver = SandboxDriver(link)
            total.update(await hammer(driver, times, random.Random(seed)))
            kept = int(await driver.evaluate("kept"))
            assert kept > times / 2  # the others were interrupted before their first line
            assert link.restart_reasons == []

    async with anyio.create_task_group() as tasks:
        for seed in range(sessions):
            tasks.start_soon(one, seed)
    assert total["interrupted"] > sessions * times / 2


async def test_an_interrupt_before_the_code_starts_stops_it_as_well(
    run: SandboxDriver,
) -> None:
    await run("import time")
    for _ in range(50):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "time.sleep(60)")
            while run.link._execution is None:  # not begun, but asked for
                await anyio.lowlevel.checkpoint()
            run.link.stop_run("cancelled")
    assert run.link.restart_reasons == []
