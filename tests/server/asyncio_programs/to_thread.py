import asyncio
import random
import time

from tools.jittery import fetch, record

written, order = [], []


def blocking_work(n, delay_s):
    """What a library without asyncio does: it sleeps and asks in a thread."""
    time.sleep(delay_s)
    return fetch(item=f"blocking{n}").serial


async def process(n):
    serial = await asyncio.to_thread(blocking_work, n, random.uniform(0, 0.015))
    order.append(n)
    await asyncio.sleep(random.uniform(0, 0.005))
    await record.aio(item=f"{TAG}:{n}:{serial}")
    written.append(f"{TAG}:{n}:{serial}")
    return serial


async def main():
    loop = asyncio.get_running_loop()
    serials = await asyncio.gather(*(process(n) for n in range(8)))
    waiting = {loop.run_in_executor(None, time.sleep, random.uniform(0, 0.01)) for _ in range(4)}
    rounds = []
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        rounds.append(len(done))
    print("order", order, "rounds", rounds)
    return {"written": written, "serials": serials}


result = asyncio.run(main())
