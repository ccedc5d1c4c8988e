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

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from tests.helpers.server_connection import ServerConnection, connect_server, write_settings

from skill_tasks import HELD_OUT, POLICY, TASKS, Task, World, make_world, missing_servers
from skill_tasks.task import Values


@dataclass
class Outcome:
    """The outcome of one task: the answer of `save_skill`, and the number of right answers."""

    task: Task
    state: str
    answer_text: str
    asked_count: int = 0
    right_count: int = 0
    problems: list[str] = field(default_factory=list)


async def save_task(server: ServerConnection, world: World, task: Task, store: Path) -> Outcome:
    """Run a task's session, save its last run, and call the skill with other values."""
    answer = None
    for step in task.code(world):
        answer = await server.run(step, session=task.name)
    assert answer is not None
    result = await server.client.call_tool("save_skill", {"run": answer.run, "name": task.name})
    answer_text = getattr(result.content[0], "text", "")
    data = result.structured_content or {}
    outcome = Outcome(task, "refused" if result.is_error else str(data.get("state")), answer_text)
    if outcome.state == "active" and task.truth is not None:
        case = json.loads((store / task.name.replace("_", "-") / "cases" / "0001.json").read_text())
        for values in task.changes(world):
            await ask_skill(server, world, outcome, case["inputs"], values)
    return outcome


async def ask_skill(
    server: ServerConnection, world: World, outcome: Outcome, inputs: dict[str, Any], values: Values
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
    answer = await server.run(
        f"{source}await result if inspect.isawaitable(result) else result", session="new questions"
    )
    value = answer.data.get("value")
    value = json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
    right = task.truth(world, values)
    if answer.data.get("status") == "ok" and (value == right or str(value) == str(right)):
        outcome.right_count += 1
    else:
        outcome.problems.append(
            f"{values}: {str(value if value is not None else answer.text)[:300]} "
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
    settings = write_settings(folder, mcpServers=servers, policy=POLICY)
    async with connect_server(settings) as server:
        return [await save_task(server, world, task, folder / "skills_store") for task in tasks]


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


def main() -> None:
    """Print a line for each task with an unexpected outcome, and the counts."""
    if missing := missing_servers():
        sys.exit(f"{', '.join(missing)} not installed: run scripts/test-upstreams")
    tasks = HELD_OUT if "--held-out" in sys.argv else TASKS
    with tempfile.TemporaryDirectory() as folder:
        outcomes = anyio.run(measure, Path(folder), tasks)
    for each in outcomes:
        is_wanted = each.task.kind == "skill"
        if is_wanted == (each.state == "active") and not each.problems and "-v" not in sys.argv:
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


if __name__ == "__main__":
    main()
