"""The requests to the process that reads large answers, and its replies; see `large_answers`.

The body of a request is the answer of the upstream as it came, that of a reply is JSON in ASCII.
"""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

from ...protocol.payloads import JsonObject


class ResultRequest(TypedDict):
    """Read the answer to request `id`, a call of a tool; the body of the reply is its value.

    `schema` is the number of the tool's output schema, `schema_body` the schema if it is new.
    `credentials` are those of the upstream.
    """

    kind: str  # "result"
    id: int
    is_wrapped: bool
    schema: int | None
    schema_body: NotRequired[Any]
    credentials: NotRequired[list[str]]


class PageRequest(TypedDict):
    """Read the answer to request `id`, a page of a list; each item is a line of the reply's body.

    The result has the items under `key`. At most `max_items` and `max_bytes` are of use.
    """

    kind: str  # "page"
    id: int
    key: str
    max_items: int
    max_bytes: int
    max_parts: int  # of the schemas of one item


class AnswerReply(TypedDict, total=False):
    """What an answer is.

    `limit` (with the `setting` that raises it) or `invalid` say why it cannot be used, `is_other`
    that it answers something else. `error` is that of the protocol. A result that `is_error` has a
    `message` and `data`; any other one a value, of which `shape` is the schema.
    """

    limit: str
    setting: str
    invalid: str
    is_other: bool
    error: JsonObject
    asks_input: bool
    is_error: bool
    message: str
    data: Any
    shape: JsonObject
    next_cursor: str | None
