"""Whether a sandbox is gone, and why."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio


class SandboxEnd:
    """The end of one sandbox; `reached` is set when it is gone."""

    def __init__(self, explain_exit: Callable[[], Awaitable[str]]) -> None:
        self.reached = anyio.Event()
        self.is_protocol_broken = False  # by what the sandbox sent
        self._reason = ""
        self._explain_exit = explain_exit
        self._explaining = anyio.Lock()

    def record(self, reason: str) -> None:
        """Note that the sandbox is gone; the backend knows an empty reason."""
        self._reason = reason
        self.reached.set()

    async def explain(self) -> str:
        """Return why the sandbox is gone."""
        async with self._explaining:
            if not self._reason:
                self._reason = await self._explain_exit()
        return self._reason
