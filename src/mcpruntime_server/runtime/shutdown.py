"""How tasks end when the server is asked to stop."""

from __future__ import annotations

import anyio


async def cancel_when_set(event: anyio.Event, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when `event` is set."""
    await event.wait()
    scope.cancel()
