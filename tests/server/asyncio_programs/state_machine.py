import asyncio
import random

from tools.jittery import fetch, record

written, transitions = [], []


class Door:
    """Opens on a knock, closes by a timer, and locks when asked to while it is closed."""

    def __init__(self):
        self.state, self.timer = "closed", None
        self.changed, self.is_locked = asyncio.Condition(), asyncio.Event()

    async def move(self, state, why):
        async with self.changed:
            transitions.append(f"{self.state} -> {state}: {why}")
            self.state = state
            self.changed.notify_all()
            item = f"{TAG}:{len(transitions)}:{state}:{why}"
        await record.aio(item=item)
        written.append(item)

    async def knock(self, who):
        answer = await fetch.aio(item=who)
        if self.state == "closed":
            await self.move("open", f"{who} {answer.serial}")
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(random.uniform(0.002, 0.01), self.close_soon)
        else:
            transitions.append(f"{who} found it {self.state}")

    def close_soon(self):
        self.closing = asyncio.ensure_future(self.move("closed", "timer"))

    async def lock(self):
        async with self.changed:
            await self.changed.wait_for(lambda: self.state == "closed" and len(transitions) > 5)
        await self.move("locked", "asked to")
        self.is_locked.set()


async def visitor(door, name):
    for n in range(3):
        await asyncio.sleep(random.uniform(0, 0.012))
        await door.knock(f"{name}{n}")


async def main():
    door = Door()
    locking = asyncio.create_task(door.lock())
    await asyncio.gather(*(visitor(door, name) for name in ("ann", "bob", "eve")))
    await asyncio.sleep(0.03)
    if not door.is_locked.is_set():
        locking.cancel()
    outcome = (await asyncio.gather(locking, return_exceptions=True))[0]
    print("\n".join(transitions))
    return {"written": written, "transitions": transitions, "outcome": repr(outcome)}


result = asyncio.run(main())
