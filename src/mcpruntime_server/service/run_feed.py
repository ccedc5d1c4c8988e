"""Follow the events of a run: the recorded ones, then new ones, without a gap and without repeats.

Everything is read from the journal, so a run may execute here, in another server, or have ended
long ago. Those who follow one run share what is read: the one who is furthest ahead reads the next
page, and the others get it from memory. One who is too slow for that reads for himself, so that
nobody waits for him; he has one batch in memory, until his client has taken it.

Rule: an event is passed on when it is committed. Otherwise the next server could give its id to
another one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple
from weakref import WeakValueDictionary

import anyio

from ..errors import McpRuntimeError
from ..journal.events import ApprovedCall, Event, RunFinished, RunStarted
from ..journal.rows import FILES_FLAG, RunRow, StoredEvent
from ..journal.server_lease import is_server_alive
from ..runtime.runtime import Runtime
from ..server.run_lookup import REMOTE_POLL_INTERVAL_S
from .run_events import (
    BEGINNING,
    MAX_PAGE_BYTES,
    WHOLE_EVENT,
    EncodedEvent,
    EventEncoder,
    EventPosition,
    EventReaderState,
)

IDLE_POLL_INTERVAL_S = 10.0  # for a run of this server, which says when there is something new
END_CHECK_S = 1.0
FILES_TIMEOUT_S = 60.0  # for the files of a finished run to come from another server
MAX_KEPT_EVENTS = 1_000  # of a run that is followed, for those who are not ahead
MAX_KEPT_BYTES = 1024 * 1024
MAX_BATCH_BYTES = 24 * 1024  # that one who follows gets at once: mostly one event of long output


class FollowedRun(NamedTuple):
    """A run, and whose it is."""

    id: str
    session_id: str
    principal: str


class Page(NamedTuple):
    """What one look at the journal has found."""

    run: RunRow
    events: list[EncodedEvent]
    state: EventReaderState


class RunEventReader:
    """Reads the events of a run, one page after the other, and waits for new ones."""

    def __init__(self, runtime: Runtime, run: FollowedRun, max_page_bytes: int) -> None:
        self._runtime = runtime
        self._journal = runtime.journal
        self._run = run
        self._max_page_bytes = max_page_bytes
        self._state = EventReaderState()
        self._files_until: float | None = None  # when files that have not come count as lost

    async def skip_to(self, sequence: int) -> None:
        """Continue after event `sequence` of the session; raises `NotFound`."""
        start, end = await self._find_event(RunStarted), await self._find_event(RunFinished)
        approved_calls: tuple[ApprovedCall, ...] = ()
        if start is not None and isinstance(start.event, RunStarted):
            approved_calls = tuple(start.event.approved_calls)
        held_end = None
        if end is not None and isinstance(end.event, RunFinished) and end.sequence <= sequence:
            held_end = end if FILES_FLAG in end.event.flags else None
        calls = await self._journal.load_open_calls(self._run.id, sequence)
        self._state = EventReaderState(sequence, calls, approved_calls, held_end)

    async def _find_event(self, event_type: type[Event]) -> StoredEvent | None:
        """Return the event of the run that has this type."""
        found = await self._journal.load_events(
            self._run.session_id, self._run.id, limit=1, event_type=event_type, damage=[]
        )
        return found[0] if found else None

    async def read_next(self) -> tuple[list[EncodedEvent], bool]:
        """Return the next events, waiting for one if necessary, and whether these are the last.

        Nothing is lost if it is cancelled. Raises `NotFound` and `JournalFailed`.
        """
        while True:
            changed = self._journal.next_change(self._run.session_id)
            page = await self._read_page()
            if page.state.sequence > self._state.sequence:
                self._state = page.state
                if page.events:
                    return page.events, False
            elif not page.run.is_finished:
                await self._wait_for_change(changed)
            elif page.state.held_end is None:
                return [], True
            elif not await self._wait_for_files():
                encoder = EventEncoder(page.run, self._state)
                return encoder.release_end(), True

    async def _read_page(self) -> Page:
        def encode(run: RunRow, stored: Iterator[StoredEvent]) -> Page:
            encoder = EventEncoder(run, state)
            events = encoder.encode_page(stored, self._max_page_bytes)
            return Page(run, events, encoder.state)

        state = self._state
        return await self._journal.scan_run_events(self._run.id, state.sequence, encode)

    async def _wait_for_change(self, changed: anyio.Event) -> None:
        """Wait until there may be something new; without its server, the run continues here."""
        timeout_s = IDLE_POLL_INTERVAL_S
        if not self._journal.owns_session(self._run.session_id):
            timeout_s = REMOTE_POLL_INTERVAL_S
            if not await self._is_owner_alive():
                with suppress(McpRuntimeError):  # there is no room for it, or another was faster
                    await self._runtime.open_session(self._run.session_id, self._run.principal)
        with anyio.move_on_after(timeout_s):
            await changed.wait()

    async def _wait_for_files(self) -> bool:
        """Wait for the files of the finished run; return False if they will not come."""
        now = anyio.current_time()
        if self._files_until is None:
            self._files_until = now + FILES_TIMEOUT_S
        elif now >= self._files_until:
            return False
        if self._journal.owns_session(self._run.session_id):
            with anyio.move_on_after(self._files_until - now):
                await self._runtime.wait_for_files(self._run.session_id)
            self._files_until = now
        elif await self._is_owner_alive():
            await anyio.sleep(REMOTE_POLL_INTERVAL_S)
        else:
            self._files_until = now
        return True

    async def _is_owner_alive(self) -> bool:
        """Return whether a server has the session of the run."""
        row = await self._journal.load_session(self._run.session_id)
        return row.owner is not None and is_server_alive(self._journal.data_dir, row.owner)


class RunFeed:
    """The events of a run after `start`, as far as they were read; the oldest are forgotten."""

    def __init__(self, reader: RunEventReader, start: EventPosition) -> None:
        self.start = start
        self.is_complete = False
        self._reader = reader
        self._events: list[EncodedEvent] = []
        self._size = 0
        self._lock = anyio.Lock()

    def find_after(self, position: EventPosition) -> Sequence[EncodedEvent]:
        """Return the events after a position that is not before `start`, as many as are a batch."""
        first = bisect_right(self._events, position, key=lambda each: each.position)
        size = 0
        for last in range(first, len(self._events)):
            size += len(self._events[last].data)
            if size >= MAX_BATCH_BYTES:
                return self._events[first : last + 1]
        return self._events[first:]

    def forget_until(self, position: EventPosition) -> None:
        """Forget the events up to a position."""
        self._forget(bisect_right(self._events, position, key=lambda each: each.position))

    async def advance(self, position: EventPosition) -> None:
        """Wait until there is an event after a position, or it is certain that there is none."""
        async with self._lock:
            if self.is_complete or (self._events and self._events[-1].position > position):
                return
            events, self.is_complete = await self._reader.read_next()
            self._events += events
            self._size += sum(len(each.data) for each in events)
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        count = max(len(self._events) - MAX_KEPT_EVENTS, 0)
        size = self._size - sum(len(each.data) for each in self._events[:count])
        while size > MAX_KEPT_BYTES and count < len(self._events) - 1:
            size -= len(self._events[count].data)
            count += 1
        self._forget(count)

    def _forget(self, count: int) -> None:
        if count:
            self.start = self._events[count - 1].position
            self._size -= sum(len(each.data) for each in self._events[:count])
            del self._events[:count]


class RunFollower:
    """One who follows a run."""

    def __init__(
        self,
        shared: RunFeed,
        open_feed: Callable[[EventPosition], Awaitable[RunFeed]],
        position: EventPosition,
    ) -> None:
        self.position = position
        self._shared = shared
        self._open_feed = open_feed
        self._own: RunFeed | None = None  # while what is needed is no longer shared

    async def next_events(self) -> Sequence[EncodedEvent]:
        """Return the next events, waiting for one if necessary; none if there are no more.

        Nothing is lost if it is cancelled. Raises `NotFound` and `JournalFailed`.
        """
        while True:
            feed = await self._find_feed()
            events = feed.find_after(self.position)
            if events:
                self.position = events[-1].position
                if feed is self._own:
                    feed.forget_until(self.position)
                return events
            if feed.is_complete:
                return ()
            await feed.advance(self.position)

    async def has_ended(self) -> bool:
        """Return whether a finished run has no more events; files are not waited for long."""
        feed = await self._find_feed()
        with anyio.move_on_after(END_CHECK_S):
            await feed.advance(self.position)
        return feed.is_complete and not feed.find_after(self.position)

    async def _find_feed(self) -> RunFeed:
        if self.position >= self._shared.start:
            self._own = None
            return self._shared
        if self._own is None:
            self._own = await self._open_feed(self.position)
        return self._own


class RunFeeds:
    """The feeds of the runs that are followed; each lives as long as somebody follows it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._feeds: WeakValueDictionary[str, RunFeed] = WeakValueDictionary()

    async def follow_run(self, run: FollowedRun, after: EventPosition = BEGINNING) -> RunFollower:
        """Return a follower of a run who gets the events after a position."""
        feed = self._feeds.get(run.id) or await self._open_feed(run, MAX_PAGE_BYTES, after)
        feed = self._feeds.setdefault(run.id, feed)  # another may have been faster
        return RunFollower(feed, partial(self._open_feed, run, MAX_BATCH_BYTES), after)

    async def _open_feed(
        self, run: FollowedRun, max_page_bytes: int, after: EventPosition
    ) -> RunFeed:
        reader = RunEventReader(self._runtime, run, max_page_bytes)
        sequence = max(after.sequence - (after.part != WHOLE_EVENT), 0)
        if sequence:
            last = await self._runtime.journal.load_last_sequence(run.session_id)
            sequence = min(sequence, last)
            await reader.skip_to(sequence)
        return RunFeed(reader, EventPosition(sequence))
