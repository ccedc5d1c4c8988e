import asyncio
import random

from tools.jittery import fetch, record

written = []


async def download(n):
    answer = await fetch.aio(item=f"file{n}")
    await asyncio.sleep(random.uniform(0, 0.02))
    return n, answer.serial


async def main():
    order = []
    for place, finished in enumerate(asyncio.as_completed([download(n) for n in range(12)])):
        n, serial = await finished
        order.append(n)
        print(f"{place}. file{n} {serial}")
        if place % 3 == 0:
            await record.aio(item=f"{TAG}:{place}:{n}:{serial}")
            written.append(f"{TAG}:{place}:{n}:{serial}")
    return {"written": written, "order": order}


result = asyncio.run(main())
