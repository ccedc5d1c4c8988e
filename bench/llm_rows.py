"""The rows about model requests: a batch from code, compared with the ideal and a direct client.

The model is `fake_llm`, which answers slowly but uses little processor time. A direct client with
the same requests shows how much of the ideal the model, HTTP and the machine leave.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import aiohttp
import anyio

from . import fake_llm
from .harness import BenchmarkRow, TestServer, sample_in_turns, start_server
from .rows import BenchContext, unique_numbers

REQUESTS = 1_000
CONCURRENCY = 32
LATENCY_MS = 50
IDEAL_MS = REQUESTS * LATENCY_MS / CONCURRENCY
WAIT_S = 110.0  # enough for a busy machine
BATCH_CODE = """\
import time
prompts = [f"{name} {{number}}" for number in range({questions})]
started = time.perf_counter()
slots = ask_llm_batch(prompts)
took = (time.perf_counter() - started) * 1e3
assert [slot.value for slot in slots] == prompts
took
"""


async def many_model_requests(bench: BenchContext) -> list[BenchmarkRow]:
    """A batch of requests from one run, with `CONCURRENCY` requests at once."""
    title = f"{REQUESTS:,} questions of {LATENCY_MS} ms, {CONCURRENCY} at once"
    ideal = BenchmarkRow(
        "questions", title, f"the ideal: {REQUESTS} / {CONCURRENCY} x {LATENCY_MS} ms", "ratio", 1.3
    )
    direct = BenchmarkRow(
        "questions-direct",
        "the same, next to a direct client",
        "asyncio and aiohttp, as many",
        "ratio",
        None,
    )
    with fake_llm.start_model_server("--latency-ms", str(LATENCY_MS)) as model:
        llm = {"model": "echo", "api_base": model.url, "api_key": fake_llm.API_KEY}
        budgets = {
            level: {"calls": 10**6, "concurrency": CONCURRENCY}
            for level in ("run", "session", "principal")
        }
        server_table = {"data_dir": "data", "wait_s": WAIT_S}
        async with start_server(
            None, {"server": server_table, "llm": {**llm, **budgets}}
        ) as server:
            await sample_in_turns(
                direct,
                lambda: measure_batch(server),
                lambda: measure_direct_client(model),
                bench.samples(5, 1),
            )
        if (most := model.read_counts()["most at once"]) > CONCURRENCY:
            raise RuntimeError(f"{most} questions were under way at once, and not {CONCURRENCY}")
    ideal.ours, ideal.baseline = direct.ours, [IDEAL_MS] * len(direct.ours)
    return [ideal, direct]


async def measure_batch(server: TestServer) -> float:
    """Return the milliseconds of a batch, measured by the code in the sandbox."""
    return float(
        (
            await server.run_code(
                BATCH_CODE.format(name=f"question {next(unique_numbers)}", questions=REQUESTS)
            )
        )["value"]
    )


async def measure_direct_client(model: fake_llm.ModelServer) -> float:
    """Return the milliseconds that a direct client takes for the same requests."""
    bodies = iter([request_body(number) for number in range(REQUESTS)])
    headers = {"authorization": f"Bearer {fake_llm.API_KEY}", "content-type": "application/json"}
    url = f"{model.url}/chat/completions"
    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as client:
        started = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(CONCURRENCY):
                tasks.start_soon(send_requests, client, url, bodies)
        return (time.perf_counter() - started) * 1e3


def request_body(number: int) -> bytes:
    """Return the body of a request."""
    return json.dumps(
        {"model": "echo", "messages": [{"role": "user", "content": f"question {number}"}]}
    ).encode()


async def send_requests(client: aiohttp.ClientSession, url: str, bodies: Iterator[bytes]) -> None:
    """Send one request after another until `bodies` is empty."""
    for body in bodies:
        async with client.post(url, data=body) as response:
            response.raise_for_status()
            await response.read()


LLM_ROWS: Sequence[Callable[[BenchContext], Awaitable[list[BenchmarkRow]]]] = (many_model_requests,)
