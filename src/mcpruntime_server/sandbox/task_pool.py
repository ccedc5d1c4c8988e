"""Tasks that are used again: to start one costs the event loop as much as decoding three messages.

Rule: a function that runs here finds the context variables of the one before it, and sets its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from anyio.abc import TaskGroup

MAX_IDLE_TASKS = 64

Job = tuple[Callable[..., Awaitable[None]], tuple[Any, ...]]


class TaskPool:
    """Runs functions in tasks of a group, until that is cancelled."""

    def __init__(self, task_group: TaskGroup) -> None:
        self._task_group = task_group
        self._idle: list[asyncio.Future[Job]] = []  # each is the next job of a task

    def start_soon(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run `function` with `args` after the current callbacks of the event loop."""
        while self._idle:
            next_job = self._idle.pop()
            if not next_job.done():  # else its task was cancelled
                next_job.set_result((function, args))
                return
        self._task_group.start_soon(self._run, function, args)

    async def _run(self, *job: Any) -> None:
        while True:
            function, args = job
            await function(*args)
            if len(self._idle) >= MAX_IDLE_TASKS:
                return
            next_job: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
            self._idle.append(next_job)
            del job, function, args  # what it has worked on may be large
            job = await next_job
