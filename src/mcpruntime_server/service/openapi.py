"""The OpenAPI document: made of the table of routes and of the models that check requests."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..config.scopes import Scope
from ..protocol.payloads import JsonObject, JsonSchema
from ..server.run_tool import MAX_IDEMPOTENCY_KEY_CHARS
from .api_models import ExecuteRequest, StreamRequest
from .event_models import PublicRunEvent, RunEvent
from .event_stream import EVENT_STREAM_TYPE
from .problems import PROBLEM_TYPE, Problem
from .requests import JSON_TYPE
from .run_events import EVENT_ID_PATTERN

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class ApiRoute:
    """A method of a path: what handles it, who may use it, and what it takes and returns.

    `handler` is a method of a class that has several. `responses` has what a response is by its
    status: a document, events (`RunEvent`), the content of a file (`bytes`) or nothing. `errors`
    are those that do not follow from what the route takes. What `ends_with_client` is cancelled
    when its client leaves.
    """

    method: str
    path: str
    handler: Callable[[Any, Request], Awaitable[Response]]
    scopes: tuple[Scope, ...]
    responses: Mapping[int, type | None]
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: Sequence[str] = ()
    errors: Sequence[int] = ()
    description: str = ""
    ends_with_client: bool = False

    @property
    def operation_id(self) -> str:
        """The name of the operation, for clients that are generated."""
        first, *words = self.handler.__name__.split("_")
        return first + "".join(word.capitalize() for word in words)

    @property
    def all_errors(self) -> set[int]:
        """Statuses of the errors that a request may be answered with."""
        errors = {*self.errors, *COMMON_ERRORS}
        if self.scopes:
            errors.add(403)
        if "{" in self.path:
            errors.add(404)
        if self.body is not None:
            errors |= {400, 413, 415}
        if self.query is not None:
            errors.add(400)
        return errors


OPENAPI_PATH = "/openapi.json"
OPENAPI_VERSION = "3.1.0"
REF_TEMPLATE = "#/components/schemas/{model}"
# A file has the type that its name suggests; generators of clients know the first of these alone.
FILE_TYPES = ("application/octet-stream", "*/*")
SECURITY_SCHEME = "bearer"
COMMON_ERRORS = (401, 429, 500)
TITLE = "mcpruntime-server"
DESCRIPTION = """\
Execute Python in persistent sandboxed sessions, and follow, answer, cancel, rewind, fork and rerun
what is executed. Sessions, runs and files belong to the principal of the access token; what belongs
to others does not exist. Errors are problem documents (RFC 9457). Types of events and fields that
a client does not know must be ignored: more may come.
"""
STATUS_TEXTS = {
    200: "It is done.",
    201: "It is created.",
    202: "The run is not finished.",
    204: "There are no more events.",
    206: "The part of the file that was asked for.",
    304: "The client has this version.",
    400: "The request is not valid, or does not apply to what it names.",
    401: "There is no valid access token.",
    403: "The access token lacks a scope, or a person has to decide.",
    404: "What is named does not exist, or belongs to another principal.",
    409: "What is named is not in a state in which the request applies.",
    413: "The body is too large, or so is what a run or a session would record.",
    415: "The body is not JSON.",
    416: "The file has no such part.",
    429: "There are too many requests.",
    500: "The server has failed.",
    503: "Something is not available now, or another server has it.",
}
PATH_TEXTS = {
    "run_id": "The id of a run.",
    "session": "The id of a session, or its name.",
    "path": "The path of a file in the workspace, with slashes.",
}
HEADER_TEXTS = {
    "Idempotency-Key": "Names the request in its session: however often it comes, it starts one "
    "run. Without `session`, the key has a session of its own.",
    "Last-Event-ID": "The id of the last event that was received: the stream continues after it.",
    "Range": "The bytes that are wanted, for example `bytes=0-99`.",
    "If-None-Match": "The ETag of the version that the client has.",
    "If-Range": "The ETag of the version that `Range` applies to.",
}
HEADER_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "Idempotency-Key": {"minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY_CHARS},
    "Last-Event-ID": {"pattern": EVENT_ID_PATTERN},
}
EVENT_NAMES = [*(each.model_fields["type"].default for each in get_args(PublicRunEvent)), "error"]
EVENT_EXAMPLE = (
    "id: r_Xy3:7\nevent: output\n"
    'data: {"id":"r_Xy3:7","run":"r_Xy3","session":"s_Ab1","at":"2026-01-01T00:00:00Z",'
    '"type":"output","stream":"stdout","text":"hello\\n","dropped_bytes":0}\n\n'
)


class OpenApiDocument:
    """The document about some routes, which has a route of its own."""

    def __init__(self, routes: Sequence[ApiRoute], max_timeout_s: float) -> None:
        self.route = ApiRoute(
            "GET",
            OPENAPI_PATH,
            OpenApiDocument.show_document,
            (),
            {200: None},
            description="This document.",
        )
        self._routes = routes
        self._max_timeout_s = max_timeout_s

    async def show_document(self, _: Request) -> Response:
        """Return the document."""
        return Response(self._text, media_type=JSON_TYPE)

    @cached_property
    def _text(self) -> str:
        return json.dumps(build_openapi(self._routes, self._max_timeout_s), ensure_ascii=False)


def build_openapi(routes: Sequence[ApiRoute], max_timeout_s: float) -> JsonObject:
    """Return the document about some routes of a server on which code may take so long."""
    requests = {each.body for each in routes} - {None}
    documents = {
        model for each in routes for model in each.responses.values() if is_document(model)
    }
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "validation") for model in sort_models(requests)),
        *((model, "serialization") for model in sort_models({*documents, Problem})),
    ]
    _, schemas = models_json_schema(wanted, ref_template=REF_TEMPLATE)
    for request in (StreamRequest, ExecuteRequest):
        fields = schemas["$defs"][request.__name__]["properties"]
        fields["timeout_s"]["anyOf"][0]["maximum"] = max_timeout_s
    paths: dict[str, JsonObject] = {}
    for each in routes:
        path = each.path.replace(":path}", "}")
        paths.setdefault(path, {})[each.method.lower()] = describe_route(each)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": TITLE, "version": __version__, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                SECURITY_SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`mcpruntime-server token create NAME` makes a token. A server "
                    "without authentication asks for none.",
                }
            },
        },
    }


def is_document(model: type | None) -> bool:
    """Return whether a response is JSON, or events, by a model."""
    return model is not None and issubclass(model, BaseModel)


def sort_models(models: Any) -> list[type[BaseModel]]:
    """Return models by their names, so that the document is always the same."""
    return sorted(models, key=lambda model: model.__name__)


def describe_route(route: ApiRoute) -> JsonObject:
    """Return what the document says of one method of a path."""
    described: JsonObject = {
        "operationId": route.operation_id,
        "summary": route.description.partition(". ")[0].rstrip("."),
        "description": route.description,
        "security": [{SECURITY_SCHEME: list(route.scopes)}],
        "parameters": describe_route_parameters(route),
        "responses": describe_responses(route),
    }
    if route.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {JSON_TYPE: {"schema": refer_to_schema(route.body)}},
        }
    return described


def describe_route_parameters(route: ApiRoute) -> list[JsonObject]:
    """Return the parameters of a route: in its path, behind it, and in headers."""
    names = [part.strip("{}").partition(":")[0] for part in route.path.split("/") if "{" in part]
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_TEXTS[name],
            "schema": {"type": "string", "minLength": 1},
        }
        for name in names
    ]
    if route.query is not None:
        for name, schema in route.query.model_json_schema()["properties"].items():
            parameters.append(
                {
                    "name": name,
                    "in": "query",
                    "required": False,
                    "description": schema.pop("description", ""),
                    "schema": without_null(schema),
                }
            )
    parameters += [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": HEADER_TEXTS[name],
            "schema": describe_header(route, name),
        }
        for name in route.headers
    ]
    return parameters


def describe_header(route: ApiRoute, name: str) -> JsonObject:
    """Return the schema of a header; without a run in its path, an event has to name one."""
    schema = {"type": "string", **HEADER_SCHEMAS.get(name, {})}
    if name == "Last-Event-ID" and "{run_id}" not in route.path:
        schema["pattern"] = EVENT_ID_PATTERN.replace(")?", ")", 1)
    return schema


def without_null(schema: Mapping[str, Any]) -> JsonSchema:
    """Return the schema of a parameter, which is left out and never null."""
    plain = {name: value for name, value in schema.items() if name not in ("anyOf", "title")}
    for option in schema.get("anyOf", ()):
        if option.get("type") != "null":
            plain |= option
    if plain.get("default", ...) is None:
        del plain["default"]
    return plain


def describe_responses(route: ApiRoute) -> JsonObject:
    """Return the responses of a route by their status."""
    responses: JsonObject = {}
    for status, model in route.responses.items():
        response: JsonObject = {"description": STATUS_TEXTS[status]}
        if content := describe_content(model):
            response["content"] = content
        responses[str(status)] = response
    for status in sorted(route.all_errors):
        responses[str(status)] = {
            "description": STATUS_TEXTS[status],
            "content": {PROBLEM_TYPE: {"schema": refer_to_schema(Problem)}},
        }
    return responses


def describe_content(model: type | None) -> JsonObject:
    """Return the content of a response."""
    if model is RunEvent:
        item = {  # of each event, as the revision 3.2 says with `itemSchema`
            "type": "object",
            "description": "One event of the stream; its name is in `event` and in the data.",
            "required": ["id", "event", "data"],
            "properties": {
                "id": {"type": "string"},
                "event": {"enum": EVENT_NAMES},
                "data": {
                    "type": "string",
                    "contentMediaType": JSON_TYPE,
                    "contentSchema": refer_to_schema(RunEvent),
                },
            },
        }
        return {EVENT_STREAM_TYPE: {"schema": item, "example": EVENT_EXAMPLE}}
    if model is bytes:
        return {each: {"schema": {"type": "string", "format": "binary"}} for each in FILE_TYPES}
    if model is not None and issubclass(model, BaseModel):
        return {JSON_TYPE: {"schema": refer_to_schema(model)}}
    return {}


def refer_to_schema(model: type[BaseModel]) -> dict[str, str]:
    """Return the reference to the schema of a model."""
    return {"$ref": REF_TEMPLATE.format(model=model.__name__)}
