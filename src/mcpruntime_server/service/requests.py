"""Read what clients send, and write what they get, by the models of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from .api_models import Document, RequestModel
from .problems import Problem, build_validation_problem, make_problem

JSON_TYPE = "application/json"

Model = TypeVar("Model", bound=RequestModel)


class BadRequest(Exception):
    """A request that cannot be understood; `problem` is its answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


async def read_body(request: Request, model: type[Model]) -> Model:
    """Return the body of a request; raises `BadRequest`."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != JSON_TYPE:
        raise BadRequest(
            make_problem(
                415,
                "unsupported_media_type",
                f"The body has the type {content_type!r:.80}.",
                f"Send JSON with the header Content-Type: {JSON_TYPE}.",
            )
        )
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as exc:
        raise BadRequest(build_validation_problem(exc)) from exc


def read_query(request: Request, model: type[Model]) -> Model:
    """Return the parameters in the address of a request; raises `BadRequest`."""
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as exc:
        raise BadRequest(build_validation_problem(exc)) from exc


def document_response(
    document: Document, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response that has a document."""
    known = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})}
    return Response(document.model_dump_json(), status, known, JSON_TYPE)
