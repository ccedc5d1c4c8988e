import asyncio
import time

from tools.jittery import fetch, record

written, polls = [], []


async def poll(job, period):
    """Ask every `period` seconds, without drift, until the answer is a multiple of 7."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        answer = await fetch.aio(item=job)
        polls.append((job, answer.serial, round(time.time(), 3)))
        if answer.serial % 7 == 0:
            return answer.serial
        due += period
        await asyncio.sleep(max(0, due - loop.time()))


async def main():
    started = time.monotonic()
    jobs = {
        name: asyncio.create_task(poll(name, period))
        for name, period in (("fast", 0.004), ("slow", 0.011))
    }
    for name, task in jobs.items():
        serial = await asyncio.wait_for(task, timeout=20)
        await record.aio(item=f"{TAG}:{name}:{serial}")
        written.append(f"{TAG}:{name}:{serial}")
    print(f"{len(polls)} polls in {time.monotonic() - started:.4f} s")
    return {"written": written, "polls": polls}


result = asyncio.run(main())
