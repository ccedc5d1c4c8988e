"""The suite `bfcl`: gold trajectories of the Berkeley Function-Calling Leaderboard as programs.

The tool classes of the multi-turn categories are one MCP server. Each gold trajectory is one
program, which runs in a session of its own. The leaderboard's own checkers compare the state of the
tools and the returned values with what the gold calls do, after each turn. Then the data folder is
moved, and a server whose tools are gone replays all sessions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ..code_server import CodeServer, open_code_server, parse_text
from ..harness import start_server
from ..results import RESULTS_FOLDER, ROOT, ResultRecorder, record_result
from ..same_tape import GONE_COMMAND, make_folders, replay_session
from ..servers.names import SCENARIO_FILE, STATE_VARIABLE, TRACE_FILE
from ..statistics import wilson_interval
from .scenarios import (
    CATEGORIES,
    PYTHON,
    SERVER_NAME,
    Scenario,
    read_parameters,
    read_scenarios,
    write_program,
)

# A scenario needs its sandbox once; few live sessions leave memory to others.
LIMITS = {"data_dir": "data", "max_sessions": 6, "result_chars": 500_000, "result_items": 10_000}
POOL_SIZE = 2
REPLAYS_AT_ONCE = 2


@dataclass(frozen=True)
class Outcome:
    """What was wrong with a program, and how long it ran."""

    problems: list[str]
    seconds: float


class Judge:
    """The leaderboard's checkers, in a process of their own environment."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    async def find_problems(self, scenario: Scenario, value: Any) -> list[str]:
        """Return what is wrong with the value and the states of a scenario."""
        request = json.dumps({**scenario.as_request(), "values": value})
        return await anyio.to_thread.run_sync(self._ask, request)

    def _ask(self, request: str) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        problems: list[str] = json.loads(self._process.stdout.readline())
        return problems


@contextmanager
def start_judge(state_folder: Path) -> Iterator[Judge]:
    """Run the judge of the states in a folder."""
    command = [str(PYTHON), "-m", "bench.bfcl.judge", str(state_folder / TRACE_FILE)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        yield Judge(process)


@dataclass(frozen=True)
class ScenarioRunner:
    """Runs programs on the tools of a scenario, and judges them."""

    server: CodeServer
    judge: Judge
    state_folder: Path

    async def run(self, scenario: Scenario, program: str, session: str) -> Outcome:
        """Run a program on the fresh tools of a scenario."""
        (self.state_folder / SCENARIO_FILE).write_text(
            json.dumps({**scenario.as_request(), "session": session}), "utf-8"
        )
        (self.state_folder / TRACE_FILE).write_bytes(b"")
        began = time.perf_counter()
        answer = await self.server.run_program(program, session)
        seconds = time.perf_counter() - began
        if not answer.is_ok:
            return Outcome([answer.text[:300]], seconds)
        value = parse_text(str(answer.value))
        if not isinstance(value, list):
            return Outcome([f"the value is {str(value)[:100]!r}, and no JSON list"], seconds)
        return Outcome(await self.judge.find_problems(scenario, value), seconds)


@asynccontextmanager
async def open_runner(folder: Path, sandbox: Mapping[str, Any]) -> AsyncIterator[ScenarioRunner]:
    """Run our server with the tool classes as its upstream server, and the judge."""
    state_folder = folder / "state"
    state_folder.mkdir()
    variables = {"PYTHONPATH": str(ROOT), STATE_VARIABLE: str(state_folder)}
    upstream = {"command": str(PYTHON), "args": ["-m", "bench.servers.bfcl"], "env": variables}
    with start_judge(state_folder) as judge:
        async with open_code_server(
            "", folder, {SERVER_NAME: upstream}, sections={"server": LIMITS}, sandbox=sandbox
        ) as server:
            yield ScenarioRunner(server, judge, state_folder)


async def run_all(options: argparse.Namespace, recorder: ResultRecorder) -> None:
    """Run, judge and replay the chosen scenarios."""
    scenarios, parameters = choose_scenarios(options), read_parameters()
    right: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as temporary:
        first, second = make_folders(Path(temporary))
        sandbox = {"backend": options.backend, "pool_size": POOL_SIZE}
        async with open_runner(first, sandbox) as runner:
            for scenario in scenarios:
                program = write_program(scenario, parameters)
                outcome = await runner.run(scenario, program, scenario.name)
                right[scenario.name] = not outcome.problems
                record_scenario(recorder, scenario, outcome)
        shutil.move(first / "data", second / "data")
        same = await replay_all(recorder, second, scenarios, sandbox)
    recorder.details["categories"] = {
        category: count_category(scenarios, category, right, same)
        for category in options.categories
    }


def record_scenario(recorder: ResultRecorder, scenario: Scenario, outcome: Outcome) -> None:
    """Add the outcome of a scenario to the result, and print it."""
    labels = {"category": scenario.category}
    problems, seconds = outcome.problems, outcome.seconds
    recorder.add(f"{scenario.name}: right", "success", [float(not problems)], "higher", labels)
    recorder.add(f"{scenario.name}: run", "s", [seconds], labels=labels)
    if problems:
        recorder.failures[scenario.name] = "; ".join(problems)[:300]
    verdict = "WRONG" if problems else "right"
    print(f"{verdict:6}{scenario.name:32}{scenario.calls:3} calls {seconds:6.2f} s", flush=True)


async def replay_all(
    recorder: ResultRecorder,
    folder: Path,
    scenarios: Sequence[Scenario],
    sandbox: Mapping[str, Any],
) -> dict[str, bool]:
    """Replay all sessions without the tools; return which are the same as recorded."""
    same: dict[str, bool] = {}
    gone = {"mcpServers": {SERVER_NAME: {"command": GONE_COMMAND}}, "server": LIMITS}
    waiting = iter(scenarios)
    async with start_server(folder, gone, **sandbox) as server, anyio.create_task_group() as group:

        async def replay_next() -> None:
            for scenario in waiting:
                name = scenario.name
                replay = await replay_session(server, name)
                same[name] = replay.is_same
                labels = {"category": scenario.category}
                recorder.add(f"{name}: same", "share", [float(replay.is_same)], "higher", labels)
                recorder.add(f"{name}: replay", "ms", [replay.took_ms], labels=labels)
                if not replay.is_same:
                    recorder.failures[f"{name}, replayed"] = replay.note[:300]
                verdict = "same" if replay.is_same else "DIFFERENT"
                print(f"{verdict:10}{name:32}{replay.took_ms:7.0f} ms", flush=True)

        for _ in range(REPLAYS_AT_ONCE):
            group.start_soon(replay_next)
    return same


def count_category(
    scenarios: Sequence[Scenario], category: str, right: dict[str, bool], same: dict[str, bool]
) -> dict[str, int]:
    """Return how many scenarios of a category there are, with their calls, and how many passed."""
    found = [each for each in scenarios if each.category == category]
    return {
        "scenarios": len(found),
        "calls": sum(each.calls for each in found),
        "right": sum(right[each.name] for each in found),
        "same": sum(same[each.name] for each in found),
    }


def choose_scenarios(options: argparse.Namespace) -> list[Scenario]:
    """Return the scenarios that the options name; `--limit` spreads over each category."""
    chosen: list[Scenario] = []
    for number, category in enumerate(options.categories):
        found = read_scenarios([category])
        limit = options.limit or len(found)
        step = max(1, len(found) // limit)
        first = number * step // len(options.categories)  # another one in each category
        chosen += found[first::step][:limit]
    return chosen


def main(arguments: Sequence[str]) -> int:
    """Run the scenarios; return 1 if one was wrong or its replay differed, 2 if not installed."""
    top = argparse.ArgumentParser(
        prog="python -m bench run bfcl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    top.add_argument("--limit", type=int, default=0, help="scenarios of each category")
    top.add_argument("--backend", default="docker", help="docker or local")
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "bfcl.json")
    options = top.parse_args(arguments)
    try:
        choose_scenarios(options)
    except FileNotFoundError as exc:
        print(exc, file=sys.stderr)
        return 2
    with record_result("bfcl", options.json) as recorder:
        recorder.details["limit"] = options.limit
        anyio.run(run_all, options, recorder)
    counts = recorder.details["categories"].values()
    total, right, same = (
        sum(each[key] for each in counts) for key in ("scenarios", "right", "same")
    )
    print(f"\n{right} of {total} right, {wilson_interval(right, total).as_percent()}")
    print(f"{same} of {total} replayed the same, {wilson_interval(same, total).as_percent()}")
    return int(right < total or same < total)
