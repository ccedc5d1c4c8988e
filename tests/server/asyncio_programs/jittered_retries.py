import asyncio
import random

from tools import ToolError
from tools.jittery import flaky, record

written, attempts = [], {}


async def fetch_with_retries(name):
    for attempt in range(1, 7):
        attempts[name] = attempt
        try:
            answer = await flaky.aio(item=name)
        except ToolError:
            await asyncio.sleep(random.uniform(0, 0.01) * attempt)
        else:
            await record.aio(item=f"{TAG}:{name}:{answer.serial}")
            written.append(f"{TAG}:{name}:{answer.serial}")
            return answer.serial
    return None


async def main():
    serials = await asyncio.gather(*(fetch_with_retries(f"page{n}") for n in range(6)))
    print("attempts", attempts)
    return {"written": written, "serials": serials}


result = asyncio.run(main())
