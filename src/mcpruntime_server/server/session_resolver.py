"""Finds the session that a request is about; a client that names none gets a default session."""

from __future__ import annotations

import anyio

from ..runtime.runtime import Runtime
from ..runtime.session import Session

LOCAL_PRINCIPAL = "local"  # the user who started the server over stdio


class SessionResolver:
    """Finds sessions by their handles; the default session lives as long as the process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._default_handle: str | None = None
        self._lock = anyio.Lock()

    async def resolve_session(self, handle: str | None) -> Session:
        """Return the session `handle`; without a handle the default, created at its first use."""
        if handle is not None or self._default_handle is not None:
            wanted = self._default_handle if handle is None else handle
            return await self._runtime.open_session(wanted, LOCAL_PRINCIPAL)
        async with self._lock:
            session = await self._runtime.open_session(self._default_handle, LOCAL_PRINCIPAL)
            self._default_handle = session.id
            return session
