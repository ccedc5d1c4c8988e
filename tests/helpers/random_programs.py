"""Random programs that read and write, where what is written depends on what was read.

A program makes calls of the upstream `witness`, each with an item of its own, and its value lists
them with their answers. Equal seeds give equal programs.
"""

from __future__ import annotations

import random

PRELUDE = """\
import asyncio, random, time, uuid
import tools
from tools.witness import add, find, look, put
made, last = [], 0
def keep(tool, item, answer):
    made.append([tool.__name__, item, answer])
    return answer
def do(tool, *parts):
    item = ":".join(map(str, (TAG, *parts)))
    return keep(tool, item, int(tool(item=item)))
async def do_async(tool, *parts):
    item = ":".join(map(str, (TAG, *parts)))
    return keep(tool, item, int(await tool.aio(item=item)))
async def pair(first, second, *parts):
    return await do_async(second, *parts, "w", await do_async(first, *parts, "r"))
def total(slots):
    assert all(slot.ok for slot in slots), [slot.error for slot in slots]
    return sum(slot.value for slot in slots)
"""
READS = ("find", "find", "look")
WRITES = ("put", "put", "add")
ONE_BY_ONE = {  # N is the number of the statement, R a reading tool, W a writing one
    "read": "last = do(R, N, last)",
    "write": "do(W, N, last)",
    "pair": "do(W, N, 'w', do(R, N, 'r'))",
    "branch": "do(put if last % 2 else add, N, last)",
    "loop": "for k in range(4):\n    last = do(R, N, k, 'r', last)\n    do(W, N, k, 'w', last)",
    "reads": "for k in range(5):\n    last = do(find, N, k, last)",
    "puts": "for k in range(5):\n    last = do(put, N, k, last)",
    "clock": "do(W, N, last, time.time_ns(), uuid.uuid4().hex, random.random())",
    "output": "print('N', last, flush=True)\ndo(W, N, last)",
    "file": "open('log', 'a').write(str(last))\ndo(W, N, last, len(open('log').read()))",
}
AT_ONCE = {
    "map": "last = total(tools.map(lambda k: do(W, N, k, last), range(5)))",
    "map pairs": (
        "last = total(tools.map(lambda k: do(W, N, k, 'w', do(R, N, k, 'r')), range(4)))"
    ),
    "gather": "last = sum(await asyncio.gather(*(do_async(R, N, k, last) for k in range(5))))",
    "jitter": (
        "async def late(k):\n"
        "    await asyncio.sleep(random.random() / 100)\n"
        "    return await do_async(R, N, k)\n"
        "for done in asyncio.as_completed([late(k) for k in range(4)]):\n"
        "    last = await done\n"
        "    await do_async(W, N, 'w', last)"
    ),
    "gather pairs": "last = sum(await asyncio.gather(*(pair(R, W, N, k) for k in range(4))))",
}


def write_program(tag: str, seed: str, *, is_sequential: bool) -> str:
    """Return a program that names its calls after `tag`."""
    draw = random.Random(seed)
    kinds = ONE_BY_ONE if is_sequential else ONE_BY_ONE | AT_ONCE
    lines = [f"TAG = {tag!r}", PRELUDE]
    for number in range(draw.randint(12, 24)):
        statement = kinds[draw.choice(list(kinds))]
        for name, tools in (("R", READS), ("W", WRITES)):
            statement = statement.replace(f"({name},", f"({draw.choice(tools)},")
            statement = statement.replace(f", {name},", f", {draw.choice(tools)},")
        lines.append(statement.replace("N", str(number)))
    return "\n".join([*lines, "made"])
