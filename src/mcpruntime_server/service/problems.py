"""Errors as HTTP clients get them: problem documents (RFC 9457) made of the typed errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import InvalidRequest, McpRuntimeError
from ..protocol.payloads import JsonObject

PROBLEM_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:mcpruntime-server:"  # before the code of the error
RETRY_AFTER_S = 1  # what is not available now may be so soon
MAX_FIELD_PROBLEMS = 20
LOG_REMEDY = "The log of the server says why."
MAX_FIELD_CHARS = 200


class FieldProblem(BaseModel):
    """What is wrong with one field of a request."""

    field: str
    message: str


class Problem(BaseModel):
    """An error: what happened (`detail`), and what to do (`remedy`); `code` is for programs."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="A URN that ends with `code`.")
    title: str
    status: int
    detail: str
    code: str
    remedy: str = ""
    errors: list[FieldProblem] = []


def build_problem(exc: McpRuntimeError, errors: Sequence[FieldProblem] = ()) -> Problem:
    """Return the problem document for an error."""
    return make_problem(exc.http_status, exc.code, exc.message, exc.remedy, errors)


def make_problem(
    status: int, code: str, detail: str, remedy: str = "", errors: Sequence[FieldProblem] = ()
) -> Problem:
    """Return a problem document."""
    return Problem(
        type=f"{TYPE_PREFIX}{code}",
        title=code.replace("_", " ").capitalize(),
        status=status,
        detail=detail,
        code=code,
        remedy=remedy,
        errors=list(errors),
    )


def build_validation_problem(exc: ValidationError) -> Problem:
    """Return the problem document for a request that does not follow its schema."""
    found = [
        FieldProblem(
            field=".".join(map(str, each["loc"]))[:MAX_FIELD_CHARS],
            message=each["msg"][:MAX_FIELD_CHARS],
        )
        for each in exc.errors(include_url=False, include_context=False, include_input=False)
    ]
    first = found[0]
    where = f"{first.field}: " if first.field else ""
    error = InvalidRequest(
        f"The request is not valid: {where}{first.message}.",
        remedy="GET /openapi.json has the schemas of all requests.",
    )
    return build_problem(error, found[:MAX_FIELD_PROBLEMS])


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response for a problem."""
    known = {"X-Content-Type-Options": "nosniff", **(headers or {})}
    if problem.status == 503:
        known["Retry-After"] = str(RETRY_AFTER_S)
    data: JsonObject = problem.model_dump(mode="json")
    return Response(
        json.dumps({name: value for name, value in data.items() if value not in ("", [])}),
        problem.status,
        known,
        PROBLEM_TYPE,
    )


async def handle_http_exception(_: Request, exc: Exception) -> Response:
    """Return the response where no route fits: there is no such path, or no such method."""
    assert isinstance(exc, HTTPException), "it is registered for these"
    if exc.status_code == 404:
        problem = make_problem(
            404, "not_found", "There is nothing here.", "GET /openapi.json lists the paths."
        )
    else:
        problem = make_problem(exc.status_code, "invalid_request", f"{exc.detail}.")
    return problem_response(problem, exc.headers)


async def handle_failure(_: Request, __: Exception) -> Response:
    """Return the response where the server has made a mistake, which its log describes."""
    problem = make_problem(500, "internal", "The request failed inside the server.", LOG_REMEDY)
    return problem_response(problem)
