"""The HTTP API for programs that are no MCP clients: its routes, in one table.

The application and the OpenAPI document are made from the table, so a route cannot be forgotten in
one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import InsufficientScope, McpRuntimeError, RateLimited
from . import api_models as models
from . import inspection_models
from .api_services import ApiServices
from .authentication import Authentication
from .event_models import RunEvent
from .export_api import ExportApi
from .http_connections import cancel_when_closed
from .inspection_api import InspectionApi
from .method_routes import join_methods
from .openapi import ApiRoute, Handler, OpenApiDocument
from .problems import build_problem, problem_response
from .requests import BadRequest
from .run_api import RunApi
from .session_api import SessionApi

RUN_PATH = "/runs/{run_id}"
SESSION_PATH = "/sessions/{session}"
CLIENT_LEFT_STATUS = 499  # which nobody receives
CHANGE_ERRORS = (409, 503)  # of a request that executes code or changes a session

API_HANDLERS: Mapping[Callable[[ApiServices], object], tuple[ApiRoute, ...]] = {
    RunApi: (
        ApiRoute(
            "POST",
            "/execute",
            RunApi.execute,
            ("run",),
            {200: models.RunDocument, 202: models.RunDocument},
            models.ExecuteRequest,
            headers=["Idempotency-Key"],
            errors=[404, *CHANGE_ERRORS],
            description="Execute code and wait for its end, or for its first question. With 202 "
            "the run goes on: follow it, answer it, or cancel it.",
        ),
        ApiRoute(
            "POST",
            "/execute/stream",
            RunApi.execute_and_stream,
            ("run",),
            {200: RunEvent, 204: None},
            models.StreamRequest,
            headers=["Idempotency-Key", "Last-Event-ID"],
            errors=[404, *CHANGE_ERRORS],
            description="Execute code and get everything that happens as server-sent events. A "
            "client that leaves does not end the run: it sends the request again with "
            "`Last-Event-ID`, which starts nothing and continues the stream, or it cancels the "
            "run. Comment lines are signs of life.",
        ),
        ApiRoute(
            "GET",
            RUN_PATH,
            RunApi.show_run,
            ("read",),
            {200: models.RunDocument},
            description="What is known of a run.",
        ),
        ApiRoute(
            "GET",
            f"{RUN_PATH}/events",
            RunApi.follow_run,
            ("read",),
            {200: RunEvent, 204: None},
            query=models.EventsQuery,
            headers=["Last-Event-ID"],
            description="Join a run, or read one that is finished, as server-sent events. 204: "
            "there are no events after the one that is named, and none will come.",
        ),
        ApiRoute(
            "POST",
            f"{RUN_PATH}/answers",
            RunApi.answer_run,
            (),
            {200: models.RunDocument, 202: models.RunDocument},
            models.AnswersRequest,
            errors=[403, *CHANGE_ERRORS],
            description="Answer what a run waits for. Approvals need the scope `approve`, other "
            "answers `run`. For a dry run, the response is about the run that commits its plan.",
        ),
        ApiRoute(
            "POST",
            f"{RUN_PATH}/cancel",
            RunApi.cancel_run,
            ("run",),
            {200: models.RunDocument, 202: models.RunDocument},
            errors=[503],
            description="Cancel a run; one that is finished stays as it is.",
        ),
    ),
    SessionApi: (
        ApiRoute(
            "GET",
            "/sessions",
            SessionApi.list_sessions,
            ("read",),
            {200: models.SessionPage},
            query=models.SessionsQuery,
            description="The sessions, the last used first.",
        ),
        ApiRoute(
            "GET",
            SESSION_PATH,
            SessionApi.show_session,
            ("read",),
            {200: models.SessionDocument},
            description="A session, by its id or its name, with its last runs.",
        ),
        ApiRoute(
            "DELETE",
            SESSION_PATH,
            SessionApi.delete_session,
            ("run",),
            {204: None},
            errors=CHANGE_ERRORS,
            description="Delete a session for good, with its attempts and agents. It is refused "
            "while a run is unfinished or pinned, or while a fork needs its steps.",
        ),
        ApiRoute(
            "GET",
            f"{SESSION_PATH}/files",
            SessionApi.list_files,
            ("read",),
            {200: models.FilePage},
            query=models.FilesQuery,
            description="The files in the workspace of a session.",
        ),
        ApiRoute(
            "GET",
            f"{SESSION_PATH}/files/{{path:path}}",
            SessionApi.read_file,
            ("read",),
            {200: bytes, 206: bytes, 304: None, 416: None},
            query=models.FileQuery,
            headers=["Range", "If-None-Match", "If-Range"],
            description="The content of a workspace file. Its ETag is the digest of the content.",
        ),
        ApiRoute(
            "POST",
            f"{SESSION_PATH}/rewind",
            SessionApi.rewind_session,
            ("run",),
            {200: models.PositionDocument},
            models.RewindRequest,
            errors=CHANGE_ERRORS,
            description="Continue a session from another step. Calls are not undone.",
        ),
        ApiRoute(
            "POST",
            f"{SESSION_PATH}/fork",
            SessionApi.fork_session,
            ("run",),
            {201: models.PositionDocument},
            models.ForkRequest,
            errors=CHANGE_ERRORS,
            description="Create a session that starts from a step of this one.",
        ),
        ApiRoute(
            "POST",
            f"{SESSION_PATH}/rerun",
            SessionApi.rerun_session,
            ("run",),
            {200: models.RerunDocument},
            models.RerunRequest,
            errors=CHANGE_ERRORS,
            description="Execute a step again, or all of them, with recorded answers, in a "
            "session of its own, and compare with the recording.",
            ends_with_client=True,
        ),
    ),
    InspectionApi: (
        ApiRoute(
            "POST",
            f"{RUN_PATH}/probe",
            InspectionApi.probe_run,
            ("run",),
            {200: inspection_models.ProbeDocument},
            inspection_models.ProbeBody,
            errors=CHANGE_ERRORS,
            description="Execute a finished step again, with recorded answers, and get the value "
            "of an expression for each time that a line is about to be executed. It is evaluated "
            "in a fork, so it cannot change what it observes.",
            ends_with_client=True,
        ),
        ApiRoute(
            "POST",
            f"{RUN_PATH}/ask",
            InspectionApi.ask_run,
            ("run",),
            {200: inspection_models.AnswerDocument},
            inspection_models.QuestionBody,
            errors=CHANGE_ERRORS,
            description="Execute code in the state after a step, in a sandbox of its own that can "
            "call nothing. The session does not change.",
            ends_with_client=True,
        ),
        ApiRoute(
            "POST",
            f"{RUN_PATH}/pin",
            InspectionApi.pin_run,
            ("run",),
            {200: inspection_models.PinDocument},
            inspection_models.PinBody,
            description="Keep a run, and with it its session, from garbage collection, or no "
            "longer.",
        ),
        ApiRoute(
            "GET",
            f"{RUN_PATH}/calls",
            InspectionApi.list_calls,
            ("read",),
            {200: inspection_models.RecordedCallsDocument},
            description="The calls of a run with their recorded answers.",
        ),
        ApiRoute(
            "GET",
            f"{RUN_PATH}/diff",
            InspectionApi.diff_runs,
            ("read",),
            {200: inspection_models.DiffDocument},
            query=inspection_models.DiffQuery,
            description="How another run differs from this one: code, output, calls, value, error, "
            "status and files. Texts are unified differences.",
        ),
        ApiRoute(
            "POST",
            f"{RUN_PATH}/variables",
            InspectionApi.list_variables,
            ("run",),
            {200: inspection_models.VariablesDocument},
            errors=CHANGE_ERRORS,
            description="The variables after a step, and what the step has changed.",
            ends_with_client=True,
        ),
    ),
    ExportApi: (
        ApiRoute(
            "GET",
            f"{RUN_PATH}/page.html",
            ExportApi.export_page,
            ("read",),
            {200: bytes},
            description="A run as an HTML file that needs nothing else and has no scripts.",
            ends_with_client=True,
        ),
        ApiRoute(
            "GET",
            f"{RUN_PATH}/value.csv",
            ExportApi.export_table,
            ("read",),
            {200: bytes},
            errors=[409],
            description="The value of a run as CSV, if it is a table. A data frame is written in "
            "the state after the step, which needs the scope `run`. Text that a spreadsheet would "
            "execute as a formula is quoted.",
            ends_with_client=True,
        ),
        ApiRoute(
            "GET",
            f"{SESSION_PATH}/notebook.ipynb",
            ExportApi.export_notebook,
            ("read",),
            {200: bytes},
            errors=[409],
            description="The steps of a session, with their recorded outputs, as a Jupyter "
            "notebook.",
            ends_with_client=True,
        ),
    ),
}
API_ROUTES = tuple(chain.from_iterable(API_HANDLERS.values()))


def bind_api_handlers(services: ApiServices) -> Iterator[tuple[ApiRoute, Handler]]:
    """Yield every route with its handler, whose typed errors become problem documents."""
    for create_handlers, routes in API_HANDLERS.items():
        handlers = create_handlers(services)
        for each in routes:
            handler = answer_errors(partial(each.handler, handlers))
            yield each, end_with_client(handler) if each.ends_with_client else handler


def build_api_routes(services: ApiServices, authentication: Authentication) -> list[Route]:
    """Return the routes for the application, each for those alone who may use it."""
    document = OpenApiDocument(API_ROUTES, services.config.sandbox.max_timeout_s)
    bound = [
        *bind_api_handlers(services),
        (document.route, answer_errors(partial(document.route.handler, document))),
    ]
    return join_methods(
        (each.path, each.method, authentication.protect(handler, each.scopes))
        for each, handler in bound
    )


def answer_errors(handler: Handler) -> Handler:
    """Return a handler whose typed errors become problem documents."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except (InsufficientScope, RateLimited):
            raise  # the authentication adds the headers that name the scope and the time
        except McpRuntimeError as exc:
            return problem_response(build_problem(exc))
        except BadRequest as exc:
            return problem_response(exc.problem)

    return handle


def end_with_client(handler: Handler) -> Handler:
    """Return a handler that is cancelled when its client leaves: nobody else gets its answer."""

    async def handle(request: Request) -> Response:
        with anyio.CancelScope() as work, cancel_when_closed(request.scope, work):
            return await handler(request)
        return Response(status_code=CLIENT_LEFT_STATUS)

    return handle
