"""Finds the session that a request is about; a connection that names none has a default session.

The default session is new for each connection. Its first result names the session that was used
last, which a client that has reconnected may want to continue. Requests of the protocol's newer
revisions over HTTP belong to no connection: each that names no session gets a new one.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import anyio
from mcp.server.mcpserver import Context

from ..journal.rows import SessionRow
from ..journal.server_lease import is_server_alive
from ..runtime.resume import FORK_PURPOSE
from ..runtime.runtime import Runtime
from ..runtime.session import Session
from .connections import MAX_CONNECTIONS, STDIO_CONNECTION, find_connection_id

NAME_DIGITS = 12  # of the session of a connection
CLIENT_PURPOSES = ("", FORK_PURPOSE)  # of sessions that clients work in
NEW_DEFAULT_NOTE = (
    "This session is new. The one used last is {handle!r} ({time}): name it as `session` "
    "to continue there."
)


class SessionResolver:
    """Finds the sessions of one principal by their handles, and the defaults of its connections."""

    def __init__(self, runtime: Runtime, principal: str) -> None:
        self._runtime = runtime
        self._principal = principal
        self._default_ids: OrderedDict[str, str] = OrderedDict()  # by connection
        self._first_notes: dict[str, str] = {}  # by the id of a default session without results
        self._lock = anyio.Lock()

    async def resolve_session(self, handle: str | None, ctx: Context[Any]) -> Session:
        """Return the session `handle`; without a handle the default, created at its first use."""
        if handle is not None:
            return await self._runtime.open_session(handle, self._principal)
        connection = find_connection_id(ctx)
        if connection is None:
            return await self._runtime.open_session(None, self._principal)
        if connection in self._default_ids:
            return await self._open_default(connection)
        async with self._lock:
            if connection in self._default_ids:
                return await self._open_default(connection)
            note = await self._describe_last_session()
            name = default_session_name(connection)
            session = await self._runtime.open_session(name, self._principal)
            self._default_ids[connection] = session.id
            if session.tip is None:
                session.skip_first_note()  # its client knows nothing of the name
                self._first_notes[session.id] = note
            if len(self._default_ids) > MAX_CONNECTIONS:
                _, forgotten = self._default_ids.popitem(last=False)
                self._first_notes.pop(forgotten, None)
            return session

    async def _open_default(self, connection: str) -> Session:
        self._default_ids.move_to_end(connection)
        return await self._runtime.open_session(self._default_ids[connection], self._principal)

    def take_first_note(self, session: Session) -> str:
        """Return the note for the first result of a default session, once; "" for others."""
        return self._first_notes.pop(session.id, "")

    async def _describe_last_session(self) -> str:
        """Return a note that names the session used last; "" if there is none to continue."""
        rows = await self._runtime.journal.list_sessions(self._principal)
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


def default_session_name(connection: str) -> str | None:
    """Return the name of a connection's default session; over stdio it needs none.

    A server that opens a connection again finds its session by that.
    """
    if connection == STDIO_CONNECTION:
        return None
    return f"connection-{sha256(connection.encode()).hexdigest()[:NAME_DIGITS]}"


def format_minute(seconds: float) -> str:
    """Return a time, in epoch seconds, as a date and the minute in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
