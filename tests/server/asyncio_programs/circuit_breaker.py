import asyncio
import random

from tools import ToolError
from tools.jittery import flaky, record

written, states = [], []


class CircuitOpen(Exception):
    pass


class CircuitBreaker:
    def __init__(self, max_failures, reset_s):
        self.max_failures, self.reset_s = max_failures, reset_s
        self.failures, self.opened_at = 0, None

    async def call(self, function, **arguments):
        loop = asyncio.get_running_loop()
        if self.opened_at is not None:
            if loop.time() - self.opened_at < self.reset_s:
                raise CircuitOpen
            states.append("half-open")
            self.opened_at = None
        try:
            answer = await function(**arguments)
        except ToolError:
            self.failures += 1
            if self.failures >= self.max_failures:
                states.append("open")
                self.opened_at = loop.time()
            raise
        self.failures = 0
        return answer


async def client(breaker, name):
    for n in range(6):
        try:
            answer = await breaker.call(flaky.aio, item=f"{name}{n}")
        except CircuitOpen:
            states.append(f"{name}{n} refused")
        except ToolError:
            states.append(f"{name}{n} failed")
        else:
            await record.aio(item=f"{TAG}:{name}{n}:{answer.serial}")
            written.append(f"{TAG}:{name}{n}:{answer.serial}")
        await asyncio.sleep(random.uniform(0.001, 0.006))


async def main():
    breaker = CircuitBreaker(max_failures=2, reset_s=0.01)
    await asyncio.gather(*(client(breaker, name) for name in "abc"))
    print(" ".join(states))
    return {"written": written, "states": states}


result = asyncio.run(main())
