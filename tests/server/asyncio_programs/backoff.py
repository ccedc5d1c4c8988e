import asyncio
import random
import time

from tools import ToolError
from tools.jittery import flaky, record

written, log = [], []


async def with_backoff(operation, *, base=0.002, cap=0.02, deadline_s=5.0):
    """Retry with exponential backoff and full jitter until the deadline."""
    started, attempt = time.monotonic(), 0
    while True:
        try:
            return await operation()
        except ToolError as error:
            attempt += 1
            delay = random.uniform(0, min(cap, base * 2**attempt))
            log.append((attempt, round(time.monotonic() - started, 4), str(error)))
            if time.monotonic() - started + delay > deadline_s:
                raise
            await asyncio.sleep(delay)


async def main():
    for n in range(4):
        answers = await asyncio.gather(
            with_backoff(lambda n=n: flaky.aio(item=f"left{n}")),
            with_backoff(lambda n=n: flaky.aio(item=f"right{n}")),
        )
        item = f"{TAG}:{n}:" + "+".join(str(answer.serial) for answer in answers)
        await record.aio(item=item)
        written.append(item)
    for line in log:
        print(*line)
    return {"written": written, "retries": len(log)}


result = asyncio.run(main())
