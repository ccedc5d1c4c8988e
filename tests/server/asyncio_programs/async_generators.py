import asyncio
import random
from contextlib import aclosing

from tools.jittery import fetch, record

written, log = [], []


async def pages(source):
    try:
        for n in range(6):
            answer = await fetch.aio(item=f"{source}{n}")
            await asyncio.sleep(random.uniform(0, 0.004))
            yield source, n, answer.serial
    finally:
        log.append(f"closed {source}")


async def merge(*streams):
    """Yield from several streams whatever comes first."""
    waiting = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                stream = waiting.pop(task)
                try:
                    yield task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(stream))] = stream
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def main():
    async with aclosing(merge(pages("a"), pages("b"), pages("c"))) as merged:
        async for source, n, serial in merged:
            log.append(f"{source}{n}")
            if n == 2:
                await record.aio(item=f"{TAG}:{source}:{serial}")
                written.append(f"{TAG}:{source}:{serial}")
            if len(log) == 13:
                break
    serials = [serial async for _, n, serial in pages("d") if n % 2]
    print(" ".join(log))
    return {"written": written, "log": log, "serials": serials}


result = asyncio.run(main())
