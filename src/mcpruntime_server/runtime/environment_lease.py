"""A session's hold on a sandbox: which environment it uses, and when it may use it.

Sessions that were forked from each other share an environment and use it one at a time. A session
that finds it in use takes an environment of its own.
"""

from __future__ import annotations

import logging

import anyio
from anyio.abc import TaskGroup

from ..errors import JournalFailed
from ..journal.events import SandboxStarted, SandboxStopped
from .environment import Environment
from .run import Run
from .session_services import SessionServices

logger = logging.getLogger(__name__)


class EnvironmentLease:
    """The environment that one session uses; acquired for a run, released after it."""

    def __init__(
        self, services: SessionServices, session_id: str, environment: Environment | None = None
    ) -> None:
        self.environment = environment
        self._services = services
        self._session_id = session_id
        self._is_acquired = False
        self._was_replaced = False
        if environment is not None:
            environment.add_user(self)

    async def acquire(self) -> Environment:
        """Return the environment to use now; a new one if its own is gone or in use.

        Raises `Unavailable` or `SandboxFailed`.
        """
        shared = self.environment
        if shared is not None and shared.is_closed:
            self.leave(await shared.link.describe_failure())
            self._was_replaced = True
        elif shared is not None and not self._try_acquire(shared):
            self.leave("Another session of the family is using the sandbox.")
        if self.environment is None:
            self.environment = await self._open_environment()
            self._try_acquire(self.environment)
            self._journal_started(self.environment)
        return self.environment

    def _try_acquire(self, environment: Environment) -> bool:
        try:
            environment.use_lock.acquire_nowait()
        except anyio.WouldBlock:
            return False
        self._is_acquired = True
        return True

    async def _open_environment(self) -> Environment:
        services = self._services
        slot = await services.pool.acquire()
        environment = Environment(
            slot,
            services.journal,
            services.router,
            services.limits,
            services.lost_states,
            services.inputs,
        )
        environment.add_user(self)
        return environment

    def _journal_started(self, environment: Environment) -> None:
        link, info = environment.link, environment.link.info
        event = SandboxStarted(info.id, info.image, link.python_version, link.platform)
        self._services.journal.append(self._session_id, event)

    def take_was_replaced(self) -> bool:
        """Return whether the sandbox was replaced since the last call."""
        was_replaced, self._was_replaced = self._was_replaced, False
        return was_replaced

    def release(self, run: Run, savers: TaskGroup) -> None:
        """Let other sessions use the environment; the files that `run` changed arrive meanwhile."""
        environment = self.environment
        if environment is None or not self._is_acquired:
            return
        environment.record_run_end(run)
        environment.use_lock.release()
        self._is_acquired = False
        if not run.file_storage.is_settled:
            savers.start_soon(environment.save_files, run)

    def leave(self, reason: str) -> None:
        """Give the environment up; the last session that does so has its sandbox removed."""
        environment, self.environment = self.environment, None
        self._is_acquired = False
        self._was_replaced = False
        if environment is None:
            return
        environment.remove_user(self)
        try:
            self._services.journal.append(self._session_id, SandboxStopped(reason))
        except JournalFailed as exc:
            logger.error(
                "the end of a sandbox of session %s was not journaled: %s", self._session_id, exc
            )
