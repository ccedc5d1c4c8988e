import asyncio
import random

from tools.jittery import fetch, record

written, events = [], []


class OutOfStock(Exception):
    pass


async def order(n, stock):
    try:
        await asyncio.sleep(random.uniform(0, 0.01))
        answer = await fetch.aio(item=f"order{n}")
        if stock and answer.serial % stock == 0:
            raise OutOfStock(f"order{n} at {answer.serial}")
        await asyncio.sleep(random.uniform(0, 0.01))
        events.append(f"done {n}")
    except asyncio.CancelledError:
        events.append(f"cancelled {n}")
        raise


async def main():
    failures = []
    for stock in (5, 0):
        try:
            async with asyncio.TaskGroup() as group:
                for n in range(6):
                    group.create_task(order(n, stock))
        except* OutOfStock as caught:
            failures += [str(each) for each in caught.exceptions]
        item = f"{TAG}:{stock}:{len(events)}:{len(failures)}"
        await record.aio(item=item)
        written.append(item)
    print("\n".join(events))
    return {"written": written, "events": events, "failures": failures}


result = asyncio.run(main())
