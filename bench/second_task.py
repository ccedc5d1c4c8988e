"""Measures what a skill saves when the same question comes again with other values.

Without the skill, a model writes the code of the session again (the steps that succeeded, with the
new values) and reads the answers. With the skill, it calls `list_skills` with the text of the task,
reads the answer, and writes one call. Both run on the same server, in turns. The benchmark counts
the cl100k tokens that the model writes and reads, and the time of all requests, without the model's
own time. Run it with `make bench-skills`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from .harness import TestServer, first_text, start_server
from .results import RESULTS_FOLDER, record_result
from .skill_gate import replace_values, save_task
from .skill_tasks import POLICY, TASKS, Task, World, make_world, missing_servers
from .tokens import count_tokens

ROUNDS = 4  # each way is first in half of the rounds; its fastest round counts


@dataclass
class Cost:
    """Tokens that a model writes and reads, and seconds of requests."""

    written: int = 0
    read: int = 0
    seconds: float = 0.0

    async def request(self, server: TestServer, tool: str, arguments: dict[str, Any]) -> Any:
        """Make a request and count it; return the answer's data."""
        began = time.perf_counter()
        result = await server.client.call_tool(tool, arguments)
        self.seconds += time.perf_counter() - began
        self.written += count_tokens(json.dumps(arguments, ensure_ascii=False))
        self.read += count_tokens(first_text(result))
        return result.structured_content or {}


@dataclass(frozen=True)
class Pair:
    """The costs of one task with and without the skill.

    `found` says whether the search listed the skill, `same` whether all answers are equal.
    """

    task: Task
    without: Cost
    with_skill: Cost
    found: bool
    same: bool


async def compare(server: TestServer, world: World, task: Task, store: Path) -> Pair | None:
    """Save a task as a skill and repeat it in both ways; None if the skill is not active."""
    learnt = await save_task(server, world, task, store)
    changes = task.changes(world)
    if learnt.state != "active" or not changes or learnt.problems:
        return None
    place = store / task.name.replace("_", "-")
    case = json.loads((place / "cases" / "0001.json").read_text())
    inputs = {
        name: replace_values(value, changes[0], set()) for name, value in case["inputs"].items()
    }
    steps = [
        replace_literals(step, changes[0])
        for number, step in enumerate(task.code(world))
        if number not in task.fails
    ]
    is_async = "await run(" in (place / "SKILL.md").read_text()
    arguments = ", ".join(f"{name}={value!r}" for name, value in inputs.items())
    call = f"from skills.{task.name} import run\n{'await ' if is_async else ''}run({arguments})"
    rounds: list[tuple[Cost, Cost]] = []
    answers: list[Any] = []
    for attempt in range(ROUNDS):
        again, asked = Cost(), Cost()
        # The first way gets a sandbox from the pool.
        for way in ("without", "with") if attempt % 2 else ("with", "without"):
            session = f"{task.name} {attempt} {way}"
            if way == "with":
                listed = await asked.request(server, "list_skills", {"query": task.text})
            for code in [call] if way == "with" else steps:
                cost = asked if way == "with" else again
                answer = await cost.request(server, "run_code", {"code": code, "session": session})
            answers.append(answer.get("value"))
        rounds.append((again, asked))
    without, with_skill = (
        min(costs, key=lambda cost: cost.seconds) for costs in zip(*rounds, strict=True)
    )
    found = any(skill["name"] == task.name for skill in listed["skills"])
    return Pair(task, without, with_skill, found, all(answer == answers[0] for answer in answers))


def replace_literals(code: str, values: Any) -> str:
    """Return code with new literals in place of the recorded ones."""
    for old, new in values.items():
        for quote in "\"'":
            shown = (
                f"{quote}{old}{quote}"
                if isinstance(old, str)
                else repr(list(old) if isinstance(old, tuple) else old)
            )
            code = code.replace(shown, repr(list(new) if isinstance(new, tuple) else new))
    return code


async def measure(folder: Path) -> list[Pair]:
    """Return the costs of every task that became a skill."""
    world = make_world(folder / "world")
    servers = {name: dict(entry) for name, entry in world.servers.items()}
    async with start_server(folder, {"mcpServers": servers, "policy": POLICY}) as server:
        found = [
            await compare(server, world, task, folder / "skills_store")
            for task in TASKS
            if task.kind == "skill"
        ]
    return [pair for pair in found if pair is not None]


def sum_costs(costs: Sequence[Cost]) -> dict[str, float]:
    """Return the sums of what several tasks cost."""
    return {
        "written": sum(cost.written for cost in costs),
        "read": sum(cost.read for cost in costs),
        "seconds": sum(cost.seconds for cost in costs),
    }


def main(arguments: Sequence[str] = ()) -> int:
    """Print the table."""
    if missing := missing_servers():
        sys.exit(f"{', '.join(missing)} not installed: run scripts/test-upstreams")
    with (
        record_result("second-task", RESULTS_FOLDER / "second-task.json") as recorder,
        tempfile.TemporaryDirectory() as folder,
    ):
        pairs = [pair for pair in anyio.run(measure, Path(folder)) if pair.same]
        for pair in pairs:
            recorder.add(pair.task.name, "tokens", [pair.with_skill.written + pair.with_skill.read])
        recorder.details["totals"] = {
            "without": sum_costs([pair.without for pair in pairs]),
            "with a skill": sum_costs([pair.with_skill for pair in pairs]),
        }
    found = sum(pair.found for pair in pairs)
    print(
        f"{len(pairs)} tasks a second time, with other values; "
        f"{found} skills were among the three found; sums"
    )
    if missed := [pair.task.name for pair in pairs if not pair.found]:
        print(f"not among the three found: {', '.join(missed)}")
    print(f"{'':14}{'written':>9}{'read':>9}{'tokens':>9}{'seconds':>9}")
    ways = {
        "without": [pair.without for pair in pairs],
        "with a skill": [pair.with_skill for pair in pairs],
    }
    for name, costs in ways.items():
        written, read = sum(cost.written for cost in costs), sum(cost.read for cost in costs)
        print(
            f"{name:14}{written:9,}{read:9,}{written + read:9,}"
            f"{sum(cost.seconds for cost in costs):9.2f}"
        )
    if "-v" in arguments:
        for pair in pairs:
            one, two = pair.without, pair.with_skill
            tokens = f"{one.written + one.read:7,}{two.written + two.read:7,}"
            print(f"{pair.task.name:28}{tokens}{one.seconds:8.2f}{two.seconds:8.2f}")
    return 0
