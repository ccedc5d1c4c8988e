"""The HTTP API: runs, sessions and files for programs that are no MCP clients.

Rule 1: a handler names sessions and runs by their ids, and what it returns comes from the journal,
so that it does not matter which server executes a run.
Rule 2: what belongs to another principal is answered as what does not exist.
Rule 3: a client that leaves ends its request only. A run ends by itself or is cancelled.
"""

from __future__ import annotations

import anyio
from starlette.requests import Request
from starlette.responses import Response

from ..config import Config
from ..errors import InvalidRequest
from ..runtime.runtime import Runtime
from ..server.run_lookup import RunLookup
from ..server.run_starter import RunStarter
from ..server.run_tool import MAX_IDEMPOTENCY_KEY_CHARS
from .api_models import EventsQuery, ExecuteRequest
from .authentication import find_principal
from .event_stream import EventStreamResponse
from .requests import read_body, read_query
from .run_events import BEGINNING, EventPosition, parse_event_id
from .run_feed import FollowedRun, RunFeeds

LAST_EVENT_HEADER = "last-event-id"
IDEMPOTENCY_KEY_HEADER = "idempotency-key"


class Api:
    """The handlers of the routes; see `api_routes`."""

    def __init__(
        self, config: Config, runtime: Runtime, starter: RunStarter, is_stopping: anyio.Event
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._journal = runtime.journal
        self._starter = starter
        self._feeds = RunFeeds(runtime)
        self._is_stopping = is_stopping

    # runs -----------------------------------------------------------------------------------------

    async def execute_and_stream(self, request: Request) -> Response:
        """Start a run and stream its events; with `Last-Event-ID`, continue such a stream."""
        body = await read_body(request, ExecuteRequest)
        last_id = request.headers.get(LAST_EVENT_HEADER)
        if last_id:
            run_id, position = parse_event_id(last_id)
            if run_id is None:
                raise InvalidRequest(
                    f"The id {last_id!r:.80} names no run.",
                    remedy="Send back the id of the last event as it was received.",
                )
            return await self._stream_events(await self._find_run(request, run_id), position)
        followed = await self._start_run(request, body)
        return await self._stream_events(followed, BEGINNING)

    async def stream_events(self, request: Request) -> Response:
        """Stream the events of a run: recorded ones, then new ones until its end."""
        run_id = request.path_params["run_id"]
        last_id = request.headers.get(LAST_EVENT_HEADER) or read_query(request, EventsQuery).after
        followed = await self._find_run(request, run_id)
        position = BEGINNING
        if last_id:
            named, position = parse_event_id(last_id)
            if named not in (None, run_id):
                raise InvalidRequest(
                    f"The event {last_id!r:.80} belongs to another run.",
                    remedy=f"Ask for its run: GET /runs/{named}/events.",
                )
        return await self._stream_events(followed, position)

    async def _start_run(self, request: Request, body: ExecuteRequest) -> FollowedRun:
        """Start a run, or find the one that the same request has started before."""
        principal, key = find_principal(request.scope), read_idempotency_key(request, body)
        session = await self._runtime.open_session(body.session, principal)
        with session.keep_open():
            run_id = None if key is None else await self._find_by_key(session.id, key)
            if run_id is None:
                run = await self._starter.start_run(
                    session,
                    body.code,
                    body.timeout_s,
                    key,
                    detached=True,
                    dry_run=body.dry_run,
                    context=body.context,
                )
                await run.announce()
                run_id = run.id
        return FollowedRun(run_id, session.id, principal)

    async def _find_by_key(self, session_id: str, key: str) -> str | None:
        row = await self._journal.find_run_by_key(session_id, key)
        return None if row is None else row.id

    async def _find_run(self, request: Request, run_id: str) -> FollowedRun:
        """Return a run of the principal; raises `NotFound`."""
        principal = find_principal(request.scope)
        row, session = await RunLookup(self._runtime, principal).load_run_rows(run_id)
        return FollowedRun(row.id, session.id, principal)

    async def _stream_events(self, run: FollowedRun, after: EventPosition) -> Response:
        follower = await self._feeds.follow_run(run, after)
        headers = {"Location": f"/runs/{run.id}"}
        return EventStreamResponse(run.id, follower, self._is_stopping, headers)


def read_idempotency_key(request: Request, body: ExecuteRequest) -> str | None:
    """Return the key that names a request, so that it starts one run however often it comes."""
    key = request.headers.get(IDEMPOTENCY_KEY_HEADER)
    if key is None:
        return None
    if body.session is None:
        raise InvalidRequest(
            "Idempotency-Key applies to a session.", remedy="Name one with `session`."
        )
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_CHARS:
        raise InvalidRequest(
            f"The Idempotency-Key has {len(key):,} characters.",
            remedy=f"Use 1 to {MAX_IDEMPOTENCY_KEY_CHARS}.",
        )
    return key
