"""Whose requests these are, and which session a client means that names none."""

from __future__ import annotations

import anyio

from ..runtime.session import Session
from ..runtime.sessions import Runtime

PRINCIPAL = "local"  # over stdio, whoever started the process


class DefaultSession:
    """The session of a client that names none: over stdio, one for the life of the process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._handle: str | None = None
        self._lock = anyio.Lock()

    async def find(self, handle: str | None) -> Session:
        """Return the session `handle`, or without one the default, made at its first use."""
        if handle is not None or self._handle is not None:
            return await self._runtime.session(self._handle if handle is None else handle, PRINCIPAL)
        async with self._lock:
            session = await self._runtime.session(self._handle, PRINCIPAL)
            self._handle = session.id
            return session
