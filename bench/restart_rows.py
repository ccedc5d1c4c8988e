"""The rows about a restart: how soon code finds and imports what slow upstream servers offer."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from .harness import BARE_COMMAND, BenchmarkRow, TestServer, start_server
from .rows import BenchContext, unique_numbers

SERVER_COUNT = 7
START_S = 5.0  # of each upstream server until it answers
BOUND_MS = 100.0
SLOW_COMMAND = (*BARE_COMMAND, "--delay", str(START_S))
FIND_CODE = """
import time
started = time.perf_counter()
import tools
found = tools.search("nap", 50)
searched = time.perf_counter()
from tools.slow1 import nap
imported = time.perf_counter()
assert len({tool.server for tool in found}) == COUNT, found
[(searched - started) * 1e3, (imported - searched) * 1e3]
""".replace("COUNT", str(SERVER_COUNT))


async def restart(bench: BenchContext) -> list[BenchmarkRow]:
    """The first search and import after a restart, compared with those once all servers answer."""
    search, module = (
        BenchmarkRow(
            f"restart-{name}",
            f"{title} after a restart, {SERVER_COUNT} slow servers",
            "once all of them answer",
            "value",
            BOUND_MS,
        )
        for name, title in (("search", "tools.search"), ("import", "import"))
    )
    command, *args = SLOW_COMMAND
    entries = {f"slow{n}": {"command": command, "args": args} for n in range(SERVER_COUNT)}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with start_server(Path(folder), {"mcpServers": entries}) as server:
            await server.run_code("import tools\nassert not tools.list().problems")
            for _ in range(bench.samples(5, 2)):
                await _add_sample(server, search.baseline, module.baseline)
        for _ in range(bench.samples(5, 2)):
            async with start_server(Path(folder), {"mcpServers": entries}) as server:
                await _add_sample(server, search.ours, module.ours)
    return [search, module]


async def _add_sample(server: TestServer, search: list[float], module: list[float]) -> None:
    """Measure in a new session, because one that is restored has its modules already."""
    session = f"restart {next(unique_numbers)}"
    searched, imported = (await server.run_code(FIND_CODE, session))["value"]
    search.append(searched)
    module.append(imported)


RESTART_ROWS: Sequence[Callable[[BenchContext], Awaitable[Any]]] = (restart,)
