"""Where tasks are done: the state folder, the servers of the tasks, and the measured server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..code_server import CodeServer, open_code_server
from ..results import ROOT
from ..servers.names import API_VARIABLE, LATENCY_VARIABLE, STATE_VARIABLE
from .task import Judgement, Task, judge
from .world import SERVERS, World, export_state, read_calls, write_state

MAX_RESULT_CHARS, MAX_RESULT_ITEMS = 200_000, 10_000


@dataclass(frozen=True)
class Stage:
    """The state folder, the entries of all upstream servers, and the measured server."""

    state_folder: Path
    upstreams: Mapping[str, Any]
    server: CodeServer

    def prepare(self, world: World) -> None:
        """Put the servers into the state of a world."""
        write_state(self.state_folder, world.whole_state())

    def judge(self, task: Task, world: World, value: Any) -> Judgement:
        """Judge a value and the state of the servers."""
        return judge(task, world, value, export_state(self.state_folder))

    def list_calls(self) -> list[dict[str, Any]]:
        """Return the calls that the servers got since `prepare`."""
        return read_calls(self.state_folder)


def upstream_entries(
    state_folder: Path, servers: Sequence[str], api: str, latency_ms: float, filler: int
) -> dict[str, Any]:
    """Return the entries of servers, and of one with `filler` tools that no task needs."""
    variables = {
        "PYTHONPATH": str(ROOT),
        STATE_VARIABLE: str(state_folder),
        LATENCY_VARIABLE: str(latency_ms),
        API_VARIABLE: api,
    }
    entries = {
        name: {"command": sys.executable, "args": ["-m", f"bench.servers.{name}"], "env": variables}
        for name in servers
    }
    if filler:
        arguments = ["-m", "bench.servers.filler", str(filler)]
        entries["filler"] = {"command": sys.executable, "args": arguments, "env": variables}
    return entries


@contextmanager
def start_shop_api(state_folder: Path) -> Iterator[str]:
    """Run the HTTP server behind `web` and yield its address."""
    command = [sys.executable, "-m", "bench.servers.shop_api"]
    variables = {**os.environ, STATE_VARIABLE: str(state_folder)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@asynccontextmanager
async def open_stage(
    folder: Path,
    *,
    servers: Sequence[str] = SERVERS,
    target: str = "",
    latency_ms: float = 0.0,
    filler: int = 0,
    **more: Any,
) -> AsyncIterator[Stage]:
    """Yield a stage in `folder`; `more` is for `open_code_server`."""
    state_folder = folder / "state"
    write_state(state_folder, World({}).whole_state())
    with start_shop_api(state_folder) as api:
        upstreams = upstream_entries(state_folder, servers, api, latency_ms, filler)
        limits = {"result_chars": MAX_RESULT_CHARS, "result_items": MAX_RESULT_ITEMS}
        sections = {"server": {"data_dir": "data", **limits}, **more.pop("sections", {})}
        async with open_code_server(target, folder, upstreams, sections=sections, **more) as server:
            yield Stage(state_folder, upstreams, server)
