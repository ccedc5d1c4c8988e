"""What questions to models cost in time: a thousand at once through the server, as code asks them.

The model server takes 50 ms for an answer, and 32 are asked at once, so 1.56 s is the least that is possible. Other
things that the machine does count; so a plain client, which does nothing but ask, is measured in turns with ours, and
the processor time of each process is told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import tomli_w
from mcp import Client, StdioServerParameters

import fake_llm

OURS = str(Path(sys.executable).with_name("mcpruntime-server"))
QUESTIONS, AT_ONCE, LATENCY_S = 1_000, 32, 0.05
IDEAL_S = QUESTIONS * LATENCY_S / AT_ONCE
BOUND = 1.3
TICKS = os.sysconf("SC_CLK_TCK")

numbers = count(1)  # no question is asked twice: nobody may answer from a cache


def settings(folder: Path, url: str, backend: str) -> Path:
    """Write a settings file; return its path."""
    limits = {"calls": 10 * QUESTIONS, "concurrency": AT_ONCE}
    llm = {"model": "echo", "api_base": url, "api_key": fake_llm.KEY, "run": limits}
    file = folder / "server.toml"
    tables = {"server": {"data_dir": "data"}, "sandbox": {"backend": backend, "pool_size": 0}, "llm": llm}
    file.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return file


async def ours(client: Client) -> float:
    """Return the seconds that a batch takes, seen from the code."""
    code = (
        f"import time\nprompts = [f'question {next(numbers)} {{n}}' for n in range({QUESTIONS})]\n"
        "started = time.perf_counter()\nslots = ask_llm_batch(prompts)\ntook = time.perf_counter() - started\n"
        "assert [slot.value for slot in slots] == prompts\ntook"
    )
    answer = await client.call_tool("run_code", {"code": code})
    result: dict[str, Any] = answer.structured_content or {}
    if result.get("status") != "ok":
        raise RuntimeError(f"run_code failed: {result or answer.content}")
    return float(result["value"])


async def plain(url: str) -> float:
    """Return the seconds that a client takes which does nothing but ask."""
    left = iter(range(QUESTIONS))
    started = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for number in left:
                body = {"model": "echo", "messages": [{"role": "user", "content": f"plain {number}"}]}
                headers = {"authorization": f"Bearer {fake_llm.KEY}"}
                async with session.post(f"{url}/chat/completions", json=body, headers=headers) as response:
                    await response.json()

        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(work)
    return time.perf_counter() - started


def processor_s() -> dict[str, float]:
    """Return the processor time that each process below us has used, by what it does."""
    parents, found = {os.getpid()}, sorted(Path("/proc").glob("[0-9]*"), key=lambda folder: int(folder.name))
    used: dict[str, float] = {}
    for folder in found:
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) not in parents:
            continue
        parents.add(int(folder.name))
        role = next((name for mark, name in ROLES.items() if mark in command), "sandbox")
        used[role] = used.get(role, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS
    return used


ROLES = {"llm.worker": "process that asks", "fake_llm": "model server", "mcpruntime-server --config": "server"}


async def measure(samples: int, backend: str) -> dict[str, Any]:
    """Return the seconds of both, in turns, and the processor time of a question by process."""
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    spent: dict[str, float] = {}
    with fake_llm.serving("--latency-ms", str(LATENCY_S * 1e3)) as model, tempfile.TemporaryDirectory() as folder:
        options = ["--config", str(settings(Path(folder), model.url, backend)), "--stdio"]
        async with Client(StdioServerParameters(command=OURS, args=options, env=dict(os.environ))) as client:
            await ours(client)
            await plain(model.url)
            for _ in range(samples):
                before = processor_s()
                found["ours"].append(await ours(client))
                for role, used in processor_s().items():
                    spent[role] = spent.get(role, 0.0) + used - before.get(role, 0.0)
                found["plain"].append(await plain(model.url))
    return {"seconds": found, "s a sample": {role: each / samples for role, each in spent.items()}}


def main() -> int:
    """Measure, print, and say by the exit code whether the bound is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--backend", default="local")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = anyio.run(measure, options.samples, options.backend)
    best = {name: min(each) for name, each in found["seconds"].items()}
    middle = {name: statistics.median(each) for name, each in found["seconds"].items()}
    found["ratio"] = middle["ours"] / IDEAL_S
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{QUESTIONS:,} questions of {LATENCY_S * 1e3:g} ms, {AT_ONCE} at once: ideal {IDEAL_S:.3f} s")
        for name in ("ours", "plain"):
            print(
                f"{name:6} p50 {middle[name]:.3f} s, {middle[name] / IDEAL_S:.2f}x the ideal; "
                f"best {best[name]:.3f} s, {best[name] / IDEAL_S:.2f}x"
            )
        for role, each in found["s a sample"].items():
            print(f"{role:20} {each * 1e3 / QUESTIONS:.2f} ms of processor time a question")
    print(f"ours is {middle['ours'] / middle['plain']:.2f}x the plain client", file=sys.stderr)
    return 0 if found["ratio"] <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
