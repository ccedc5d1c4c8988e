"""Whose requests these are, and which session a client means that names none."""

from __future__ import annotations

import anyio

from ..runtime.runtime import Runtime
from ..runtime.session import Session

LOCAL_PRINCIPAL = "local"  # over stdio, whoever started the process


class SessionResolver:
    """The session of a client that names none: over stdio, one for the life of the process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._default_handle: str | None = None
        self._lock = anyio.Lock()

    async def resolve_session(self, handle: str | None) -> Session:
        """Return the session `handle`, or without one the default, made at its first use."""
        if handle is not None or self._default_handle is not None:
            return await self._runtime.open_session(
                self._default_handle if handle is None else handle, LOCAL_PRINCIPAL
            )
        async with self._lock:
            session = await self._runtime.open_session(self._default_handle, LOCAL_PRINCIPAL)
            self._default_handle = session.id
            return session
