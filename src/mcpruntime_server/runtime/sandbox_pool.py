"""Sandboxes that are ready for use, and those that sessions have acquired.

Each sandbox lives in a task of its own, which opens and closes it; a session that acquires it only
holds a `SandboxSlot`. The pool is refilled in the background, and a little later: a short first run
would have to share the processors with the start of a container.
"""

from __future__ import annotations

import logging
import os
from collections import deque

import anyio
from anyio.abc import TaskGroup

from ..errors import McpRuntimeError, SandboxFailed
from ..protocol import wire
from ..sandbox import Backend
from ..sandbox.link import NO_HELPERS, LinkHelpers, SandboxLink, open_link
from .observer import NO_OBSERVERS, Observers

VERSION_TIMEOUT_S = 3.0  # for the first sandbox; a client waits, and some do not wait longer
# More at a time only make each of them slower, and everything else as well.
MAX_CONCURRENT_STARTS = min(4, max(2, os.cpu_count() or 1))
START_DELAY_S = 0.3  # of a server, whose client waits for an answer, and not for a sandbox
REFILL_DELAY_S = 0.1  # the run that has just got a sandbox needs the processors first

logger = logging.getLogger(__name__)


class SandboxSlot:
    """A sandbox that is ready; it is removed when its holder releases the slot, or when it fails.

    A sandbox that has failed may still run code, so it does not wait for its holder.
    """

    def __init__(self, link: SandboxLink) -> None:
        self.link = link
        self.released = anyio.Event()

    def release(self) -> None:
        """Have the sandbox removed."""
        self.released.set()

    async def wait_until_unused(self) -> None:
        """Wait until the sandbox is released, or has failed and it is known why."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._release_failed)
            await self.released.wait()
            tasks.cancel_scope.cancel()

    async def _release_failed(self) -> None:
        await self.link.closed.wait()
        await self.link.describe_failure()  # while the container can tell
        self.release()


class SandboxPool:
    """Starts sandboxes and keeps `size` of them ready."""

    def __init__(
        self,
        backend: Backend,
        setup: wire.Setup,
        size: int,
        tasks: TaskGroup,
        observers: Observers = NO_OBSERVERS,
        helpers: LinkHelpers = NO_HELPERS,
    ) -> None:
        self._observers = observers
        self._helpers = helpers
        self._backend = backend
        self._setup = setup
        self._size = size
        self._tasks = tasks
        self._ready: deque[SandboxSlot] = deque()
        self._starting = 0
        self._open = 0  # ready or in use
        self._waiting = 0
        self._is_refill_due = False
        self._attempts = 0  # to start a sandbox, so far
        self._failures: deque[tuple[int, McpRuntimeError]] = deque()  # by attempt, for who waits
        self._update = anyio.Event()

    async def acquire(self) -> SandboxSlot:
        """Return a sandbox, preferably a ready one; raises `Unavailable` or `SandboxFailed`."""
        self._waiting += 1
        try:
            slot, was_ready = await self._take_next_slot()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._failures.clear()
        self._observers.on_sandbox_acquired(was_ready=was_ready)
        if not self._is_refill_due:
            self._is_refill_due = True
            self._tasks.start_soon(self._refill)
        return slot

    def count_sandboxes(self) -> dict[str, int]:
        """Return how many sandboxes are starting, ready and in use, by these names."""
        ready = len(self._ready)
        return {"starting": self._starting, "ready": ready, "in_use": self._open - ready}

    async def _take_next_slot(self) -> tuple[SandboxSlot, bool]:
        """Return a sandbox, and whether nobody had to wait for it."""
        was_ready = True
        before = self._attempts  # an earlier failure says nothing now: the engine may be back
        while True:
            while self._ready:
                slot = self._ready.popleft()
                if not slot.link.closed.is_set():
                    return slot, was_ready
                slot.release()
            failure = self._take_failure_after(before)
            if failure is not None:
                raise failure
            self.fill()
            was_ready = False
            await self._update.wait()

    def _take_failure_after(self, attempt: int) -> McpRuntimeError | None:
        for found in self._failures:
            if found[0] > attempt:
                self._failures.remove(found)
                return found[1]
        return None

    async def find_python_version(self) -> str:
        """Return the version of Python in the sandboxes that are kept ready; "" if none starts."""
        self.fill()
        with anyio.move_on_after(VERSION_TIMEOUT_S):
            while self._starting and not self._ready:
                await self._update.wait()
        return self._ready[0].link.python_version if self._ready else ""

    async def fill_after_start(self) -> None:
        """Start the sandboxes that are kept ready, once the server has had time to start."""
        await anyio.sleep(START_DELAY_S)
        self.fill()

    async def _refill(self) -> None:
        """Replace the sandboxes that were acquired, once their first runs have had time."""
        await anyio.sleep(REFILL_DELAY_S)
        self._is_refill_due = False
        self.fill()

    def fill(self) -> None:
        """Start the sandboxes that are waited for or to be kept ready, a few at a time."""
        missing = self._waiting + self._size - len(self._ready) - self._starting
        for _ in range(min(missing, MAX_CONCURRENT_STARTS - self._starting)):
            self._starting += 1
            self._attempts += 1
            self._tasks.start_soon(self._run_sandbox, self._attempts)

    async def _run_sandbox(self, attempt: int) -> None:
        """Open one sandbox and keep it until its slot is released."""
        is_ready = False
        try:
            async with open_link(self._backend, self._setup, self._helpers) as link:
                slot = SandboxSlot(link)
                is_ready = True
                self._starting -= 1
                self._open += 1
                self._ready.append(slot)
                self._notify_waiters()
                await slot.wait_until_unused()
        except* McpRuntimeError as group:
            self._record_failure(attempt, _first_error(group), was_ready=is_ready)
        except* Exception as mistake:  # ours: it must not take the server with it
            logger.error("a sandbox failed inside the server", exc_info=mistake)
            failure = SandboxFailed("The sandbox failed inside the server; its log says why.")
            self._record_failure(attempt, failure, was_ready=is_ready)
        finally:
            if is_ready:
                self._open -= 1
            else:
                self._starting -= 1
                self._notify_waiters()

    def _record_failure(self, attempt: int, failure: McpRuntimeError, *, was_ready: bool) -> None:
        what = "could not be removed" if was_ready else "could not be started"
        logger.error("a sandbox %s: %s", what, failure)
        if not was_ready and self._waiting:
            self._failures.append((attempt, failure))

    def _notify_waiters(self) -> None:
        self._update.set()
        self._update = anyio.Event()


def _first_error(group: BaseExceptionGroup[McpRuntimeError]) -> McpRuntimeError:
    inner = group.exceptions[0]
    return _first_error(inner) if isinstance(inner, BaseExceptionGroup) else inner
