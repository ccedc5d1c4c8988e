"""Rows of the table: two things are measured in turns, so that noise affects both.

The benchmark is an MCP client of the server; `engine` looks at its containers from outside.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult

from .engine import ServerContainers

SETTINGS_FILE = "server.toml"
USAGE_META_KEY = "mcpruntime/usage"  # in the `_meta` of a result of `run_code`
BARE_COMMAND = (sys.executable, str(Path(__file__).with_name("bare_server.py")))
SERVER_COMMAND = str(Path(sys.executable).with_name("mcpruntime-server"))

TakeSample = Callable[[], Awaitable[float]]  # performs one operation and returns the measured value
FigureKind = Literal["ratio", "difference", "value"]


@dataclass
class BenchmarkRow:
    """One line of the table: the samples of both sides, in `unit`.

    The bound limits the ratio or the difference of their medians, or our median (`kind`).
    """

    name: str
    title: str
    baseline_title: str
    kind: FigureKind
    bound: float | None
    unit: str = "ms"
    ours: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)

    @property
    def figure(self) -> float:
        """The value that is compared with the bound."""
        ours = statistics.median(self.ours)
        if self.kind == "value" or not self.baseline:
            return ours
        base = statistics.median(self.baseline)
        return ours / base if self.kind == "ratio" else ours - base

    @property
    def is_met(self) -> bool | None:
        """Whether the figure is within its bound; None without a bound."""
        return None if self.bound is None else self.figure <= self.bound

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON data."""
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "ours": summarize_samples(self.ours),
            "baseline_is": self.baseline_title,
            "baseline": summarize_samples(self.baseline),
            "kind": self.kind,
            "figure": round(self.figure, 4),
            "bound": self.bound,
            "met": self.is_met,
        }


def summarize_samples(samples: Sequence[float]) -> dict[str, float] | None:
    """Return median, 90th percentile, minimum and number of `samples`."""
    if not samples:
        return None
    ordered = sorted(samples)
    p90 = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return {
        "p50": round(statistics.median(ordered), 4),
        "p90": round(p90, 4),
        "min": round(ordered[0], 4),
        "n": len(ordered),
    }


async def sample_in_turns(
    row: BenchmarkRow, ours: TakeSample, baseline: TakeSample, samples: int, warm_up: int = 1
) -> BenchmarkRow:
    """Add `samples` samples of each side to `row`; the sides take turns in being first."""
    for n in range(-warm_up, samples):
        first, second = (ours, baseline) if n % 2 else (baseline, ours)
        values = {first: await first(), second: await second()}
        if n >= 0:
            row.ours.append(values[ours])
            row.baseline.append(values[baseline])
    return row


async def measure_ms(call: Callable[..., Awaitable[object]], *args: Any, **options: Any) -> float:
    """Return the milliseconds that `call` takes."""
    started = time.perf_counter()
    await call(*args, **options)
    return (time.perf_counter() - started) * 1e3


class TestServer:
    """A running server and its containers."""

    def __init__(self, client: Client, containers: ServerContainers) -> None:
        self.client = client
        self.containers = containers

    async def run_code(
        self, code: str, session: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Return the result of `code`; raises `RuntimeError` unless the status is ok."""
        arguments = {"code": code} | ({"session": session} if session else {})
        answer = await self.client.call_tool("run_code", arguments, **options)
        result: dict[str, Any] = answer.structured_content or {}
        if answer.is_error or result.get("status") != "ok":
            raise RuntimeError(f"run_code failed: {result or answer.content}")
        return {**result, "usage": (answer.meta or {}).get(USAGE_META_KEY, {})}

    async def run_any(self, code: str, session: str) -> dict[str, Any]:
        """Return the result of `code`, whatever its status; a refusal has the status "refused"."""
        answer = await self.client.call_tool("run_code", {"code": code, "session": session})
        return answer.structured_content or {"status": "refused", "value": first_text(answer)}

    async def call_replay(self, action: str, session: str, **more: Any) -> dict[str, Any]:
        """Return the answer of the tool `replay`; raises `RuntimeError` unless the status is ok."""
        answer = await self.client.call_tool(
            "replay", {"action": action, "session": session, **more}
        )
        result: dict[str, Any] = answer.structured_content or {}
        if answer.is_error or result.get("status", "ok") != "ok":
            raise RuntimeError(f"replay failed: {result or answer.content}")
        return result


def first_text(result: CallToolResult) -> str:
    """Return the first text of a result."""
    return next((each.text for each in result.content if each.type == "text"), "")


def write_settings(folder: Path, sections: Mapping[str, Any] | None = None, **sandbox: Any) -> Path:
    """Write a settings file and return its path.

    The bare server is the upstream `bare`. `sections` replace or extend the other tables.
    """
    command, *args = BARE_COMMAND
    file = folder / SETTINGS_FILE
    table: Mapping[str, Any] = {
        "server": {"data_dir": "data"},
        "sandbox": sandbox,
        "mcpServers": {"bare": {"command": command, "args": args}},
        **(sections or {}),
    }
    file.write_text(tomli_w.dumps(table), encoding="utf-8")
    return file


def server_parameters(command: str, *args: str) -> StdioServerParameters:
    """Return parameters that start a server with the variables of this process.

    The server needs them to find the Docker engine.
    """
    return StdioServerParameters(command=command, args=list(args), env=dict(os.environ))


@asynccontextmanager
async def start_server(
    folder: Path | None = None, sections: Mapping[str, Any] | None = None, **sandbox: Any
) -> AsyncIterator[TestServer]:
    """Run our server over stdio with these `[sandbox]` settings and other `sections`.

    Its data is in `folder`, or in a temporary folder. At the end, leftover containers are removed.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as temporary:
        folder = folder or Path(temporary)
        file = write_settings(folder, sections, **sandbox)
        containers = ServerContainers(folder / "data")
        try:
            async with Client(
                server_parameters(SERVER_COMMAND, "--config", str(file), "--stdio")
            ) as client:
                containers.find_owner()
                yield TestServer(client, containers)
        finally:
            await containers.close()


@asynccontextmanager
async def start_bare_server() -> AsyncIterator[Client]:
    """Run the bare server over stdio."""
    async with Client(server_parameters(*BARE_COMMAND)) as client:
        yield client
