"""Measures inputs: how soon a large file is available, and what a pass over it takes.

Run `python -m bench run inputs --help`. The benchmark is an MCP client. Each pass is one run; its
memory is the peak of the interpreter in the sandbox above that of a run that does nothing. `.grep`
is measured in turns with `grep -c` and with a loop in Python over the same file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import tomli_w
from mcp import Client, StdioServerParameters

from .harness import SERVER_COMMAND, USAGE_META_KEY
from .results import RESULTS_FOLDER, ResultRecorder, record_result

LOG_LINE = "2026-11-26 12:00:00 INFO request served in {} ms by worker {}\n"
NEEDLE = "needle"
MAX_EXTRA_MB = 64.0
MAX_AVAILABLE_S = 1.0
COMPARE_ROUNDS = 3  # measurements of `.grep` and of each alternative
PASSES = {
    "grep, literal": "len(CONTEXT.grep('needle'))",
    "grep, pattern": "len(CONTEXT.grep(r'nee+dle \\d+'))",
    "lines": "sum(1 for _ in CONTEXT.lines())",
    "iteration": "sum(map(len, CONTEXT))",
    "chunks of 20,000": "sum(1 for _ in CONTEXT.chunks(20_000))",
    "sample of 1,000": "len(CONTEXT.sample(1000))",
    "map over chunks": "sum(slot.value for slot in CONTEXT.map(lambda piece: len(piece.text)))",
}
TABLE_LAYOUT = "{:<26} {:>9} {:>10} {:>7}  {}"
PYTHON_LOOP = f"""\
import sys
print(sum(b"{NEEDLE}" in line for line in open(sys.argv[1], "rb")))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; return 1 if a bound is not met."""
    options = build_parser().parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
        record_result("inputs", options.json, mode="packed" if options.packed else "") as recorder,
    ):
        recorder.details |= {"mb": options.mb, "passes": [], "others": {}}
        anyio.run(run_benchmark, recorder, Path(folder), options)
    return int(not all(each["met"] for each in recorder.details["passes"]))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(description="Measure inputs of runs.")
    top.add_argument("--mb", type=int, default=1024, help="size of the file")
    top.add_argument("--backend", default="docker", help="docker or local")
    top.add_argument("--packed", action="store_true", help="the same file as gzip")
    top.add_argument(
        "--folder",
        type=Path,
        help="where the file goes; it should be on the disk of the data folder",
    )
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "inputs.json", metavar="FILE")
    return top


def write_log_file(path: Path, size_mb: int) -> None:
    """Write a log with a needle after every 5,000 lines."""
    lines = "".join(LOG_LINE.format(number * 37 % 991, number % 16) for number in range(5_000))
    with path.open("w", encoding="ascii") as file:
        number = 0
        while file.tell() < size_mb << 20:
            number += 1
            file.write(f"{lines}{NEEDLE} {number}\n")


async def run_benchmark(
    recorder: ResultRecorder, folder: Path, options: argparse.Namespace
) -> None:
    """Start a server and measure everything."""
    path = folder / "files" / "large.log"
    path.parent.mkdir()
    write_log_file(path, options.mb)
    if options.packed:
        await anyio.run_process(["gzip", "-1", str(path)])
        path = path.with_suffix(".log.gz")
    config = folder / "server.toml"
    server = {
        "data_dir": str(folder / "data"),
        "context_roots": [str(path.parent)],
        "wait_s": 600.0,
    }
    config.write_text(
        tomli_w.dumps(
            {"server": server, "sandbox": {"backend": options.backend, "timeout_s": 600.0}}
        )
    )
    command = StdioServerParameters(
        command=SERVER_COMMAND, args=["--config", str(config), "--stdio"]
    )
    print(
        TABLE_LAYOUT.format(
            f"{path.stat().st_size / 1e6:,.0f} MB", "seconds", "MB above", "met", ""
        )
    )
    async with Client(command, read_timeout_seconds=900) as client:
        await measure_availability(recorder, client, path)
        base = (await run_code(client, "1"))["usage"]["peak_mb"]
        for name, code in PASSES.items():
            await measure_pass(recorder, client, name, code, base)
        if not options.packed:
            await compare_grep(recorder, client, path)


async def run_code(
    client: Client, code: str, context: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the result of `code`; raises `RuntimeError` unless the status is ok."""
    arguments = {"code": code, "session": "bench"} | (
        {} if context is None else {"context": list(context)}
    )
    answer = await client.call_tool("run_code", arguments)
    result: dict[str, Any] = answer.structured_content or {}
    if answer.is_error or result.get("status") != "ok":
        raise RuntimeError(f"run_code failed: {result or answer.content}")
    return {**result, "usage": (answer.meta or {}).get(USAGE_META_KEY, {})}


async def measure_availability(recorder: ResultRecorder, client: Client, path: Path) -> None:
    """Measure the time until code has read the beginning of the input."""
    await run_code(client, "1")
    started = time.perf_counter()
    await run_code(client, "CONTEXT.peek()", [str(path)])
    took = time.perf_counter() - started
    met = took <= MAX_AVAILABLE_S
    bound = f"{MAX_AVAILABLE_S:g} s"
    add_line(recorder, "available", took, None, met=met, bound=bound, detail="")


def add_line(
    recorder: ResultRecorder,
    name: str,
    seconds: float,
    above_mb: float | None,
    *,
    met: bool,
    bound: str,
    detail: str,
) -> None:
    """Print one line of the table, and add it to the result."""
    recorder.add(name, "s", [seconds])
    line = {"name": name, "seconds": round(seconds, 4), "met": met, "bound": bound}
    recorder.details["passes"].append(line | {"above_mb": above_mb})
    above = "" if above_mb is None else f"{above_mb:.1f}"
    text = f"{detail}bound {bound}"
    print(TABLE_LAYOUT.format(name, f"{seconds:.3f}", above, "yes" if met else "NO", text))


async def measure_pass(
    recorder: ResultRecorder, client: Client, name: str, code: str, base: float
) -> None:
    """Measure one pass over the input, and its memory above `base` MB."""
    result = await run_code(client, code)
    above = result["usage"]["peak_mb"] - base
    seconds, met = result["usage"]["wall_ms"] / 1e3, bool(above <= MAX_EXTRA_MB)
    detail = f"-> {json.dumps(result['value'])}, "
    bound = f"{MAX_EXTRA_MB:g} MB"
    add_line(recorder, name, seconds, round(above, 2), met=met, bound=bound, detail=detail)


async def compare_grep(recorder: ResultRecorder, client: Client, path: Path) -> None:
    """Print how long `.grep` takes compared with other ways to count the same lines."""
    others = {
        "grep -c": ["grep", "-c", NEEDLE, str(path)],
        "a loop in Python": [sys.executable, "-c", PYTHON_LOOP, str(path)],
    }
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in others}
    for number in range(COMPARE_ROUNDS):
        code = f"found = sum(1 for _ in CONTEXT.grep({NEEDLE!r}))  # {number}"
        result = await run_code(client, code)
        ours.append(result["usage"]["wall_ms"] / 1e3)
        for name, command in others.items():
            started = time.perf_counter()
            done = await anyio.run_process(command)
            theirs[name].append(time.perf_counter() - started)
            if int(done.stdout) != result["value"]:
                raise RuntimeError(f"{name} finds {done.stdout!r} lines, .grep {result['value']}")
    for name, seconds in theirs.items():
        ratio = statistics.median(ours) / statistics.median(seconds)
        recorder.details["others"][name] = round(ratio, 3)
        title = f".grep / {name}"
        print(
            TABLE_LAYOUT.format(
                title,
                f"{statistics.median(ours):.2f}",
                "",
                "",
                f"{ratio:.2f}x of {min(seconds):.2f} s",
            )
        )
