"""A task of the suite, and the one checker of all tasks.

A task is judged by the end state of the servers and by the value that it returns; what it prints is
never looked at. The expected state and value are computed by `expect`, which works on the fixture
and not through tools, so it shares no code with the reference program.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from string import Template
from typing import Any, Literal

from .world import State, World

Difficulty = Literal["easy", "medium", "hard"]
RELATIVE_TOLERANCE = 1e-9  # of a number that is computed; a rounded one is another number


@dataclass(frozen=True)
class Task:
    """What a model is asked, and what is right.

    `prompt` and programs name facts of their world as `$$fact`. `expect` gets a world of its own:
    it changes the state to what it should become, and returns the expected value. `wrong` are
    plausible programs that must not pass. `covers` says what the task tests beyond calls.
    """

    name: str
    difficulty: Difficulty
    prompt: str
    expect: Callable[[World], Any]
    reference: str
    wrong: tuple[str, str]
    covers: tuple[Literal["errors", "pages", "large", "state"], ...] = ()
    category: str = ""


@dataclass(frozen=True)
class Judgement:
    """What was wrong with an answer; nothing if it is right."""

    problems: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Whether the task was done."""
        return not self.problems


def fill_in(text: str, world: World) -> str:
    """Return a prompt or a program with the facts of the world."""
    return Template(text).substitute({name: str(fact) for name, fact in world.facts.items()})


def judge(task: Task, world: World, value: Any, state: State) -> Judgement:
    """Compare a value and an end state with what is expected of a task in this world."""
    expected = world.copy()
    expected_value = task.expect(expected)
    problems: list[str] = []
    if not is_equal(expected_value, read_answer(value, expected_value)):
        problems.append(f"the value is {shorten(value)}, not {shorten(expected_value)}")
    before = world.whole_state()
    for server, wanted in expected.whole_state().items():
        if not is_equal(
            normalize(wanted, before[server]), normalize(state.get(server), before[server])
        ):
            problems.append(f"the end state of {server} is not as expected")
    return Judgement(tuple(problems))


def read_answer(value: Any, expected: Any) -> Any:
    """Return a returned value without what only its way to the checker did to it.

    Large values arrive as JSON text, and the space around a text does not count. Neither holds for
    an end state: a file without its last newline is another file. A number is no large value.
    """
    if not isinstance(value, str):
        return value
    if isinstance(expected, str):
        return value.strip()
    if not isinstance(expected, list | dict):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def is_equal(expected: Any, found: Any) -> bool:
    """Return whether a value is as expected; whole numbers are exact, others almost."""
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None:
        return expected is found
    if isinstance(expected, int) and isinstance(found, int | float):
        return expected == found
    if isinstance(expected, float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-9)
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(is_equal, expected, found))
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(
            is_equal(value, found[key]) for key, value in expected.items()
        )
    return bool(expected == found)


def normalize(state: Any, before: Any) -> Any:
    """Return a state in which records are sorted, and new ones have no id.

    The order in which a program makes records is its own business, and so are their ids.
    """
    if isinstance(state, dict):
        old = before if isinstance(before, dict) else {}
        return {
            key: normalize(value, old.get(key)) for key, value in state.items() if key != "busy"
        }
    if isinstance(state, list) and state and all(isinstance(each, dict) for each in state):
        known = {each.get("id") for each in before or () if isinstance(each, dict)}
        records = [
            {
                key: normalize(value, None)
                for key, value in each.items()
                if key not in ("id", "busy")
            }
            | ({"id": each["id"]} if each.get("id") in known - {None} else {})
            for each in state
        ]
        return sorted(records, key=lambda each: json.dumps(each, sort_keys=True))
    return state


def shorten(value: Any) -> str:
    """Return a value as a short text."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
