import asyncio
import random

from tools.jittery import fetch, record

written = []


class Batcher:
    """Records what is added in batches of `size`, or after `window_s`."""

    def __init__(self, size, window_s):
        self.size, self.window_s = size, window_s
        self.queue = asyncio.Queue()

    async def run(self):
        loop = asyncio.get_running_loop()
        is_closed = False
        while not is_closed:
            batch = []
            deadline = None
            while len(batch) < self.size:
                timeout = None if deadline is None else max(0, deadline - loop.time())
                try:
                    item = await asyncio.wait_for(self.queue.get(), timeout)
                except asyncio.TimeoutError:
                    break
                if item is None:
                    is_closed = True
                    break
                deadline = deadline or loop.time() + self.window_s
                batch.append(item)
            if batch:
                await record.aio(item=f"{TAG}:" + ",".join(batch))
                written.append(f"{TAG}:" + ",".join(batch))


async def feed(batcher, name):
    for n in range(7):
        answer = await fetch.aio(item=f"{name}{n}")
        await batcher.queue.put(f"{name}{n}.{answer.serial}")
        await asyncio.sleep(random.expovariate(250))


async def main():
    batcher = Batcher(size=4, window_s=0.009)
    running = asyncio.create_task(batcher.run())
    await asyncio.gather(feed(batcher, "a"), feed(batcher, "b"))
    await batcher.queue.put(None)
    await running
    print("sizes", [item.count(",") + 1 for item in written])
    return {"written": written}


result = asyncio.run(main())
