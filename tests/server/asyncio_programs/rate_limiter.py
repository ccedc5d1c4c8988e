import asyncio
import itertools
import random

from tools.jittery import fetch, record

written, starts = [], []


class RateLimiter:
    """At most `rate` starts a second, and `limit` at a time."""

    def __init__(self, rate, limit):
        self.interval = 1 / rate
        self.slots = asyncio.Semaphore(limit)
        self.next_start = 0.0

    async def __aenter__(self):
        await self.slots.acquire()
        loop = asyncio.get_running_loop()
        delay = self.next_start - loop.time()
        self.next_start = max(loop.time(), self.next_start) + self.interval
        if delay > 0:
            await asyncio.sleep(delay)
        starts.append(round(loop.time(), 4))

    async def __aexit__(self, *exc_info):
        self.slots.release()


async def visit(limiter, n):
    async with limiter:
        answer = await fetch.aio(item=f"visit{n}")
        await asyncio.sleep(random.random() / 200)
    await record.aio(item=f"{TAG}:{n}:{answer.serial}")
    written.append(f"{TAG}:{n}:{answer.serial}")


async def main():
    limiter = RateLimiter(rate=150, limit=3)
    await asyncio.gather(*(visit(limiter, n) for n in range(10)))
    print("gaps", [round(b - a, 4) for a, b in itertools.pairwise(starts)])
    return {"written": written, "starts": starts}


result = asyncio.run(main())
