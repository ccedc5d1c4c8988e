"""Finds the session that a request is about; a client that names none gets a default session.

The default session is new after each start of the server. Its first result names the session that
was used last, which a client that has reconnected may want to continue.
"""

from __future__ import annotations

from datetime import UTC, datetime

import anyio

from ..journal.rows import SessionRow
from ..journal.server_lease import is_server_alive
from ..runtime.resume import FORK_PURPOSE
from ..runtime.runtime import Runtime
from ..runtime.session import Session

LOCAL_PRINCIPAL = "local"  # the user who started the server over stdio
CLIENT_PURPOSES = ("", FORK_PURPOSE)  # of sessions that clients work in
NEW_DEFAULT_NOTE = (
    "This session is new. The one used last is {handle!r} ({time}): name it as `session` "
    "to continue there."
)


class SessionResolver:
    """Finds sessions by their handles; the default session lives as long as the process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._default_handle: str | None = None
        self._first_note = ""
        self._lock = anyio.Lock()

    async def resolve_session(self, handle: str | None) -> Session:
        """Return the session `handle`; without a handle the default, created at its first use."""
        if handle is not None or self._default_handle is not None:
            wanted = self._default_handle if handle is None else handle
            return await self._runtime.open_session(wanted, LOCAL_PRINCIPAL)
        async with self._lock:
            if self._default_handle is None:
                self._first_note = await self._describe_last_session()
            session = await self._runtime.open_session(self._default_handle, LOCAL_PRINCIPAL)
            self._default_handle = session.id
            return session

    def take_first_note(self, session: Session) -> str:
        """Return the note for the first result of the default session, once; "" for others."""
        if session.id != self._default_handle:
            return ""
        note, self._first_note = self._first_note, ""
        return note

    async def _describe_last_session(self) -> str:
        """Return a note that names the session used last; "" if there is none to continue."""
        rows = await self._runtime.journal.list_sessions(LOCAL_PRINCIPAL)
        last = next((row for row in rows if self._can_continue(row)), None)
        if last is None:
            return ""
        time = format_minute(last.last_used_at)
        return NEW_DEFAULT_NOTE.format(handle=last.name or last.id, time=time)

    def _can_continue(self, row: SessionRow) -> bool:
        """Return whether a client worked in a session that no other server has."""
        journal = self._runtime.journal
        if row.purpose not in CLIENT_PURPOSES or not row.run_count:
            return False
        is_free = row.owner in (None, journal.owner)
        return is_free or not is_server_alive(journal.data_dir, str(row.owner))


def format_minute(seconds: float) -> str:
    """Return a time, in epoch seconds, as a date and the minute in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
