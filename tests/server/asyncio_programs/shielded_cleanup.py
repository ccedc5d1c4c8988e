import asyncio
import random

from tools.jittery import fetch, record

written, log, cleanups = [], [], []


async def release(name):
    await record.aio(item=f"{TAG}:released {name}")
    written.append(f"{TAG}:released {name}")
    log.append(f"released {name}")


async def acquire(name):
    await record.aio(item=f"{TAG}:acquired {name}")
    written.append(f"{TAG}:acquired {name}")
    return name


async def use_resource(name):
    try:
        for n in range(9):
            answer = await fetch.aio(item=f"{name}{n}")
            log.append(f"{name} used {n} {answer.serial}")
            await asyncio.sleep(random.uniform(0, 0.01))
    finally:
        cleanups.append(asyncio.create_task(release(name)))
        await asyncio.shield(cleanups[-1])


async def main():
    names = await asyncio.gather(*map(acquire, ("disk", "lock", "port")))
    tasks = [asyncio.create_task(use_resource(name)) for name in names]
    await asyncio.sleep(0.025)
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*cleanups)
    print("\n".join(log))
    return {"written": written, "outcomes": [type(each).__name__ for each in outcomes]}


result = asyncio.run(main())
