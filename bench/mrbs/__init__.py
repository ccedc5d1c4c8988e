"""MRBS: 66 tasks in eleven categories, each on real MCP servers with state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from . import (
    calculator,
    calendar,
    chained,
    database,
    email,
    filesystem,
    http,
    math,
    text,
    transforms,
    weather,
)
from .task import Task
from .world import World

__all__ = ["CATEGORIES", "TASKS", "make_world", "servers_of"]

SERVERS_OF = {  # the servers that the tasks of a category use, where they have another name
    "filesystem": ("files",),
    "http": ("web",),
    "email": ("mail",),
    "math": ("series",),
    "transforms": ("tables",),
    "chained": ("weather", "files", "database", "web", "mail", "calendar", "tables"),
}
CATEGORIES = {
    "calculator": calculator,
    "weather": weather,
    "filesystem": filesystem,
    "database": database,
    "http": http,
    "text": text,
    "email": email,
    "calendar": calendar,
    "math": math,
    "transforms": transforms,
    "chained": chained,
}
TASKS: Sequence[Task] = tuple(
    replace(task, name=f"{name}/{task.name}", category=name)
    for name, module in CATEGORIES.items()
    for task in module.TASKS
)


def make_world(task: Task, seed: int) -> World:
    """Return the fixture of a task; it depends on the seed and the category alone."""
    make: Callable[[Random], World] = CATEGORIES[task.category].make_world
    return make(Random(f"{seed}/{task.category}"))


def servers_of(task: Task) -> tuple[str, ...]:
    """Return the names of the servers that the tasks of its category use."""
    return SERVERS_OF.get(task.category, (task.category,))
