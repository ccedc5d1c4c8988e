"""The event loop of sandboxed code: programs are run once, and again with what was recorded.

Each run is a process of its own. The replay must observe the same although the machine is slower or
faster; where a sleep decided the order, it must not need the time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

START = """
import asyncio, json, socket, sys, types
from mcpruntime_server.sandboxed.kernel import determinism
randomness, clocks = determinism.install_determinism()
left, right = socket.socketpair()
channel = types.SimpleNamespace(sock=left, read_available=lambda: None)
from mcpruntime_server.sandboxed.kernel import event_loop
event_loop.install_event_loop(clocks, channel)
randomness.reseed("seed")
recorded = json.loads(sys.argv[1])
clocks.start_run(recorded)
seen = []
"""
END = """
print(json.dumps([seen, clocks.take_readings()]))
"""


def run_program(code: str, recorded: Any = None, python: str = sys.executable) -> tuple[Any, Any]:
    """Return what a program has seen and the readings of its run."""
    done = subprocess.run(
        [python, "-c", f"{START}{code}{END}", json.dumps(recorded or {})],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert done.returncode == 0, done.stderr
    seen, readings = json.loads(done.stdout)
    return seen, readings


PROGRAMS = {
    "timers and the clock": """
import random
async def nap(n):
    await asyncio.sleep(random.uniform(0, 0.02))
    seen.append([n, asyncio.get_running_loop().time()])
async def main():
    await asyncio.gather(*map(nap, range(20)))
asyncio.run(main())
""",
    "jobs in threads": """
import time, uuid
def work(n, delay_s):
    time.sleep(delay_s)
    return [n, time.time(), str(uuid.uuid4())]
async def main():
    loop = asyncio.get_running_loop()
    jobs = {loop.run_in_executor(None, work, n, (n * 7 % 5) / 200) for n in range(12)}
    while jobs:
        done, jobs = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        seen.append([job.result() for job in done])
asyncio.run(main())
""",
    "a thread that talks to the loop": """
import threading, time
async def main():
    loop, queue = asyncio.get_running_loop(), asyncio.Queue()
    def talk():
        for n in range(10):
            time.sleep(0.003)
            loop.call_soon_threadsafe(queue.put_nowait, n)
    async def tick():
        while True:
            await asyncio.sleep(0.002)
            seen.append("tick")
    ticking = asyncio.ensure_future(tick())
    thread = threading.Thread(target=talk)
    thread.start()
    for _ in range(10):
        seen.append(await queue.get())
    ticking.cancel()
asyncio.run(main())
""",
    "a loop in a thread": """
import random, threading
loop = asyncio.new_event_loop()
thread = threading.Thread(target=loop.run_forever)
thread.start()
async def nap(n):
    await asyncio.sleep(random.Random(n).uniform(0, 0.01))
    seen.append([n, loop.time()])
for waiting in [asyncio.run_coroutine_threadsafe(nap(n), loop) for n in range(5)]:
    waiting.result()
loop.call_soon_threadsafe(loop.stop)
thread.join()
loop.close()
""",
    "several loops one after another": """
async def main(n):
    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.sleep(0.003 * n)
    seen.append([n, loop.time() - started])
for n in range(3):
    asyncio.run(main(n))
""",
    "a server on a socket": """
import os, random, tempfile
async def serve(reader, writer):
    while True:
        line = await reader.readline()
        if not line:
            break
        await asyncio.sleep(random.uniform(0, 0.004))
        writer.write(line.upper())
        await writer.drain()
    writer.close()
async def ask(path, name):
    reader, writer = await asyncio.open_unix_connection(path)
    for n in range(4):
        writer.write(f"{name}{n}\\n".encode())
        seen.append((await reader.readline()).decode())
    writer.close()
    await writer.wait_closed()
async def main():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s")
        server = await asyncio.start_unix_server(serve, path)
        await asyncio.gather(*(ask(path, name) for name in "abc"))
        server.close()
        await server.wait_closed()
asyncio.run(main())
""",
    "pieces of a process's output": """
CHILD = "import sys, time\\nfor n in range(8): print('x' * n * 1000, flush=True); time.sleep(0.002)"
async def main():
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, stdout=asyncio.subprocess.PIPE)
    while True:
        piece = await child.stdout.read(100_000)
        seen.append(len(piece))
        if not piece:
            break
    seen.append(await child.wait())
asyncio.run(main())
""",
    "timeouts, cancellation and what wins": """
import random
async def work(n):
    try:
        await asyncio.sleep(random.uniform(0, 0.01))
        return n
    except asyncio.CancelledError:
        seen.append(f"cancelled {n}")
        raise
async def main():
    for n in range(12):
        try:
            seen.append(await asyncio.wait_for(work(n), 0.005))
        except asyncio.TimeoutError:
            seen.append("timeout")
    for first in asyncio.as_completed([work(n) for n in range(12)]):
        seen.append(await first)
asyncio.run(main())
""",
    "a callback about a future that is done": """
import threading
async def main():
    loop = asyncio.get_running_loop()
    done, other = loop.create_future(), loop.create_future()
    done.set_result("done")
    def tell(future):
        seen.append(future.result())
        other.set_result(None)
    threading.Thread(target=lambda: loop.call_soon_threadsafe(tell, done)).start()
    await other
asyncio.run(main())
""",
    "sets of queues": """
async def main():
    queues = {asyncio.Queue() for _ in range(30)}
    for n, queue in enumerate(queues):
        queue.put_nowait(n)
    ordered = sorted(queues, key=lambda queue: queue._replay_number)
    seen.extend([queue.get_nowait() for queue in ordered])
asyncio.run(main())
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_replay_observes_the_same_and_records_the_same(name: str) -> None:
    seen, readings = run_program(PROGRAMS[name])
    assert seen
    for _ in range(2):
        assert run_program(PROGRAMS[name], readings) == (seen, readings)


def find_python(version: str) -> str:
    """Return an interpreter of another version; skips the test if there is none."""
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    found = str(installed[-1]) if installed else shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"Python {version} is not installed")
    return found


@pytest.mark.parametrize("version", ["3.9", "3.13"])
def test_the_oldest_and_the_newest_python_repeat_the_programs(version: str) -> None:
    python = find_python(version)
    for name, code in PROGRAMS.items():
        seen, readings = run_program(code, python=python)
        assert run_program(code, readings, python=python) == (seen, readings), name


# where a trace ends -------------------------------------------------------------------------------

SLEEPS = """
PAUSE_S = 0.03
async def main():
    loop = asyncio.get_running_loop()
    for n in range(4):
        await asyncio.sleep(PAUSE_S)
        seen.append(loop.time())
asyncio.run(main())
"""


def test_a_replay_does_not_sleep() -> None:
    _, readings = run_program(SLEEPS)
    hours = [value * 10**6 if at % 3 == 2 else value for at, value in enumerate(readings["loop1"])]
    seen, _ = run_program(SLEEPS.replace("0.03", "3_600"), {"loop1": hours})
    assert seen[3] - seen[0] >= 3 * 3_600


def test_the_clock_continues_without_a_jump_where_a_trace_ends() -> None:
    _, readings = run_program(SLEEPS)
    trace = readings["loop1"]
    in_past = [1_000 if at == 2 else value for at, value in enumerate(trace)]  # of another machine
    for length in range(3, len(trace), 3):
        again, recorded_again = run_program(SLEEPS, {"loop1": in_past[:length]})
        assert recorded_again["loop1"][:length] == in_past[:length]
        assert again == sorted(again)
        assert 1.0 < again[3] < 60, again


def test_a_trace_is_bounded() -> None:
    code = """
determinism.MAX_WAKE_UPS = 500
clocks.start_run(recorded)
async def main():
    loop = asyncio.get_running_loop()
    for n in range(300_000):
        loop.call_later(n / 1e6, int)
    while loop.time() < end:
        await asyncio.sleep(0)
end = asyncio.new_event_loop().time() + 1.5
asyncio.run(main())
seen.append("end")
"""
    seen, readings = run_program(code)
    assert seen == ["end"]
    assert sum(map(len, readings.values())) <= 3 * 500


@pytest.mark.parametrize(
    "trace",
    [
        ["x", None, {}],
        [1, 2],
        [-5, 0, 5],
        [1, 0, -(10**9)],
        [1, 99, 1],
        [1, 1, 7],
        [2, 2, 7],
        [2, 3, 7],
        [2, 4, 12345],
        [2, 4, -1],
        [0, 5, 0] * 50,
        [10**18, 5, 0],
        [1, 0, 10**17],
    ],
)
def test_a_forged_trace_stops_nothing(trace: list[Any]) -> None:
    seen, _ = run_program(SLEEPS, {"loop1": trace, "loop": trace, "loop1@x": trace})
    assert len(seen) == 4


def test_a_loop_of_another_class_stays_what_it_is() -> None:
    code = """
import selectors
class OwnLoop(asyncio.selector_events.BaseSelectorEventLoop):
    def _process_self_data(self, data): pass
class Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = OwnLoop
asyncio.set_event_loop_policy(Policy())
async def main():
    await asyncio.sleep(0.001)
    seen.append(type(asyncio.get_running_loop()).__name__)
asyncio.run(main())
"""
    assert run_program(code) == (["OwnLoop"], {})


# threads ------------------------------------------------------------------------------------------


def test_what_an_item_of_tools_map_observes_depends_on_the_item_alone() -> None:
    code = """
import random, time, uuid
from mcpruntime_server.sandboxed.library.results import map_concurrently
def work(n):
    time.sleep(PAUSES[n])
    return [n, time.time(), str(uuid.uuid4()), random.Random().random()]
slots = map_concurrently(work, range(12), max_concurrency=3)
seen.extend(slot.value for slot in slots)
"""
    forwards = f"PAUSES = {[n / 200 for n in range(12)]}"
    backwards = f"PAUSES = {[(11 - n) / 200 for n in range(12)]}"
    seen, readings = run_program(f"{forwards}{code}")
    assert len(readings) == 12
    assert run_program(f"{backwards}{code}", readings) == (seen, readings)


def test_what_a_job_of_a_thread_pool_observes_depends_on_the_job_alone() -> None:
    code = """
import time, uuid
from concurrent.futures import ThreadPoolExecutor
def work(n):
    time.sleep(PAUSES[n])
    return [n, time.time(), str(uuid.uuid4())]
with ThreadPoolExecutor(3) as pool:
    seen.extend(pool.map(work, range(9)))
"""
    forwards = f"PAUSES = {[n / 200 for n in range(9)]}"
    backwards = f"PAUSES = {[(8 - n) / 200 for n in range(9)]}"
    seen, readings = run_program(f"{forwards}{code}")
    assert run_program(f"{backwards}{code}", readings) == (seen, readings)
