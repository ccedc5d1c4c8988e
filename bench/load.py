"""Loads the server over HTTP as many clients do, beside a bare server of the SDK.

Run `python -m bench run load --help`. Each of the clients has a connection and a session of its
own, and sends its requests at fixed times, whether the answer before has come or not: a slow server
is not spared. The same clients call the bare server at the same times, so that what else the
machine does affects both. Figures are reported, never asserted: the exit code says whether
everything could be measured, and every request was answered.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import anyio
import httpx2
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from .harness import (
    BARE_COMMAND,
    SERVER_COMMAND,
    BenchmarkRow,
    measure_ms,
    start_bare_server,
    start_server,
    write_settings,
)
from .perf import TABLE_LAYOUT, format_row, record_rows
from .results import RESULTS_FOLDER, record_result

DEFAULT_RESULTS = RESULTS_FOLDER / "load.json"
PROTOCOL = "2026-07-28"
CLIENTS = 50
RUNS_PER_S = 20.0
DURATION_S = 300.0
QUICK_CLIENTS, QUICK_DURATION_S = 8, 10.0
CLIENTS_PER_PRINCIPAL = 10  # the rate of one principal is limited
READERS, QUICK_READERS = 100, 20
READ_LINES = 50  # of output, one event each
START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 60.0
PROGRESS_INTERVAL_S = 30.0
MEMORY_INTERVAL_S = 1.0
ADDED_STARTS, QUICK_ADDED_STARTS = 5, 1  # of the servers whose runs are compared
ADDED_WARM_UP = 10  # turns of runs and no-ops after each start, without another client
ADDED_TURNS = 50  # after them
MAX_ADDED_RATIO = 1.3
TRANSPORTS = ("HTTP", "stdio")
WARM_UP_SHARE = 0.2  # of the load, before memory counts: caches fill


@dataclass(frozen=True)
class Load:
    """How much there is to do."""

    clients: int
    duration_s: float
    is_quick: bool


@dataclass
class Sides:
    """One figure of our server and of the bare one, from samples in milliseconds."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)


@dataclass
class LoadFigures:
    """What the load has shown."""

    latencies: Sides = field(default_factory=Sides)
    errors: list[str] = field(default_factory=list)
    memory_mb: list[tuple[float, float]] = field(default_factory=list)  # at seconds

    def slope_kb_per_minute(self) -> float:
        """Return how fast the memory grows, after the beginning."""
        first = self.memory_mb[-1][0] * WARM_UP_SHARE
        points = [point for point in self.memory_mb if point[0] >= first]
        slope, _ = statistics.linear_regression(*zip(*points, strict=True))
        return slope * 60 * 1e3


class HttpServers:
    """Our server and the bare one, with the processes behind them."""

    def __init__(self, url: str, bare_url: str, data_dir: Path, tokens: list[str]) -> None:
        self.url = url
        self.bare_url = bare_url
        self.data_dir = data_dir
        self.tokens = tokens

    @property
    def base_url(self) -> str:
        """The address of the HTTP API."""
        return self.url.removesuffix("/mcp")

    def memory_mb(self) -> float:
        """Return the resident memory of our server."""
        [lock] = (self.data_dir / "servers").glob("*.lock")
        pages = int(Path(f"/proc/{lock.read_text().strip()}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def headers(self, client: int) -> dict[str, str]:
        """Return the headers that say who a client is."""
        return {"Authorization": f"Bearer {self.tokens[client // CLIENTS_PER_PRINCIPAL]}"}


@asynccontextmanager
async def start_servers(clients: int) -> AsyncIterator[HttpServers]:
    """Run both servers over HTTP, with a token for every few clients."""
    with tempfile.TemporaryDirectory(prefix="load-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        table = {"server": {"data_dir": "data", "max_sessions": clients + 32}}
        settings = write_settings(folder, table, memory_mb=256)
        tokens = []
        for number in range(-(-clients // CLIENTS_PER_PRINCIPAL)):
            command = [SERVER_COMMAND, "--config", str(settings), "token", "create", f"p{number}"]
            done = await anyio.run_process(command)
            tokens.append(done.stdout.decode().strip())
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(start_our_server(settings))
            bare_url = await stack.enter_async_context(start_bare_http_server())
            yield HttpServers(url, bare_url, folder / "data", tokens)


@asynccontextmanager
async def start_our_server(settings: Path) -> AsyncIterator[str]:
    """Run our server and yield its address."""
    command = [SERVER_COMMAND, "--config", str(settings), "serve", "--port", "0"]
    async with await anyio.open_process(command) as process:
        assert process.stderr is not None
        log = BufferedByteReceiveStream(process.stderr)
        with anyio.fail_after(START_TIMEOUT_S):
            line = (await log.receive_until(b"\n", 65_536)).decode()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(show_log, log)
            try:
                yield line.removeprefix("MCP at ").strip()
            finally:
                process.terminate()
                with anyio.CancelScope(shield=True):
                    await process.wait()
                tasks.cancel_scope.cancel()


async def show_log(log: BufferedByteReceiveStream) -> None:
    """Show what the server complains of."""
    with suppress(anyio.IncompleteRead):
        while True:
            line = (await log.receive_until(b"\n", 65_536)).decode(errors="replace")
            if " INFO " not in line:
                print(line, file=sys.stderr, flush=True)


@asynccontextmanager
async def start_bare_http_server() -> AsyncIterator[str]:
    """Run the bare server over HTTP and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with await anyio.open_process(
        [*BARE_COMMAND, "--port", str(port)], stderr=DEVNULL
    ) as process:
        try:
            with anyio.fail_after(START_TIMEOUT_S):
                while True:
                    try:
                        await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                        break
                    except OSError:
                        await anyio.sleep(0.1)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()


# the load -----------------------------------------------------------------------------------------


def tool_request(name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the body and the headers of a call of a tool."""
    prefix = "io.modelcontextprotocol"
    meta = {
        f"{prefix}/protocolVersion": PROTOCOL,
        f"{prefix}/clientInfo": {"name": "load", "version": "1"},
        f"{prefix}/clientCapabilities": {},
    }
    params = {"name": name, "arguments": arguments, "_meta": meta}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": PROTOCOL,
        "Mcp-Method": "tools/call",
        "Mcp-Name": name,
    }
    return body, headers


async def call_tool(
    http: httpx2.AsyncClient, url: str, name: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the structured result of a tool; raises `RuntimeError` if there is none."""
    body, headers = tool_request(name, arguments)
    response = await http.post(url, json=body, headers=headers)
    text = response.text
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        text = text.rpartition("data: ")[2]
    try:
        result: dict[str, Any] = json.loads(text)["result"]["structuredContent"]
    except (ValueError, KeyError, TypeError):
        raise RuntimeError(f"HTTP {response.status_code}: {text[:300]}") from None
    return result


class LoadClient:
    """One client: a connection, and a session with a sandbox of its own."""

    def __init__(self, servers: HttpServers, number: int, http: httpx2.AsyncClient) -> None:
        self._servers = servers
        self._session = f"client {number}"
        self._number = number
        self._http = http

    async def run_code(self, count: int) -> None:
        """Let our server run code; raises `RuntimeError` if the result is wrong."""
        arguments = {"code": f"x = {count}\nx + 1", "session": self._session}
        result = await call_tool(self._http, self._servers.url, "run_code", arguments)
        if result.get("value") != count + 1:
            raise RuntimeError(f"the result is {result}")

    async def call_bare(self, count: int) -> None:
        """Call the tool of the bare server."""
        await call_tool(self._http, self._servers.bare_url, "noop", {"n": count})

    async def work(self, load: Load, figures: LoadFigures) -> None:
        """Send a run and a call of the bare server at each of its times."""
        interval_s = load.clients / RUNS_PER_S
        first = anyio.current_time() + interval_s * self._number / load.clients
        async with anyio.create_task_group() as tasks:
            for count in range(int(load.duration_s / interval_s)):
                pair = [
                    (self.run_code, figures.latencies.ours),
                    (self.call_bare, figures.latencies.bare),
                ]
                for turn, (call, samples) in enumerate(pair if count % 2 else reversed(pair)):
                    due = first + (count + turn / 2) * interval_s
                    await anyio.sleep_until(due)
                    tasks.start_soon(self._measure, call, count, due, samples, figures.errors)

    async def _measure(
        self,
        call: Callable[[int], Awaitable[None]],
        count: int,
        due: float,
        samples: list[float],
        errors: list[str],
    ) -> None:
        """Add how long after its time a call was answered."""
        try:
            await call(count)
            samples.append((anyio.current_time() - due) * 1e3)
        except Exception as exc:  # noqa: BLE001 - every failure counts
            errors.append(f"client {self._number}: {exc!r:.300}")


@asynccontextmanager
async def open_clients(servers: HttpServers, count: int) -> AsyncIterator[list[LoadClient]]:
    """Yield clients whose sandboxes run and whose connections are open."""
    async with AsyncExitStack() as stack:
        clients = []
        for number in range(count):
            http = httpx2.AsyncClient(headers=servers.headers(number), timeout=REQUEST_TIMEOUT_S)
            client = LoadClient(servers, number, await stack.enter_async_context(http))
            await client.run_code(0)
            await client.call_bare(0)
            clients.append(client)
        yield clients


async def apply_load(servers: HttpServers, load: Load) -> LoadFigures:
    """Let all clients work, and return what it has shown."""
    figures = LoadFigures()
    print(f"starting {load.clients} clients and their sandboxes", flush=True)
    async with (
        open_clients(servers, load.clients) as clients,
        anyio.create_task_group() as observers,
    ):
        observers.start_soon(watch_memory, servers, figures)
        observers.start_soon(show_progress, load, figures)
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(client.work, load, figures)
        observers.cancel_scope.cancel()
    return figures


async def watch_memory(servers: HttpServers, figures: LoadFigures) -> None:
    """Record the memory of our server."""
    started = anyio.current_time()
    while True:
        figures.memory_mb.append((anyio.current_time() - started, servers.memory_mb()))
        await anyio.sleep(MEMORY_INTERVAL_S)


async def show_progress(load: Load, figures: LoadFigures) -> None:
    """Say now and then how far it is."""
    started = anyio.current_time()
    while True:
        await anyio.sleep(PROGRESS_INTERVAL_S)
        ours = figures.latencies.ours
        print(
            f"{anyio.current_time() - started:4.0f} of {load.duration_s:.0f} s: "
            f"{len(ours)} runs, {len(figures.errors)} errors, "
            f"p50 {statistics.median(ours or [0]):.1f} ms, {figures.memory_mb[-1][1]:.0f} MB",
            flush=True,
        )


def load_rows(figures: LoadFigures) -> list[BenchmarkRow]:
    """Return the rows of the load."""
    latencies = figures.latencies
    title = "a run under load over HTTP"
    row = partial(BenchmarkRow, baseline_title="no-op tool of a bare HTTP server")
    p50 = row("load", f"{title}, p50", kind="ratio", bound=None)
    p50.ours, p50.baseline = latencies.ours, latencies.bare
    p99 = row("load-p99", f"{title}, p99", kind="ratio", bound=None)
    p99.ours, p99.baseline = [percentile(latencies.ours)], [percentile(latencies.bare)]
    errors = BenchmarkRow("load-errors", "requests that failed", "", "value", 0.0, unit="")
    errors.ours = [float(len(figures.errors))]
    slope = BenchmarkRow("memory-slope", "growth of memory per minute", "", "value", None, "KB")
    slope.ours = [figures.slope_kb_per_minute()]
    memory = BenchmarkRow("memory", "memory of the server at the end", "", "value", None, "MB")
    memory.ours = [figures.memory_mb[-1][1]]
    return [p50, p99, errors, slope, memory]


def percentile(samples: Sequence[float], share: float = 0.99) -> float:
    """Return a percentile."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


# what HTTP adds -----------------------------------------------------------------------------------


@asynccontextmanager
async def connect(url: str, headers: dict[str, str]) -> AsyncIterator[Client]:
    """Be a client of the SDK over HTTP."""
    async with (
        httpx2.AsyncClient(headers=headers, timeout=REQUEST_TIMEOUT_S) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


@dataclass
class CallTimes:
    """What calls over one transport take, in milliseconds."""

    run: float
    bare: float  # the no-op of a bare server
    refused: float  # a call that the server of the runs refuses


async def measure_added_time(load: Load) -> list[BenchmarkRow]:
    """Compare what a run costs more than a no-op, over HTTP and over stdio.

    The no-op is first that of a bare server. Over HTTP it takes as much processor time as a no-op
    of ours; over stdio ours has a transport of its own, which is faster. That makes the second
    difference smaller, and the ratio larger, whatever HTTP adds. So the no-op is then one of the
    same server, a call that it refuses: that leaves the transports out.

    A server is faster or slower by milliseconds for as long as it lives. So all of them are started
    several times, and the medians of the starts count.
    """
    count = QUICK_ADDED_STARTS if load.is_quick else ADDED_STARTS
    starts = [await time_calls() for _ in range(count)]
    to_bare = compare_transports(starts, "no-op tool of a bare server", lambda each: each.bare)
    to_bare[-1].bound = MAX_ADDED_RATIO
    to_own = compare_transports(
        starts, "refused call of the same server", lambda each: each.refused, suffix="-alone"
    )
    return [*to_bare, *to_own]


def compare_transports(
    starts: Sequence[Mapping[str, CallTimes]],
    baseline_title: str,
    baseline: Callable[[CallTimes], float],
    suffix: str = "",
) -> list[BenchmarkRow]:
    """Return what a run costs more than a baseline over each transport, and the ratio of both."""
    rows = []
    for transport in TRANSPORTS:
        times = [each[transport] for each in starts]
        title = f"a run over {transport}, alone"
        row = BenchmarkRow(f"{transport}{suffix}", title, baseline_title, "difference", None)
        row.ours, row.baseline = [each.run for each in times], [baseline(each) for each in times]
        rows.append(row)
    title = f"what a run over {TRANSPORTS[0]} takes more than a {baseline_title}"
    ratio = BenchmarkRow(f"added{suffix}", title, f"the same over {TRANSPORTS[1]}", "ratio", None)
    ratio.ours, ratio.baseline = (
        [run - base for run, base in zip(row.ours, row.baseline, strict=True)] for row in rows
    )
    return [*rows, ratio]


async def time_calls() -> dict[str, CallTimes]:
    """Start all servers, and return the median times of calls over each transport."""
    async with (
        start_servers(clients=1) as servers,
        connect(servers.url, servers.headers(0)) as ours,
        connect(servers.bare_url, {}) as bare,
        start_server() as stdio,
        start_bare_server() as bare_stdio,
    ):
        code = {"code": "1+1", "session": "alone"}
        samples: dict[Callable[[], Awaitable[float]], list[float]] = {
            partial(measure_ms, ours.call_tool, "run_code", code): [],
            partial(measure_ms, bare.call_tool, "noop", {"n": 1}): [],
            partial(measure_ms, ours.call_tool, "run_code", {}): [],
            partial(measure_ms, stdio.client.call_tool, "run_code", code): [],
            partial(measure_ms, bare_stdio.call_tool, "noop", {"n": 1}): [],
            partial(measure_ms, stdio.client.call_tool, "run_code", {}): [],
        }
        order = list(samples)
        for n in range(-ADDED_WARM_UP, ADDED_TURNS):
            order.append(order.pop(0))  # what else the machine does affects all alike
            for sample in order:
                took = await sample()
                if n >= 0:
                    samples[sample].append(took)
    medians = [statistics.median(values) for values in samples.values()]
    return dict(zip(TRANSPORTS, (CallTimes(*medians[:3]), CallTimes(*medians[3:])), strict=True))


# streams ------------------------------------------------------------------------------------------


async def measure_first_event(servers: HttpServers, load: Load) -> BenchmarkRow:
    """Return when the first event of a run is there, in a warm session."""
    row = BenchmarkRow("first-event", "first event of POST /execute/stream", "", "value", 50.0)
    async with httpx2.AsyncClient(headers=servers.headers(0), timeout=REQUEST_TIMEOUT_S) as http:
        for count in range(-5, 20 if load.is_quick else 100):
            started = time.perf_counter()
            body = {"code": "1+1", "session": "streams"}
            async with http.stream(
                "POST", f"{servers.base_url}/execute/stream", json=body
            ) as response:
                response.raise_for_status()
                lines = response.aiter_lines()
                async for line in lines:
                    if line.startswith("event:"):
                        break
                if count >= 0:
                    row.ours.append((time.perf_counter() - started) * 1e3)
                async for _ in lines:
                    pass
    return row


async def measure_readers(servers: HttpServers, load: Load) -> list[BenchmarkRow]:
    """Let many clients read the events of one run while it works."""
    readers = QUICK_READERS if load.is_quick else READERS
    row = BenchmarkRow("readers", f"{readers} readers of one run: its end", "", "value", None)
    missed = BenchmarkRow("readers-missed", "events that they missed", "", "value", 0.0, unit="")
    before_mb = servers.memory_mb()
    code = f"import time\nfor n in range({READ_LINES}): print(n); time.sleep(0.05)"
    ids: list[list[str]] = []
    async with httpx2.AsyncClient(
        headers=servers.headers(0),
        timeout=REQUEST_TIMEOUT_S,
        limits=httpx2.Limits(max_connections=readers + 10),
    ) as http:
        body = {"code": code, "session": "readers", "wait_s": 0}
        started = await http.post(f"{servers.base_url}/execute", json=body)
        run = started.json()["run"]

        async def read() -> None:
            async with http.stream("GET", f"{servers.base_url}/runs/{run}/events") as response:
                response.raise_for_status()
                lines = [line async for line in response.aiter_lines()]
            row.ours.append((time.perf_counter() - first) * 1e3)
            ids.append([line for line in lines if line.startswith("id:")])

        first = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(readers):
                tasks.start_soon(read)
    longest = max(map(len, ids))
    missed.ours = [float(sum(longest - len(set(seen)) for seen in ids))]
    memory = BenchmarkRow("readers-memory", "memory that they cost", "", "value", None, "MB")
    memory.ours = [max(0.0, servers.memory_mb() - before_mb)]
    return [row, missed, memory]


# the table ----------------------------------------------------------------------------------------


async def measure_all(load: Load) -> tuple[list[BenchmarkRow], dict[str, str]]:
    """Return all rows, and what failed."""
    rows: list[BenchmarkRow] = []
    failures: dict[str, str] = {}

    def add(*measured: BenchmarkRow) -> None:
        for row in measured:
            rows.append(row)
            print(format_row(row), flush=True)

    print(TABLE_LAYOUT.format("p50 of each", "ours", "baseline", "figure", "bound", "met", "base"))
    add(*await measure_added_time(load))
    async with start_servers(load.clients) as servers:
        add(await measure_first_event(servers, load))
        add(*await measure_readers(servers, load))
        figures = await apply_load(servers, load)
        add(*load_rows(figures))
    if figures.errors:
        failures["load"] = f"{len(figures.errors)} requests failed: {figures.errors[:5]}"
        print(failures["load"], file=sys.stderr)
    return rows, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything; return 1 if a request failed."""
    parser = argparse.ArgumentParser(description="Load the server over HTTP.")
    parser.add_argument("--json", type=Path, default=DEFAULT_RESULTS, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="fewer clients, for seconds")
    parser.add_argument("--clients", type=int, help=f"{CLIENTS} by default")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help=f"{DURATION_S:.0f}")
    options = parser.parse_args(arguments)
    load = Load(
        options.clients or (QUICK_CLIENTS if options.quick else CLIENTS),
        options.duration or (QUICK_DURATION_S if options.quick else DURATION_S),
        options.quick,
    )
    with record_result("load", options.json, is_quick=options.quick) as recorder:
        rows, failures = anyio.run(measure_all, load)
        record_rows(recorder, rows)
        recorder.failures.update(failures)
    took_s = recorder.result().took_s
    print(f"\n{len(rows)} rows in {took_s:.0f} s, on {os.cpu_count()} processors")
    return 1 if failures else 0
