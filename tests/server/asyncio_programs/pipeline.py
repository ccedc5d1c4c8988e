import asyncio
import random

from tools.jittery import fetch, record

END = object()
written, trace = [], []


async def extract(output):
    for n in range(8):
        answer = await fetch.aio(item=f"row{n}")
        trace.append(f"extracted {n}")
        await output.put((n, answer.serial))
    await output.put(END)


async def transform(source, output):
    async def one(n, serial):
        await asyncio.sleep(random.uniform(0, 0.01))
        trace.append(f"transformed {n}")
        await output.put((n, serial * 2))

    async with asyncio.TaskGroup() as group:
        while (row := await source.get()) is not END:
            group.create_task(one(*row))
    await output.put(END)


async def load(source):
    while (row := await source.get()) is not END:
        n, doubled = row
        await record.aio(item=f"{TAG}:{n}:{doubled}")
        written.append(f"{TAG}:{n}:{doubled}")
        trace.append(f"loaded {n}")


async def main():
    raw, ready = asyncio.Queue(2), asyncio.Queue(2)
    await asyncio.gather(extract(raw), transform(raw, ready), load(ready))
    print("\n".join(trace))
    return {"written": written, "trace": trace}


result = asyncio.run(main())
