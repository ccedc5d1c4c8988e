"""The proof set is sound: each session runs on real servers and returns the expected answer."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.skill_tasks import HELD_OUT, POLICY, TASKS, Task, World, make_world, missing_servers
from bench.skill_tasks.task import Values
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.helpers.sizes import choose_cases

ALL = (*TASKS, *HELD_OUT)
TASKS_BY_NAME = {task.name: task for task in ALL}
SKILLS = [task.name for task in ALL if task.kind == "skill"]
REFUSED = [task.name for task in ALL if task.kind == "refuse"]


@dataclass(frozen=True)
class Stage:
    """A world and a server that is connected to it."""

    world: World
    server: ServerConnection

    async def play(self, task: Task, code: tuple[str, ...], session: str) -> Any:
        """Run the steps of a task, check how each ends, and return the last value."""
        answer = None
        for number, step in enumerate(code):
            answer = await self.server.run(step, session=session)
            expected = "error" if number in task.fails else "ok"
            assert answer.data.get("status") == expected, f"{session}, step {number}: {answer.text}"
        assert answer is not None
        return parsed(answer.data.get("value"))


def parsed(value: Any) -> Any:
    """Return a value as JSON data; large values arrive as JSON text."""
    return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    if missing := missing_servers():
        pytest.skip(f"{', '.join(missing)} not installed: run scripts/test-upstreams")
    folder = tmp_path_factory.mktemp("proof")
    world = make_world(folder / "world")
    servers = {name: dict(entry) for name, entry in world.servers.items()}
    async with connect_server(write_settings(folder, mcpServers=servers, policy=POLICY)) as server:
        yield Stage(world, server)


class Changed(ast.NodeTransformer):
    """Replaces whole literals by new values; `found` are the literals that occur."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.found: set[Any] = set()

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.generic_visit(part)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return self.put(node, node.value)

    def visit_List(self, node: ast.List) -> ast.AST:
        items = tuple(item.value if isinstance(item, ast.Constant) else None for item in node.elts)
        changed = self.put(node, items)
        return self.generic_visit(node) if changed is node else changed

    def put(self, node: ast.expr, value: Any) -> ast.expr:
        for old, new in self.values.items():
            if type(old) is type(value) and old == value:
                self.found.add(old)
                return ast.parse(
                    repr(list(new) if isinstance(new, tuple) else new), mode="eval"
                ).body
        return node


@pytest.mark.parametrize("name", choose_cases(SKILLS, short=18))
async def test_a_session_finds_what_is_right_for_its_values_and_for_new_ones(
    name: str, stage: Stage
) -> None:
    task = TASKS_BY_NAME[name]
    assert task.truth is not None
    assert task.news
    before = task.truth(stage.world, {})
    assert before, "an empty answer proves little"
    assert await stage.play(task, task.code(stage.world), name) == before
    for values in task.changes(stage.world):
        right = task.truth(stage.world, values)
        assert right != before, "values that change nothing prove nothing"
        change = Changed(values)
        code = tuple(ast.unparse(change.visit(ast.parse(step))) for step in task.code(stage.world))
        assert change.found == set(values), "each value is that of a literal"
        assert await stage.play(task, code, name) == right


@pytest.mark.parametrize("name", REFUSED)
async def test_what_no_skill_may_be_made_of_runs_nevertheless(name: str, stage: Stage) -> None:
    task = TASKS_BY_NAME[name]
    await stage.play(task, task.code(stage.world), name)
    assert task.why
    assert task.truth is None


def test_there_are_enough_tasks_of_every_kind() -> None:
    assert len(TASKS_BY_NAME) == len(ALL) >= 50
    assert len(SKILLS) >= 28
    assert len(REFUSED) >= 8
    code = "\n".join(step for name in SKILLS for step in TASKS_BY_NAME[name].steps)
    for server in ("git", "time", "filesystem", "memory", "orders"):
        assert f"tools.{server}" in code
    for habit in ("pandas", "tools.map", ".aio(", "try:", "def run(", "print(", '"""\n'):
        assert habit in code
    assert set(Counter(len(task.steps) for task in TASKS)) >= {1, 2, 3}


def test_the_world_is_the_same_every_time(tmp_path: Path) -> None:
    one, two = (make_world(tmp_path / name) for name in ("one", "two"))
    for repository in ("repo", "repo2"):
        heads = [
            world.git(str(world.places[repository]), "rev-parse", "HEAD") for world in (one, two)
        ]
        assert heads[0] == heads[1]
        assert int(one.git(str(one.places[repository]), "rev-list", "--count", "HEAD")) >= 60
    for table in ("customers", "products", "orders", "items"):
        assert one.table(table) == two.table(table)
    for path in one.folder.glob("*th/**/*.*"):
        assert path.read_bytes() == (two.folder / path.relative_to(one.folder)).read_bytes()
    assert one.memory.read_text() == two.memory.read_text()
