import asyncio
import random

from tools.jittery import fetch, record

written = []


class Debouncer:
    """Saves the last value, once nothing has changed for a while."""

    def __init__(self, wait_s):
        self.wait_s = wait_s
        self.timer = None
        self.saves = set()

    def change(self, value):
        if self.timer is not None:
            self.timer.cancel()
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(self.wait_s, self.start_save, value)

    def start_save(self, value):
        task = asyncio.create_task(self.save(value))
        self.saves.add(task)

    async def save(self, value):
        await record.aio(item=f"{TAG}:{value}")
        written.append(f"{TAG}:{value}")


async def main():
    debouncer = Debouncer(0.008)
    for n in range(14):
        debouncer.change(f"draft{n}")
        if n % 3 == 0:
            answer = await fetch.aio(item=f"key{n}")
            debouncer.change(f"draft{n}.{answer.serial}")
        await asyncio.sleep(random.choice((0.001, 0.005, 0.014)))
    await asyncio.sleep(0.03)
    await asyncio.gather(*debouncer.saves)
    print(len(written), "saves for 14 drafts")
    return {"written": written}


result = asyncio.run(main())
