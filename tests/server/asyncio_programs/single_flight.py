import asyncio
import random

from tools.jittery import fetch, record

written = []


class Cache:
    """Asks once for each key, however many wait for it; entries expire."""

    def __init__(self, lifetime_s):
        self.lifetime_s = lifetime_s
        self.entries, self.hits, self.misses = {}, 0, 0

    async def get(self, key):
        loop = asyncio.get_running_loop()
        entry = self.entries.get(key)
        if entry is not None and loop.time() < entry[0]:
            self.hits += 1
            return await asyncio.shield(entry[1])
        self.misses += 1
        future = loop.create_future()
        self.entries[key] = loop.time() + self.lifetime_s, future
        answer = await fetch.aio(item=key)
        future.set_result(answer.serial)
        return answer.serial


async def reader(cache, name):
    seen = []
    for _ in range(5):
        key = random.choice("xyz")
        seen.append(f"{key}{await cache.get(key)}")
        await asyncio.sleep(random.uniform(0, 0.008))
    await record.aio(item=f"{TAG}:{name}:{'-'.join(seen)}")
    written.append(f"{TAG}:{name}:{'-'.join(seen)}")


async def main():
    cache = Cache(lifetime_s=0.012)
    await asyncio.gather(*(reader(cache, f"reader{n}") for n in range(5)))
    print(cache.hits, "hits", cache.misses, "misses")
    return {"written": written, "hits": cache.hits}


result = asyncio.run(main())
