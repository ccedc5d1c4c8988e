"""A background job: start it, do something else, look at it, and get its result later.

A run belongs to its session, not to the request that started it. The second job is stopped.
Expect progress while other code runs at the same time, then the result, then a cancelled run.
"""

from __future__ import annotations

import anyio

from example_settings import example_settings
from mcpruntime_server import embed_runtime

JOB = """
import time

for part in range(1, 4):
    time.sleep(0.7)
    print(f"part {part} of 3", flush=True)
"built"
"""


async def main() -> None:
    """Start a job, use another session meanwhile, and wait for the job."""
    with example_settings() as config:
        async with embed_runtime(config) as runtime:
            job = await runtime.session("build").start(JOB)
            print(f"started {job.run}: {job.status}")

            meanwhile = await runtime.session("other").run("sum(range(1_000_000))")
            print("meanwhile, in another session:", meanwhile.value)

            first = await runtime.wait(job.run, wait_s=1.5)
            print(f"a look at it: {first.status}, so far {first.stdout.splitlines()}")
            last = await runtime.wait(job.run)
            print(f"at the end: {last.status}, new since then {last.stdout.splitlines()}")
            print("its value:", last.value)

            endless = await runtime.session("build").start("while True: pass")
            stopped = await runtime.cancel(endless.run)
            print(f"an endless run: {stopped.status}")
            print("the session works:", (await runtime.session("build").run("part")).value)


if __name__ == "__main__":
    anyio.run(main)
