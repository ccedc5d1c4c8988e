import asyncio
import contextlib
import random
from datetime import datetime

from tools.jittery import fetch, record

written, beats = [], []


async def heartbeat(period_s):
    while True:
        await asyncio.sleep(period_s)
        beats.append(datetime.now().isoformat())


@contextlib.asynccontextmanager
async def with_heartbeat(period_s):
    task = asyncio.create_task(heartbeat(period_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def main():
    async with with_heartbeat(0.005):
        for n in range(6):
            answer = await fetch.aio(item=f"work{n}")
            await asyncio.sleep(random.uniform(0, 0.012))
            item = f"{TAG}:{n}:{answer.serial}:after {len(beats)} beats"
            await record.aio(item=item)
            written.append(item)
    print("\n".join(beats))
    return {"written": written, "beats": len(beats)}


result = asyncio.run(main())
