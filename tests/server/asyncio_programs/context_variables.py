import asyncio
import contextvars
import random
import secrets

from tools.jittery import fetch, record

request_id = contextvars.ContextVar("request_id", default="-")
written, lines = [], []


def log(message):
    lines.append(f"[{request_id.get()}] {message}")


async def load_part(part):
    log(f"asks for {part}")
    answer = await fetch.aio(item=part)
    await asyncio.sleep(random.uniform(0, 0.006))
    log(f"has {part} {answer.serial}")
    return answer.serial


async def handle(n):
    request_id.set(f"{n}-{secrets.token_hex(2)}")
    log("started")
    parts = await asyncio.gather(load_part(f"user{n}"), load_part(f"cart{n}"))
    item = f"{TAG}:{request_id.get()}:{sum(parts)}"
    await record.aio(item=item)
    written.append(item)
    log("finished")


async def main():
    async with asyncio.TaskGroup() as group:
        for n in range(5):
            group.create_task(handle(n))
            await asyncio.sleep(random.uniform(0, 0.003))
    print("\n".join(lines))
    return {"written": written, "lines": len(lines)}


result = asyncio.run(main())
