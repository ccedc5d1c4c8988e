"""An event that can be waited for again and again."""

from __future__ import annotations

import anyio


class RepeatableEvent:
    """An event for which one task can wait repeatedly."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the task that is waiting, or the next one to wait."""
        self._event.set()

    async def wait(self) -> None:
        """Return when the event has been set since the last return."""
        await self._event.wait()
        self._event = anyio.Event()
