"""The bodies and the parameters of HTTP requests: they are validated with these models.

The OpenAPI document has their schemas, so that what is documented is what is checked.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .request_checks import MAX_BODY_BYTES

MAX_HANDLE_CHARS = 80
MAX_TIMEOUT_S = 86_400
MAX_CONTEXT_ITEMS = 1_000

Handle = Annotated[str, Field(min_length=1, max_length=MAX_HANDLE_CHARS)]


class RequestModel(BaseModel):
    """A request: unknown fields are errors, because they would be ignored silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ExecuteRequest(RequestModel):
    """Code to execute in a session."""

    code: Annotated[str, Field(max_length=MAX_BODY_BYTES)]
    session: Annotated[
        Handle | None,
        Field(
            description="The id of a session, or a name of your own, which starts a session at its "
            "first use. Without it the code runs in a new session."
        ),
    ] = None
    timeout_s: Annotated[
        float | None, Field(gt=0, le=MAX_TIMEOUT_S, description="For the code.")
    ] = None
    dry_run: Annotated[
        bool, Field(description="Plan the calls that may write, instead of making them.")
    ] = False
    context: Annotated[
        list[str | dict[str, Any]] | None,
        Field(
            max_length=MAX_CONTEXT_ITEMS,
            description="What `CONTEXT` is for the code: paths, URIs, or objects with `text`.",
        ),
    ] = None


class EventsQuery(RequestModel):
    """Where a stream of events begins."""

    after: Annotated[
        str | None,
        Field(max_length=100, description="The id of an event, or a number of the journal."),
    ] = None
