import asyncio
import random

from tools import ToolError
from tools.jittery import flaky, record

written = []


async def check(host):
    await asyncio.sleep(random.expovariate(300))
    answer = await flaky.aio(item=host)
    await record.aio(item=f"{TAG}:{host}:{answer.serial}")
    written.append(f"{TAG}:{host}:{answer.serial}")
    return answer.serial


async def main():
    hosts = [f"host{n}" for n in range(10)]
    outcomes = await asyncio.gather(*map(check, hosts), return_exceptions=True)
    report = {
        host: f"down: {outcome}" if isinstance(outcome, ToolError) else outcome
        for host, outcome in zip(hosts, outcomes, strict=True)
    }
    for host, state in report.items():
        print(host, state)
    try:
        await asyncio.gather(*(flaky.aio(item=f"again{n}") for n in range(6)))
        first_error = None
    except ToolError as error:
        first_error = str(error)
    return {"written": written, "report": report, "first_error": first_error}


result = asyncio.run(main())
