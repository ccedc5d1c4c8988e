import asyncio
import itertools
import random

from tools.jittery import fetch, record

written, handled = [], []
numbers = itertools.count()


async def submit(queue, name):
    for n in range(5):
        await asyncio.sleep(random.uniform(0, 0.005))
        await queue.put((random.randint(0, 3), next(numbers), f"{name}{n}"))


async def work(queue, number):
    while True:
        priority, _, job = await queue.get()
        try:
            answer = await fetch.aio(item=job)
            handled.append(f"{job} p{priority} by {number}")
            if priority == 0:
                await record.aio(item=f"{TAG}:{job}:{answer.serial}")
                written.append(f"{TAG}:{job}:{answer.serial}")
        finally:
            queue.task_done()


async def main():
    queue = asyncio.PriorityQueue()
    workers = [asyncio.create_task(work(queue, number)) for number in range(2)]
    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(submit(queue, name))
    await asyncio.wait_for(queue.join(), 20)
    for worker in workers:
        worker.cancel()
    print("\n".join(handled))
    return {"written": written, "handled": handled}


result = asyncio.run(main())
