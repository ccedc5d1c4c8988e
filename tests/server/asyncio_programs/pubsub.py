import asyncio
import random
from collections import defaultdict

from tools.jittery import fetch, record

written, received = [], []


class Broker:
    def __init__(self):
        self.queues = defaultdict(set)

    def subscribe(self, topic):
        queue = asyncio.Queue()
        self.queues[topic].add(queue)
        return queue

    def publish(self, topic, message):
        for queue in self.queues[topic]:
            queue.put_nowait(message)


async def subscriber(name, queue):
    while (message := await queue.get()) is not None:
        await asyncio.sleep(random.uniform(0, 0.004))
        received.append(f"{name} got {message}")
        if name == "archive":
            await record.aio(item=f"{TAG}:{message}")
            written.append(f"{TAG}:{message}")


async def publisher(broker, topic):
    for n in range(4):
        answer = await fetch.aio(item=f"{topic}{n}")
        await asyncio.sleep(random.uniform(0, 0.005))
        broker.publish(topic, f"{topic}{n}#{answer.serial}")
    broker.publish(topic, None)


async def main():
    broker = Broker()
    async with asyncio.TaskGroup() as group:
        for topic in ("news", "sport"):
            for name in ("archive", "mail"):
                group.create_task(subscriber(name, broker.subscribe(topic)))
            group.create_task(publisher(broker, topic))
    print("\n".join(received))
    return {"written": written, "received": received}


result = asyncio.run(main())
