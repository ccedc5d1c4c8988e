import asyncio
import random

from tools.jittery import fetch, record

written = []
MIRRORS = ["oslo", "lima", "kyoto", "accra"]


async def ask_mirror(mirror, n):
    await asyncio.sleep(random.uniform(0, 0.004))
    answer = await fetch.aio(item=f"{mirror}{n}")
    return mirror, answer.serial


async def race(n):
    tasks = {asyncio.create_task(ask_mirror(mirror, n), name=mirror) for mirror in MIRRORS}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    print(n, "done", [task.get_name() for task in done], "lost", [t.get_name() for t in pending])
    return next(iter(done)).result()


async def main():
    winners = []
    for n in range(5):
        mirror, serial = await race(n)
        winners.append(mirror)
        await record.aio(item=f"{TAG}:{n}:{mirror}:{serial}")
        written.append(f"{TAG}:{n}:{mirror}:{serial}")
    return {"written": written, "winners": winners}


result = asyncio.run(main())
