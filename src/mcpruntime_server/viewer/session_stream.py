"""Server-sent events that tell the page of a session to reload what has changed.

An event has no content besides its place in the log, so a page that was disconnected has caught up
once it has loaded what it shows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext

import anyio
from starlette.responses import Response

from ..journal.rows import SessionRow
from ..journal.store import Journal
from ..service.event_stream import EventStreamResponse
from ..service.run_events import EncodedEvent, EventPosition
from .page_rendering import PAGE_SECURITY_HEADERS

CHANGE_INTERVAL_S = 0.25  # between two events of a stream
POLL_INTERVAL_S = 0.5  # for a session that another server has
IDLE_POLL_S = 5.0  # for one of this server, which says when there is something new


class SessionChanges:
    """The changes of one session, one after the other, for one page."""

    def __init__(self, journal: Journal, session_id: str) -> None:
        self._journal = journal
        self._session_id = session_id
        self._sent = -1

    async def next_events(self) -> Sequence[EncodedEvent]:
        """Return the next change, waiting for one; raises `NotFound` if the session is removed."""
        while True:
            changed = self._journal.next_change(self._session_id)
            last = await self._journal.load_last_sequence(self._session_id)
            if last != self._sent:
                if self._sent >= 0:
                    await anyio.sleep(CHANGE_INTERVAL_S)
                    last = await self._journal.load_last_sequence(self._session_id)
                await self._journal.load_session(self._session_id)
                self._sent = last
                data = json.dumps({"sequence": last}).encode()
                return [EncodedEvent(EventPosition(last), "change", data)]
            is_own = self._journal.owns_session(self._session_id)
            with anyio.move_on_after(IDLE_POLL_S if is_own else POLL_INTERVAL_S):
                await changed.wait()
            await self._journal.load_session(self._session_id)


def build_session_stream(
    journal: Journal, session: SessionRow, is_stopping: anyio.Event
) -> Response:
    """Return the stream of the changes of a session."""
    changes = SessionChanges(journal, session.id)
    return EventStreamResponse(
        session.id, changes, is_stopping, PAGE_SECURITY_HEADERS, nullcontext()
    )
