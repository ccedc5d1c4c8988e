import asyncio
import random
import uuid

from tools.jittery import fetch, record

written, log = [], []


async def worker(name, jobs, results):
    while jobs:
        job = jobs.pop(0)
        answer = await fetch.aio(item=job)
        await asyncio.sleep(random.betavariate(1, 3) / 80)
        log.append(f"{name} finished {job}")
        results[job] = answer.serial
        if random.random() < 0.5:
            item = f"{TAG}:{job}:{answer.serial}:{name}:{uuid.uuid4().hex[:6]}"
            await record.aio(item=item)
            written.append(item)


async def main():
    jobs, results = [f"job{n}" for n in range(14)], {}
    await asyncio.gather(*(worker(f"w{n}", jobs, results) for n in range(4)))
    print("\n".join(log))
    return {"written": written, "order": list(results), "log": log}


result = asyncio.run(main())
