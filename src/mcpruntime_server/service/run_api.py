"""The routes that start runs, follow them, answer them and end them.

Rule 1: a handler names sessions and runs by their ids, and what it returns comes from the journal,
so that it does not matter which server executes a run.
Rule 2: what belongs to another principal is answered as what does not exist.
Rule 3: a client that leaves ends its request only. A run ends by itself or is cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from ..errors import InsufficientScope, InvalidRequest, NotFound
from ..protocol.payloads import JsonObject
from ..runtime.pending_questions import APPROVAL_KIND, PendingQuestion, encode_large_answers
from ..runtime.run import Run
from ..runtime.run_history import load_recorded_run
from ..runtime.run_report import RunReport
from ..runtime.shutdown import cancel_when_set
from ..server.client_questions import RECEIPT_TIMEOUT_S
from ..server.plan_commit import check_has_plan, commit_plan
from ..server.remote_runs import answer_remote_run, cancel_remote_run, select_named
from ..server.run_lookup import RunLookup
from ..server.run_tool import CANCEL_TIMEOUT_S, MAX_IDEMPOTENCY_KEY_CHARS
from .api_models import AnswersRequest, EventsQuery, ExecuteRequest, RunDocument, StreamRequest
from .api_services import ApiServices
from .authentication import find_caller, find_principal
from .documents import build_run_document
from .event_stream import EventStreamResponse
from .requests import document_response, read_body, read_query
from .run_events import BEGINNING, EventPosition, parse_event_id
from .run_feed import FollowedRun, RunFeeds, RunFollower

LAST_EVENT_HEADER = "last-event-id"
IDEMPOTENCY_KEY_HEADER = "idempotency-key"
START_TIMEOUT_S = 30.0  # for a run that commits a plan to be in the journal
KEY_NAME_DIGITS = 24  # of the digest of a key


class RunApi:
    """The handlers of the routes."""

    def __init__(self, services: ApiServices) -> None:
        self._config = services.config
        self._runtime = services.runtime
        self._journal = services.runtime.journal
        self._starter = services.starter
        self._keep_as_skill = services.keep_as_skill
        self._is_stopping = services.is_stopping
        self._feeds = RunFeeds(services.runtime)
        self._streams = services.streams

    # starting and following -----------------------------------------------------------------------

    async def execute(self, request: Request) -> Response:
        """Start a run and wait for its end, or for its first question."""
        body = await read_body(request, ExecuteRequest)
        followed, run = await self._start_run(request, body)
        wait_s = self._config.server.wait_s if body.wait_s is None else body.wait_s
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_when_set, self._is_stopping, tasks.cancel_scope)
            tasks.cancel_scope.deadline = anyio.current_time() + wait_s
            await self._wait_until_reportable(await self._feeds.follow_run(followed))
            tasks.cancel_scope.cancel()
        return await self._respond(request, followed.id, run)

    async def execute_and_stream(self, request: Request) -> Response:
        """Start a run and stream its events; with `Last-Event-ID`, continue such a stream."""
        body = await read_body(request, StreamRequest)
        last_id = request.headers.get(LAST_EVENT_HEADER)
        if last_id is None:
            followed, _ = await self._start_run(request, body)
            return await self._stream_events(followed, BEGINNING, is_finished=False)
        run_id, position = parse_event_id(last_id)
        if run_id is None:
            raise InvalidRequest(
                f"The id {last_id!r:.80} names no run.",
                remedy="Send back the id of the last event as it was received.",
            )
        return await self._join_run(request, run_id, position)

    async def follow_run(self, request: Request) -> Response:
        """Stream the events of a run: recorded ones, then new ones until its end."""
        run_id = request.path_params["run_id"]
        last_id = request.headers.get(LAST_EVENT_HEADER, read_query(request, EventsQuery).after)
        named, position = (None, BEGINNING) if last_id is None else parse_event_id(last_id)
        if named not in (None, run_id):
            raise NotFound(
                f"Run {run_id} has no event {last_id!r:.80}: it belongs to another run.",
                remedy=f"Ask for that one: GET /runs/{named}/events.",
            )
        return await self._join_run(request, run_id, position)

    async def _start_run(
        self, request: Request, body: StreamRequest
    ) -> tuple[FollowedRun, Run | None]:
        """Start a run, or find the one that the same request has started before."""
        principal, key = find_principal(request.scope), read_idempotency_key(request)
        handle = body.session
        if handle is None and key is not None:
            handle = name_keyed_session(key)
        session = await self._runtime.open_session(handle, principal)
        with session.keep_open():
            if key is not None:
                row = await self._journal.find_run_by_key(session.id, key)
                if row is not None:
                    return FollowedRun(row.id, session.id, principal), None
            run = await self._starter.start_run(
                session,
                body.code,
                body.timeout_s,
                key,
                detached=True,
                dry_run=body.dry_run,
                shows_pages=body.shows_pages,
                context=read_context(body),
            )
            await run.announce()
            self._keep_as_skill(run, principal)
            return FollowedRun(run.id, session.id, principal), run

    async def _wait_until_reportable(self, follower: RunFollower) -> None:
        """Wait for the end of a run, or until it asks something that has no answer yet."""
        while events := await follower.next_events():
            asked = [each.type for each in events if each.type in ("waiting", "answered")]
            if asked and asked[-1] == "waiting":
                return

    async def _join_run(self, request: Request, run_id: str, after: EventPosition) -> Response:
        """Stream the events of a run of the principal after a position; raises `NotFound`."""
        lookup = self._lookup(request)
        row, session = await lookup.load_run_rows(run_id)
        followed = FollowedRun(row.id, session.id, lookup.principal)
        return await self._stream_events(followed, after, is_finished=row.is_finished)

    async def _stream_events(
        self, run: FollowedRun, after: EventPosition, *, is_finished: bool
    ) -> Response:
        follower = await self._feeds.follow_run(run, after)
        if is_finished and await follower.has_ended():
            return Response(status_code=204)  # which tells browsers not to come back
        headers = {"Location": f"/runs/{run.id}"}
        streams = self._streams.admit(run.principal)
        return EventStreamResponse(run.id, follower, self._is_stopping, headers, streams)

    def _lookup(self, request: Request) -> RunLookup:
        return RunLookup(self._runtime, find_principal(request.scope))

    # what is known of a run -----------------------------------------------------------------------

    async def show_run(self, request: Request) -> Response:
        """Return what is known of a run."""
        return await self._respond(request, request.path_params["run_id"])

    async def _respond(self, request: Request, run_id: str, run: Run | None = None) -> Response:
        """Return the document of a run: 200 when it is finished, else 202."""
        document = await self._describe_run(request, run_id, run)
        is_over = document.finished_at is not None
        status = 200 if is_over or request.method == "GET" else 202
        return document_response(document, status, {"Location": f"/runs/{run_id}"})

    async def _describe_run(self, request: Request, run_id: str, run: Run | None) -> RunDocument:
        """Return the document of a run; `run` is there if it was started by this request."""
        lookup = self._lookup(request)
        row, session = await lookup.load_run_rows(run_id)
        active = lookup.find_active_run(run_id)
        if run is None and active is not None:
            run = active[1]
        if run is not None and run.ending.failure is None:
            agents = [each.snapshot_report() for each in lookup.agent_runs_of(run)]
            return build_run_document(row, session, run.snapshot_report(), run.spec.code, agents)
        recorded = await load_recorded_run(self._journal, row)
        report = recorded.report
        report.notes += recorded.damage
        return build_run_document(row, session, report, recorded.code)

    # what ends a run, or lets it go on ------------------------------------------------------------

    async def cancel_run(self, request: Request) -> Response:
        """Cancel a run, whichever server executes it; one that is finished stays as it is."""
        run_id, lookup = request.path_params["run_id"], self._lookup(request)
        await lookup.load_run_rows(run_id)
        found = await lookup.find_run(run_id)
        if isinstance(found, RunReport):
            by = describe_caller(request)
            await cancel_remote_run(self._journal, run_id, by, CANCEL_TIMEOUT_S)
            return await self._respond(request, run_id)
        owner, run = found
        owner.cancel_run(run)
        with anyio.move_on_after(CANCEL_TIMEOUT_S):
            await run.wait_until_finished()
            await run.wait_until_recorded()
        return await self._respond(request, run_id, run)

    async def answer_run(self, request: Request) -> Response:
        """Answer what a run waits for."""
        run_id, lookup = request.path_params["run_id"], self._lookup(request)
        await lookup.load_run_rows(run_id)
        answers = (await read_body(request, AnswersRequest)).answers
        found = await lookup.find_run(run_id)
        if isinstance(found, RunReport):
            if (await self._journal.load_run(run_id)).is_finished:
                return await self._commit_plan(request, found, answers)
            by, check = describe_caller(request), partial(self._check_scopes, request)
            await answer_remote_run(self._journal, run_id, answers, by, check)
            return await self._respond(request, run_id)
        _, run = found
        questions = run.questions.open_questions
        self._check_scopes(request, select_named(questions, answers))
        prepared = await encode_large_answers(answers)
        run.questions.answer_questions(prepared, describe_caller(request), may_approve=True)
        with anyio.move_on_after(RECEIPT_TIMEOUT_S):
            await run.wait_for_receipt()
        return await self._respond(request, run_id, run)

    async def _commit_plan(
        self, request: Request, report: RunReport, answers: Mapping[str, Any]
    ) -> Response:
        """Start the run that commits the plan of a dry run, and return its document."""
        check_has_plan(report)
        caller = find_caller(request.scope)
        check_scope(request, "run")
        _, run = await commit_plan(
            self._runtime,
            self._lookup(request),
            self._config.policy,
            report.run_id,
            answers,
            may_approve="approve" in caller.scopes,
        )
        run.audience.detach()
        with anyio.move_on_after(START_TIMEOUT_S):
            while not run.journal.has_started and not run.finished.is_set():
                await run.wait_for_update()
        await run.announce()
        return await self._respond(request, run.id, run)

    def _check_scopes(self, request: Request, questions: Mapping[str, PendingQuestion]) -> None:
        """Raise `InsufficientScope` unless a caller may answer these questions."""
        kinds = {each.asked.kind for each in questions.values()}
        if APPROVAL_KIND in kinds:
            check_scope(request, "approve")
        if kinds - {APPROVAL_KIND}:
            check_scope(request, "run")


def check_scope(request: Request, scope: str) -> None:
    """Raise `InsufficientScope` unless the caller has a scope."""
    if scope not in find_caller(request.scope).scopes:
        raise InsufficientScope(f"The access token lacks the scope {scope}.", scopes=[scope])


def describe_caller(request: Request) -> str:
    """Return who has answered a question, for the journal."""
    return f"{find_principal(request.scope)}, over HTTP"


def read_context(body: StreamRequest) -> list[str | JsonObject] | None:
    """Return the inputs that a request names, as JSON data."""
    if body.context is None:
        return None
    return [
        each if isinstance(each, str) else each.model_dump(exclude_none=True)
        for each in body.context
    ]


def read_idempotency_key(request: Request) -> str | None:
    """Return the key that names a request, so that it starts one run however often it comes."""
    key = request.headers.get(IDEMPOTENCY_KEY_HEADER)
    if key is not None and not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_CHARS:
        raise InvalidRequest(
            f"The Idempotency-Key has {len(key):,} characters.",
            remedy=f"Use 1 to {MAX_IDEMPOTENCY_KEY_CHARS}.",
        )
    return key


def name_keyed_session(key: str) -> str:
    """Return the name of the session of a request that has a key and names no session."""
    return f"request {sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:KEY_NAME_DIGITS]}"
