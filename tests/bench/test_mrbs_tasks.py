"""Each task of MRBS is done by its reference program, and by nothing that only looks like it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.mrbs import CATEGORIES, TASKS, make_world
from bench.mrbs.stage import start_shop_api
from bench.mrbs.task import Task, fill_in, is_equal, judge, read_answer
from bench.mrbs.world import World, export_state, read_calls, write_state
from bench.servers.names import API_VARIABLE, STATE_VARIABLE
from tests.helpers.sizes import choose_size

from .direct_tools import RESULTS, install_tools, run_program

SEEDS = range(choose_size("BENCH_SEEDS", short=1, long=20))
MANY_CALLS = 5
WORLDS, MAX_GUESS_SHARE = 20, 0.35


@pytest.fixture(scope="module")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of state, and all servers in this process."""
    folder = tmp_path_factory.mktemp("mrbs")
    write_state(folder, World({}).whole_state())
    with start_shop_api(folder) as api, pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATE_VARIABLE, str(folder))
        patch.setenv(API_VARIABLE, api)
        with install_tools():
            yield folder


@pytest.fixture(scope="module")
def call_counts() -> dict[str, int]:
    """How many calls the reference program of each task made, as far as it has run."""
    return {}


def try_program(folder: Path, task: Task, world: World, program: str) -> tuple[bool, Any]:
    write_state(folder, world.whole_state())
    value = run_program(fill_in(program, world))
    value = json.loads(json.dumps(value, default=repr))
    return judge(task, world, value, export_state(folder)).is_right, value


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_only_the_reference_program_does_a_task(
    task: Task, state_folder: Path, call_counts: dict[str, int]
) -> None:
    for seed in SEEDS:
        world = make_world(task, seed)
        is_right, value = try_program(state_folder, task, world, task.reference)
        call_counts.setdefault(task.name, len(read_calls(state_folder)))
        assert is_right, f"seed {seed}: the reference program returns {value!r}"
        for number, program in enumerate(task.wrong):
            is_right, value = try_program(state_folder, task, world, program)
            assert not is_right, f"seed {seed}: wrong program {number} passes with {value!r}"
            assert read_calls(state_folder), f"wrong program {number} is not plausible"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_nothing_that_a_prompt_says_is_the_answer(task: Task) -> None:
    for seed in SEEDS:
        world = make_world(task, seed)
        prompt, state = fill_in(task.prompt, world), world.whole_state()
        if not judge(task, world, task.expect(world.copy()), state).is_right:
            continue  # without the end state, no answer is right
        words = re.findall(r"[\w.@/-]+", prompt)
        numbers = [json.loads(word) for word in words if re.fullmatch(r"[1-9]\d*(\.\d+)?", word)]
        seen = {prompt, *prompt.split("\n"), *prompt.split(". "), *words, *numbers}
        for answer in [None, "", 0, [], {}, *seen]:
            assert not judge(task, world, answer, state).is_right, answer


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_nothing_that_a_single_call_returns_is_the_answer(task: Task, state_folder: Path) -> None:
    world = make_world(task, 0)
    write_state(state_folder, world.whole_state())
    run_program(fill_in(task.reference, world))
    assert RESULTS
    for result in RESULTS:
        assert not judge(task, world, result, world.whole_state()).is_right, result


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_expected_end_state_without_the_value_is_not_enough(task: Task) -> None:
    world = make_world(task, 0)
    expected = world.copy()
    value = task.expect(expected)
    assert judge(task, world, value, expected.whole_state()).is_right
    assert not judge(task, world, None, expected.whole_state()).is_right
    if "state" in task.covers:
        assert not judge(task, world, value, world.whole_state()).is_right


def test_the_suite_has_what_it_promises(state_folder: Path, call_counts: dict[str, int]) -> None:
    assert len(TASKS) >= 66
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert Counter(task.category for task in TASKS) == dict.fromkeys(CATEGORIES, 6)
    assert {task.difficulty for task in TASKS} == {"easy", "medium", "hard"}
    for task in TASKS:
        if task.name not in call_counts:  # this test runs without the others
            try_program(state_folder, task, make_world(task, 0), task.reference)
            call_counts[task.name] = len(read_calls(state_folder))
    assert sum(number >= MANY_CALLS for number in call_counts.values()) >= len(TASKS) / 3
    for covered in ("errors", "pages", "large", "state"):
        assert sum(covered in task.covers for task in TASKS) >= 8, covered


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_what_is_right_in_one_world_is_rarely_right_in_another(task: Task) -> None:
    answers: Counter[str] = Counter()
    for seed in range(WORLDS):
        expected = make_world(task, seed).copy()
        value = task.expect(expected)
        state = expected.whole_state() if "state" in task.covers else {}
        answers[json.dumps([value, state])] += 1
    assert max(answers.values()) <= MAX_GUESS_SHARE * WORLDS, answers.most_common(1)[0][0][:200]


@pytest.mark.parametrize(
    ("expected", "found", "is_right"),
    [
        (1_000_003, 1_000_002, False),
        (1_000_003, 1_000_003.0, True),
        (12, "12", False),
        (12, True, False),
        (0.1 + 0.2, 0.3, True),
        (1234.5678901234, 1234.568, False),
        ([1, "a"], '[1, "a"]', True),
        ("a", " a\n", True),
        (None, None, True),
        (None, "null", False),
    ],
)
def test_whole_numbers_are_exact_and_others_are_not_rounded(
    expected: Any, found: Any, is_right: bool
) -> None:
    assert is_equal(expected, read_answer(found, expected)) is is_right


def test_a_text_of_the_end_state_counts_to_its_last_newline() -> None:
    [task] = [task for task in TASKS if task.name == "filesystem/level-report"]
    world = make_world(task, 0)
    expected = world.copy()
    value = task.expect(expected)
    expected.state["files"]["reports/levels.csv"] = expected.state["files"][
        "reports/levels.csv"
    ].rstrip("\n")
    assert not judge(task, world, value, expected.whole_state()).is_right


def test_equal_seeds_give_equal_worlds() -> None:
    for task in TASKS:
        assert make_world(task, 5) == make_world(task, 5)
    assert make_world(TASKS[0], 5) != make_world(TASKS[0], 6)
