import asyncio
import random

from tools.jittery import fetch, record

written = []


async def slow_fetch(name):
    await asyncio.sleep(random.uniform(0, 0.012))
    return (await fetch.aio(item=name)).serial


async def fetch_or_default(n):
    try:
        if n % 2:
            serial = await asyncio.wait_for(slow_fetch(f"w{n}"), timeout=0.012)
        else:
            async with asyncio.timeout(0.012):
                serial = await slow_fetch(f"t{n}")
    except (asyncio.TimeoutError, TimeoutError):
        serial = None
    await record.aio(item=f"{TAG}:{n}:{serial}")
    written.append(f"{TAG}:{n}:{serial}")
    return serial


async def main():
    serials = await asyncio.gather(*(fetch_or_default(n) for n in range(10)))
    print(sum(serial is None for serial in serials), "timed out")
    return {"written": written, "serials": serials}


result = asyncio.run(main())
