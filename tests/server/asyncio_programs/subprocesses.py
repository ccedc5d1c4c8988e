import asyncio
import random
import sys

from tools.jittery import fetch, record

written, lines = [], []
CHILD = """
import sys, time
for n in range(4):
    print(sys.argv[1], n, flush=True)
    time.sleep(0.004 * (1 + len(sys.argv[1]) % 3))
sys.exit(len(sys.argv[1]))
"""


async def follow(name):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, name, stdout=asyncio.subprocess.PIPE
    )
    async for line in process.stdout:
        lines.append(line.decode().strip())
        if line.endswith(b" 2\n"):
            answer = await fetch.aio(item=name)
            item = f"{TAG}:{name}:{answer.serial}:after {len(lines)} lines"
            await record.aio(item=item)
            written.append(item)
    return name, await process.wait()


async def tick():
    while True:
        await asyncio.sleep(random.uniform(0.001, 0.008))
        lines.append("tick")


async def main():
    ticking = asyncio.create_task(tick())
    codes = await asyncio.gather(*map(follow, ("one", "three", "seventy")))
    ticking.cancel()
    print("\n".join(lines))
    return {"written": written, "codes": codes, "lines": lines}


result = asyncio.run(main())
