"""Measures the gate of `save_skill`: saves sessions on real servers and calls the new skills.

It counts how many sessions that should become skills do so, how many of these skills answer right
for new values (the right answers are computed without skills), and how many sessions that must not
become skills are refused. `--held-out` does the same for tasks that were not used for tuning.
`make bench-skills` runs both.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from .harness import TestServer, first_text, start_server
from .results import RESULTS_FOLDER, record_result
from .skill_tasks import HELD_OUT, POLICY, TASKS, Task, World, make_world, missing_servers
from .skill_tasks.task import Values


@dataclass
class Outcome:
    """The outcome of one task: the answer of `save_skill`, and the number of right answers."""

    task: Task
    state: str
    answer_text: str
    asked_count: int = 0
    right_count: int = 0
    problems: list[str] = field(default_factory=list)


async def save_task(server: TestServer, world: World, task: Task, store: Path) -> Outcome:
    """Run a task's session, save its last run, and call the skill with other values."""
    run = ""
    for step in task.code(world):
        run = (await server.run_any(step, task.name))["run"]
    result = await server.client.call_tool("save_skill", {"run": run, "name": task.name})
    answer_text = first_text(result)
    data = result.structured_content or {}
    outcome = Outcome(task, "refused" if result.is_error else str(data.get("state")), answer_text)
    if outcome.state == "active" and task.truth is not None:
        case = json.loads((store / task.name.replace("_", "-") / "cases" / "0001.json").read_text())
        for values in task.changes(world):
            await ask_skill(server, world, outcome, case["inputs"], values)
    return outcome


async def ask_skill(
    server: TestServer, world: World, outcome: Outcome, inputs: dict[str, Any], values: Values
) -> None:
    """Call the skill with new values and compare the result with the right answer."""
    task = outcome.task
    assert task.truth is not None
    outcome.asked_count += 1
    changed: dict[str, Any] = {}
    found: set[Any] = set()
    for name, value in inputs.items():
        changed[name] = replace_values(value, values, found)
    if found != set(values):
        outcome.problems.append(f"no parameter for {sorted(map(repr, set(values) - found))}")
        return
    call = f"run(**{changed!r})"
    source = f"import inspect\nfrom skills.{task.name} import run\nresult = {call}\n"
    answer = await server.run_any(
        f"{source}await result if inspect.isawaitable(result) else result", "new questions"
    )
    value = answer.get("value")
    value = json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
    right = task.truth(world, values)
    if answer["status"] == "ok" and (value == right or str(value) == str(right)):
        outcome.right_count += 1
    else:
        outcome.problems.append(
            f"{values}: {str(value if value is not None else answer)[:300]} "
            f"is not {str(right)[:200]}"
        )


def replace_values(value: Any, values: Values, found: set[Any]) -> Any:
    """Return a recorded input with new values for old ones, in lists too.

    The old values in it are added to `found`.
    """
    key = tuple(value) if isinstance(value, list) else value
    for old, new in values.items():
        if type(old) is type(key) and old == key:
            found.add(old)
            return list(new) if isinstance(new, tuple) else new
    return (
        [replace_values(each, values, found) for each in value]
        if isinstance(value, list)
        else value
    )


async def measure(folder: Path, tasks: Sequence[Task]) -> list[Outcome]:
    """Return the outcomes of all tasks."""
    world = make_world(folder / "world")
    servers = {name: dict(entry) for name, entry in world.servers.items()}
    async with start_server(folder, {"mcpServers": servers, "policy": POLICY}) as server:
        return [await save_task(server, world, task, folder / "skills_store") for task in tasks]


def is_as_wanted(outcome: Outcome) -> bool:
    """Return whether a session became a right skill, or rightly became none."""
    is_active = outcome.state == "active"
    return is_active == (outcome.task.kind == "skill") and not outcome.problems


def summary(outcomes: list[Outcome]) -> dict[str, int]:
    """Return the counts, each with its total."""
    wanted = [each for each in outcomes if each.task.kind == "skill"]
    active = [each for each in wanted if each.state == "active"]
    refused = [each for each in outcomes if each.task.kind == "refuse"]
    return {
        "sessions": len(outcomes),
        "should be active": len(wanted),
        "active": len(active),
        "right on new values": sum(not each.problems and each.asked_count > 0 for each in active),
        "should be refused": len(refused),
        "rightly refused": sum(each.state != "active" for each in refused),
    }


def main(arguments: Sequence[str] = ()) -> int:
    """Print a line for each task with an unexpected outcome, and the counts."""
    if missing := missing_servers():
        sys.exit(f"{', '.join(missing)} not installed: run scripts/test-upstreams")
    is_held_out = "--held-out" in arguments
    tasks = HELD_OUT if is_held_out else TASKS
    name = "skill-gate-held-out" if is_held_out else "skill-gate"
    with (
        record_result("skill-gate", RESULTS_FOLDER / f"{name}.json", mode=name) as recorder,
        tempfile.TemporaryDirectory() as folder,
    ):
        outcomes = anyio.run(measure, Path(folder), tasks)
        for each in outcomes:
            recorder.add(each.task.name, "outcome", [float(is_as_wanted(each))], "higher")
        recorder.details["counts"] = summary(outcomes)
    for each in outcomes:
        is_wanted = each.task.kind == "skill"
        if is_wanted == (each.state == "active") and not each.problems and "-v" not in arguments:
            continue
        answer_text = " | ".join(
            each.answer_text.splitlines()[1:2] or each.answer_text.splitlines()
        )
        print(
            f"{each.task.kind:7}{each.state:9}{each.task.name}: "
            f"{'; '.join(each.problems) or answer_text}"
        )
    for name, number in summary(outcomes).items():
        print(f"{number:4} {name}")
    return 0
