"""Rows about questions to a model: many at once, from code, against what is possible and against a direct client.

The model is `fake_llm`, which takes its time to answer and no processor. A direct client with the same questions in the
same run shows what it, HTTP and the machine leave of the ideal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import aiohttp
import anyio

import fake_llm
from harness import Ours, Row, in_turns, our_server
from rows import Bench, numbers

QUESTIONS = 1_000
AT_ONCE = 32
LATENCY_MS = 50
IDEAL_MS = QUESTIONS * LATENCY_MS / AT_ONCE
WAIT_S = 110.0  # for a machine that is busy with something else
CODE = """\
import time
prompts = [f"{name} {{number}}" for number in range({questions})]
started = time.perf_counter()
slots = ask_llm_batch(prompts)
took = (time.perf_counter() - started) * 1e3
assert [slot.value for slot in slots] == prompts
took
"""


async def many_questions(bench: Bench) -> list[Row]:
    """Many questions from one run, which the budget lets ask so many at once."""
    title = f"{QUESTIONS:,} questions of {LATENCY_MS} ms, {AT_ONCE} at once"
    ideal = Row("questions", title, f"the ideal: {QUESTIONS} / {AT_ONCE} x {LATENCY_MS} ms", "ratio", 1.3)
    direct = Row("questions-direct", "the same, next to a direct client", "asyncio and aiohttp, as many", "ratio", None)
    with fake_llm.serving("--latency-ms", str(LATENCY_MS)) as model:
        llm = {"model": "echo", "api_base": model.url, "api_key": fake_llm.KEY}
        budgets = {level: {"calls": 10**6, "concurrency": AT_ONCE} for level in ("run", "session", "principal")}
        server_table = {"data_dir": "data", "wait_s": WAIT_S}
        async with our_server(None, {"server": server_table, "llm": {**llm, **budgets}}) as server:
            await in_turns(direct, lambda: ours(server), lambda: asked(model), bench.samples(5, 1))
        if (most := model.stats()["most at once"]) > AT_ONCE:
            raise RuntimeError(f"{most} questions were under way at once, and not {AT_ONCE}")
    ideal.ours, ideal.baseline = direct.ours, [IDEAL_MS] * len(direct.ours)
    return [ideal, direct]


async def ours(server: Ours) -> float:
    """Return the milliseconds of a batch, as the code sees them."""
    return float((await server.run(CODE.format(name=f"question {next(numbers)}", questions=QUESTIONS)))["value"])


async def asked(model: fake_llm.Server) -> float:
    """Return the milliseconds that a direct client takes."""
    bodies = iter([body(number) for number in range(QUESTIONS)])
    headers = {"authorization": f"Bearer {fake_llm.KEY}", "content-type": "application/json"}
    url = f"{model.url}/chat/completions"
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=AT_ONCE)) as client:
        started = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(ask, client, url, bodies)
        return (time.perf_counter() - started) * 1e3


def body(number: int) -> bytes:
    """Return a question as it is sent."""
    return json.dumps({"model": "echo", "messages": [{"role": "user", "content": f"question {number}"}]}).encode()


async def ask(client: aiohttp.ClientSession, url: str, bodies: Iterator[bytes]) -> None:
    """Put one question after the other, until there are no more."""
    for each in bodies:
        async with client.post(url, data=each) as answer:
            answer.raise_for_status()
            await answer.read()


LLM_ROWS: Sequence[Callable[[Bench], Awaitable[list[Row]]]] = (many_questions,)
