import asyncio
import random

from tools.jittery import fetch, record

written, sizes = [], []


async def produce(queue, name):
    for n in range(4):
        await asyncio.sleep(random.uniform(0, 0.006))
        answer = await fetch.aio(item=f"{name}{n}")
        await queue.put((name, n, answer.serial))
        sizes.append(queue.qsize())


async def consume(queue, number):
    while True:
        name, n, serial = await queue.get()
        await record.aio(item=f"{TAG}:{name}{n}:{serial}:by{number}")
        written.append(f"{TAG}:{name}{n}:{serial}:by{number}")
        queue.task_done()


async def main():
    queue = asyncio.Queue(maxsize=3)
    consumers = [asyncio.create_task(consume(queue, n)) for n in range(3)]
    await asyncio.gather(produce(queue, "a"), produce(queue, "b"))
    await queue.join()
    for consumer in consumers:
        consumer.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)
    print("sizes", sizes)
    return {"written": written}


result = asyncio.run(main())
