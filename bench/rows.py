"""The rows of the performance budget, one function each."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import Client

from .harness import (
    BARE_COMMAND,
    SERVER_COMMAND,
    BenchmarkRow,
    TestServer,
    measure_ms,
    sample_in_turns,
    start_server,
    write_settings,
)
from .tokens import count_tokens

FAN_OUT = 64
NAP_MS = 50
CALLS_PER_RUN = 50  # calls from one run
MANY_CALLS = 400  # calls from one run, so that the run itself does not count
MAX_LINE_BYTES = 1 << 20
EXIT_TIMEOUT_S = 15.0  # the server removes its containers after its stdin ends
INITIALIZE_LINE = (
    b"%s\n"
    % json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "bench", "version": "1"},
            },
        }
    ).encode()
)

unique_numbers = count(1)  # a new argument for each call, so that no cache can answer


@dataclass(frozen=True)
class BenchContext:
    """What all rows share: our server with a warm pool, a bare server, and the sample mode."""

    server: TestServer
    bare_client: Client
    quick: bool

    def samples(self, full: int, quick: int) -> int:
        """Return the number of samples to take."""
        return quick if self.quick else full


async def measure_bare_call(bench: BenchContext) -> float:
    """Return the median milliseconds of a call that does nothing to a bare server."""
    for _ in range(20):
        await _call_directly(bench, "noop")
    return median([await _call_directly(bench, "noop") for _ in range(80)])


async def warm_run(bench: BenchContext) -> BenchmarkRow:
    """A run in a warm session, compared with a tool that does nothing."""
    row = BenchmarkRow(
        "warm", 'warm run_code("1+1") over stdio', "no-op tool of a bare SDK server", "ratio", 1.25
    )
    ours = partial(measure_ms, bench.server.run_code, "1+1")
    baseline = partial(_call_directly, bench, "noop")
    return await sample_in_turns(row, ours, baseline, bench.samples(300, 80), warm_up=20)


async def inside_call(bench: BenchContext) -> BenchmarkRow:
    """A call from inside to a read-only tool, compared with the same call by a direct client."""
    row = BenchmarkRow(
        "inside-call",
        "call from inside to a reading tool",
        "the same by a direct SDK client",
        "ratio",
        1.3,
    )
    return await _measure_calls(bench, row, "noop")


async def inside_write(bench: BenchContext) -> BenchmarkRow:
    """The same for a tool that may write: what came before it is committed first."""
    row = BenchmarkRow(
        "inside-write",
        "the same to a tool that may write",
        "the same by a direct SDK client",
        "ratio",
        1.3,
    )
    return await _measure_calls(bench, row, "unsaid")


async def processor_time(bench: BenchContext) -> list[BenchmarkRow]:
    """The server's own processor time for a call, compared with a client's for the same call.

    Before a call that is not a read, everything before it is made durable, and every end of a call
    is: the rows differ by what that costs. Unlike the time of a call, this one hardly depends on
    what else the machine does.
    """
    rows = [
        BenchmarkRow(
            f"processor-{name}",
            f"processor time of {words}",
            "the same in a direct SDK client",
            "ratio",
            None,
        )
        for name, words in (
            ("read", "a reading call"),
            ("idempotent", "an idempotent call"),
            ("write", "a writing call"),
        )
    ]
    for _ in range(bench.samples(8, 3)):
        for row, tool in zip(rows, ("noop", "again", "unsaid"), strict=True):
            first = next(unique_numbers) * 1000
            loop = f"for n in range({first}, {first + MANY_CALLS}):\n    {tool}(n=n)"
            before = bench.server.containers.processor_ms()
            await bench.server.run_code(f"from tools.bare import {tool}\n{loop}")
            after = bench.server.containers.processor_ms()
            row.ours.append((after - before) / MANY_CALLS)
            started = time.process_time()
            for _ in range(MANY_CALLS):
                await _call_directly(bench, tool)
            row.baseline.append((time.process_time() - started) * 1e3 / MANY_CALLS)
    return rows


async def _measure_calls(bench: BenchContext, row: BenchmarkRow, tool: str) -> BenchmarkRow:
    for _ in range(bench.samples(8, 3)):
        first = next(unique_numbers) * 1000
        code = (
            f"import time\nfrom tools.bare import {tool}\ntook = []\n"
            f"for n in range({first}, {first + CALLS_PER_RUN}):\n"
            f"    started = time.perf_counter()\n    {tool}(n=n)\n"
            "    took.append((time.perf_counter() - started) * 1e3)\ntook"
        )
        row.ours += (await bench.server.run_code(code))["value"]
        row.baseline += [await _call_directly(bench, tool) for _ in range(CALLS_PER_RUN)]
    return row


async def _call_directly(bench: BenchContext, tool: str) -> float:
    return await measure_ms(bench.bare_client.call_tool, tool, {"n": next(unique_numbers)})


async def fan_out_threads(bench: BenchContext) -> BenchmarkRow:
    """Many slow calls at once from threads."""
    call = f"tools.map(lambda n: nap(n=n, ms={NAP_MS}), numbers, max_concurrency={FAN_OUT})"
    row = BenchmarkRow(
        "fan-out-threads",
        f"{FAN_OUT} calls of {NAP_MS} ms, tools.map",
        "direct client, task group",
        "ratio",
        1.2,
    )
    return await _fan_out(bench, row, call, "all(slot.ok for slot in found)")


async def fan_out_asyncio(bench: BenchContext) -> BenchmarkRow:
    """Many slow calls at once from asyncio."""
    call = f"await asyncio.gather(*(nap.aio(n=n, ms={NAP_MS}) for n in numbers))"
    row = BenchmarkRow(
        "fan-out-aio",
        f"{FAN_OUT} calls of {NAP_MS} ms, gather of .aio",
        "direct client, task group",
        "ratio",
        1.2,
    )
    return await _fan_out(bench, row, call, "len(found) == len(numbers)")


async def _fan_out(bench: BenchContext, row: BenchmarkRow, call: str, check: str) -> BenchmarkRow:
    async def ours() -> float:
        first = next(unique_numbers) * 1000
        code = (
            "import asyncio, time\nfrom tools.bare import nap\n"
            f"numbers = range({first}, {first + FAN_OUT})\n"
            f"started = time.perf_counter()\nfound = {call}\n"
            f"took = (time.perf_counter() - started) * 1e3\nassert {check}\ntook"
        )
        return float((await bench.server.run_code(code))["value"])

    async def baseline() -> float:
        started = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(FAN_OUT):
                tasks.start_soon(
                    bench.bare_client.call_tool, "nap", {"n": next(unique_numbers), "ms": NAP_MS}
                )
        return (time.perf_counter() - started) * 1e3

    return await sample_in_turns(row, ours, baseline, bench.samples(15, 4))


async def pool_hit(bench: BenchContext) -> BenchmarkRow:
    """The first run of a session with a sandbox from the pool, compared with a warm run."""
    row = BenchmarkRow(
        "pool", "first run of a session from the warm pool", "warm run", "difference", 5.0
    )
    async with start_server(pool_size=1) as server:
        await server.run_code("1+1", "warm")
        for n in range(bench.samples(12, 5)):
            await server.containers.wait_until_settled(n + 2)
            row.baseline.append(await measure_ms(server.run_code, "1+1", "warm"))
            row.ours.append(await measure_ms(server.run_code, "1+1", f"new {n}"))
    return row


async def cold_session(bench: BenchContext) -> BenchmarkRow:
    """The first run of a session that waits for a new container, compared with the engine alone."""
    row = BenchmarkRow(
        "cold",
        "cold session: first run, no pool",
        "raw docker create, attach, start, 1 byte",
        "ratio",
        1.25,
    )
    async with start_server(pool_size=0) as server:
        await server.run_code("1+1", "model")
        model = (await server.containers.wait_until_settled(1))[0]

        async def ours() -> float:
            return await measure_ms(server.run_code, "1+1", f"new {next(unique_numbers)}")

        async def baseline() -> float:
            raw = await server.containers.clone_configuration(model)
            took = await anyio.to_thread.run_sync(raw.measure_start)
            await anyio.to_thread.run_sync(raw.remove)
            return took

        return await sample_in_turns(row, ours, baseline, bench.samples(12, 4))


async def start_up(bench: BenchContext) -> BenchmarkRow:
    """The time from process start, with default settings, to the answer to `initialize`."""
    row = BenchmarkRow(
        "start-up", "start-up until initialize is answered", "bare SDK server", "ratio", 1.3
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        ours = (SERVER_COMMAND, "--config", str(write_settings(Path(folder))), "--stdio")
        return await sample_in_turns(
            row,
            partial(_measure_initialize, ours),
            partial(_measure_initialize, BARE_COMMAND),
            bench.samples(10, 3),
        )


async def _measure_initialize(command: Sequence[str]) -> float:
    started = time.perf_counter()
    process = await anyio.open_process(command, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    async with process:
        await process.stdin.send(INITIALIZE_LINE)
        await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", MAX_LINE_BYTES)
        took = (time.perf_counter() - started) * 1e3
        await process.stdin.aclose()
        with anyio.fail_after(EXIT_TIMEOUT_S):
            await process.wait()
    return took


async def idle_memory(bench: BenchContext) -> BenchmarkRow:
    """The memory of an idle session, compared with that of an idle Python."""
    row = BenchmarkRow(
        "memory",
        "idle session, without page cache",
        "bare python3, same container",
        "value",
        30.0,
        "MiB",
    )
    async with start_server(pool_size=0) as server:
        for n in range(bench.samples(3, 1)):
            await server.run_code("1+1", f"idle {n}")
        for container in await server.containers.wait_until_settled(bench.samples(3, 1)):
            row.ours.append(await server.containers.memory_mib(container))
            raw = await server.containers.clone_configuration(container)
            await anyio.to_thread.run_sync(raw.measure_start)
            row.baseline.append(await server.containers.memory_mib(raw.id))
            await anyio.to_thread.run_sync(raw.remove)
    return row


async def big_output(bench: BenchContext) -> BenchmarkRow:
    """A run that prints 10 MB."""
    row = BenchmarkRow("output-10mb", "a run that prints 10 MB", "", "value", None)
    code = "import sys\nfor _ in range(100):\n    sys.stdout.write(('x' * 99 + '\\n') * 1000)"
    for _ in range(bench.samples(5, 2)):
        row.ours.append(await measure_ms(bench.server.run_code, code))
    return row


async def first_line(bench: BenchContext) -> BenchmarkRow:
    """The time from a `print` in the sandbox until the client receives it, during the run."""
    row = BenchmarkRow("first-line", "printed line to progress at the client", "", "value", 50.0)
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append((time.time() - float(message or 0)) * 1e3)

    for _ in range(bench.samples(15, 5)):
        heard.clear()
        code = "import time\nprint(repr(time.time()))\ntime.sleep(0.2)"
        took = await measure_ms(bench.server.run_code, code, progress_callback=on_progress)
        if not heard or heard[0] > took - 100:
            raise RuntimeError("the line came only when the code was over")
        row.ours.append(heard[0])
    return row


async def tool_list(bench: BenchContext) -> BenchmarkRow:
    """The tokens of the list of tools: names, descriptions and input schemas."""
    row = BenchmarkRow("tools-list", "tools/list in cl100k tokens", "", "value", 700.0, "tokens")
    tools = (await bench.server.client.list_tools()).tools
    seen = [
        {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
        for tool in tools
    ]
    row.ours.append(count_tokens(json.dumps(seen, ensure_ascii=False)))
    return row


SERVER_ROWS: Sequence[Callable[[BenchContext], Awaitable[BenchmarkRow | list[BenchmarkRow]]]] = (
    warm_run,
    inside_call,
    inside_write,
    processor_time,
    fan_out_threads,
    fan_out_asyncio,
    pool_hit,
    cold_session,
    start_up,
    idle_memory,
    big_output,
    first_line,
    tool_list,
)
