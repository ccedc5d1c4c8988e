"""The routes of the HTTP API: one table, from which the application and OpenAPI are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..config.scopes import Scope
from ..errors import McpRuntimeError
from .api import Api
from .authentication import Authentication
from .problems import build_problem, problem_response
from .requests import BadRequest

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class ApiRoute:
    """A method of a path, and what handles it."""

    method: str
    path: str
    handler: Handler
    scopes: tuple[Scope, ...]


def list_api_routes(api: Api) -> Sequence[ApiRoute]:
    """Return the routes of the API."""
    return (
        ApiRoute("POST", "/execute/stream", api.execute_and_stream, ("run",)),
        ApiRoute("GET", "/runs/{run_id}/events", api.stream_events, ("read",)),
    )


def build_api_routes(api: Api, authentication: Authentication) -> list[Route]:
    """Return the routes for the application, each for those alone who may use it."""
    return [
        Route(
            each.path,
            authentication.protect(answer_errors(each.handler), each.scopes),
            methods=[each.method],
        )
        for each in list_api_routes(api)
    ]


def answer_errors(handler: Handler) -> Handler:
    """Return a handler whose typed errors become problem documents."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except McpRuntimeError as exc:
            return problem_response(build_problem(exc))
        except BadRequest as exc:
            return problem_response(exc.problem)

    return handle
