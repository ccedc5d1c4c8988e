"""A task: the code of a session, other values for its literals, and the right answers.

Rule 1: `truth` never asks an MCP server and never runs the task's code; it reads the world with
plain Python.
Rule 2: values in `news` are the values of recorded literals; a tuple stands for a list.
Rule 3: texts may hold the world's placeholders ("{repo}"), which `World.fill` replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .world import World

Values = Mapping[Any, Any]
Truth = Callable[[World, Values], Any]


@dataclass(frozen=True)
class Task:
    """One session of an agent: its request and the code of its runs.

    Each mapping in `news` is one use of the skill: recorded values -> new values. `truth` receives
    such a mapping, or an empty one for the recording. A task of the kind "refuse" must not become
    an active skill; `why` gives the reason. `fails` are the numbers, from 0, of the steps that end
    with an error.
    """

    name: str
    text: str
    steps: tuple[str, ...]
    news: tuple[Values, ...] = ()
    truth: Truth | None = None
    kind: Literal["skill", "refuse"] = "skill"
    why: str = ""
    fails: frozenset[int] = frozenset()

    def code(self, world: World) -> tuple[str, ...]:
        """Return the steps with the placeholders replaced."""
        return tuple(world.fill(step) for step in self.steps)

    def changes(self, world: World) -> tuple[Values, ...]:
        """Return `news` with the placeholders replaced."""
        return tuple(
            {fill(world, old): fill(world, new) for old, new in change.items()}
            for change in self.news
        )


def fill(world: World, value: Any) -> Any:
    """Return a value with the placeholders in its texts replaced."""
    if isinstance(value, tuple):
        return tuple(fill(world, item) for item in value)
    return world.fill(value) if isinstance(value, str) else value


def chosen(world: World, values: Values, recorded: Any) -> Any:
    """Return the new value for a recorded value, or the recorded value itself."""
    recorded = fill(world, recorded)
    return values.get(recorded, recorded)
