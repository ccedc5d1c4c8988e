"""Gold trajectories pass as programs and are replayed; what does something else fails."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from bench.bfcl.scenarios import (
    CATEGORIES,
    PYTHON,
    Scenario,
    read_parameters,
    read_scenarios,
    write_program,
)
from bench.bfcl.suite import ScenarioRunner, open_runner

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="run scripts/test-bfcl")


@pytest.fixture(scope="module")
async def runner(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScenarioRunner]:
    async with open_runner(tmp_path_factory.mktemp("bfcl"), {"backend": "docker"}) as runner:
        yield runner


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """The scenario that moves, searches, sorts and compares files in four turns."""
    return read_scenarios(["base"])[0]


def change_program(scenario: Scenario, change: Callable[[ast.List], None]) -> str:
    tree = ast.parse(write_program(scenario, read_parameters()))
    change(find_turns(tree))
    return ast.unparse(tree)


def find_turns(tree: ast.Module) -> ast.List:
    return next(node for node in ast.walk(tree) if isinstance(node, ast.List))


def test_the_suite_runs_judges_and_replays(tmp_path: Path) -> None:
    file = tmp_path / "bfcl.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "bfcl", "--limit", "1", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(file.read_text())
    assert result["failures"] == {}
    assert list(result["details"]["categories"]) == list(CATEGORIES)
    for counts in result["details"]["categories"].values():
        assert counts["scenarios"] == counts["right"] == counts["same"] == 1


def test_every_gold_trajectory_is_a_program() -> None:
    scenarios, parameters = read_scenarios(CATEGORIES), read_parameters()
    assert len(scenarios) == 800
    for each in scenarios:
        turns = find_turns(ast.parse(write_program(each, parameters)))
        found = [
            [ast.unparse(call).partition("(")[0] for call in turn.elts]
            for turn in turns.elts
            if isinstance(turn, ast.List)
        ]
        assert found == [[call.strip().partition("(")[0] for call in turn] for turn in each.turns]


async def test_the_gold_program_passes_each_time(
    runner: ScenarioRunner, scenario: Scenario
) -> None:
    program = write_program(scenario, read_parameters())
    for session in ("first", "second"):
        outcome = await runner.run(scenario, program, session)
        assert outcome.problems == []


def drop_last_call(turns: ast.List) -> None:
    [*_, last] = turns.elts
    assert isinstance(last, ast.List)
    last.elts.pop()


def change_argument(turns: ast.List) -> None:
    [first, *_] = turns.elts
    assert isinstance(first, ast.List)
    make_folder = first.elts[1]
    assert isinstance(make_folder, ast.Call)
    make_folder.keywords[0].value = ast.Constant("temporary")


def call_in_another_turn(turns: ast.List) -> None:
    first, second, *_ = turns.elts
    assert isinstance(first, ast.List)
    assert isinstance(second, ast.List)
    second.elts.insert(0, first.elts.pop())


@pytest.mark.parametrize("change", [drop_last_call, change_argument, call_in_another_turn])
async def test_a_program_that_does_something_else_is_wrong(
    runner: ScenarioRunner, scenario: Scenario, change: Callable[[ast.List], None]
) -> None:
    outcome = await runner.run(scenario, change_program(scenario, change), change.__name__)
    assert outcome.problems


async def test_claimed_values_without_calls_are_wrong(
    runner: ScenarioRunner, scenario: Scenario
) -> None:
    claimed = f"import json; json.dumps([[0 for call in turn] for turn in {scenario.turns!r}])"
    outcome = await runner.run(scenario, claimed, "claimed")
    assert outcome.problems == [f"0 calls reached the server, not {scenario.calls}"]


async def test_right_calls_with_claimed_values_are_wrong(
    runner: ScenarioRunner, scenario: Scenario
) -> None:
    program = write_program(scenario, read_parameters())
    claimed = f"{program}\njson.dumps([[0 for call in turn] for turn in {scenario.turns!r}])"
    outcome = await runner.run(scenario, claimed, "values")
    assert "does not contain all the ground truth response" in outcome.problems[0]


async def test_a_tool_of_another_class_is_refused(
    runner: ScenarioRunner, scenario: Scenario
) -> None:
    outcome = await runner.run(scenario, "from tools.bfcl import mean\nmean(numbers=[1])", "other")
    assert "This scenario has no tool 'mean'" in outcome.problems[0]
