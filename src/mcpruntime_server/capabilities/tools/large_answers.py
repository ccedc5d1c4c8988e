"""Reads the large answers of one upstream in a process of its own.

Whatever an upstream sends past `LARGE_BYTES` is parsed, checked, freed of credentials and encoded
there. The value of a call comes back as the text that is journaled and sent to the sandbox: this
process never builds it. The items of a list come back one by one.

The process starts when it is needed, and ends after a while without work. One answer is read at a
time: meanwhile nothing more is taken from the upstream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcp import MCPError, types

from ...journal.events import decode_json
from ..framed_process import FramedProcess
from ..redaction import Credentials
from ..schema_checks import PreparedSchema
from .answer_protocol import (
    AnswerReply,
    PageRequest,
    ResultRequest,
)
from .message_limits import LimitExceeded
from .observed_shapes import LargeValue

WORKER_MODULE = "mcpruntime_server.capabilities.tools.answer_worker"
READ_TIMEOUT_S = 20.0  # for one answer, on a machine that may be busy; honest ones take 0.2 s
MAX_INLINE_BYTES = 64 * 1024  # a shorter value is decoded here
MAX_GROWTH = 8  # an answer in UTF-8 becomes so many times longer in ASCII, at most


class OtherAnswer(Exception):
    """A line does not answer the request that it was read for."""


@dataclass(frozen=True)
class LargeResult:
    """The result of a call without credentials: a `value`, or a `message` and `data` if it failed.

    The value is JSON data if it is small.
    """

    is_error: bool
    value: Any = None
    message: str = ""
    data: Any = None


@dataclass(frozen=True)
class ListPage:
    """The items on a page of a list: JSON, or the data if the page was small."""

    items: Sequence[Any]
    next_cursor: str | None


@dataclass(frozen=True)
class PageBounds:
    """How many items and bytes of a page are of use, and how many parts a schema in it may have."""

    max_items: int
    max_bytes: int
    max_parts: int


@dataclass(frozen=True)
class ToolContract:
    """What a tool has declared of its results: a schema, and whether they are wrapped."""

    schema: PreparedSchema | None
    is_wrapped: bool


class LargeAnswers:
    """Reads the large answers of one upstream."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._process = FramedProcess(WORKER_MODULE, READ_TIMEOUT_S, self._forget)
        self._known: set[int] = set()  # numbers of the schemas that the process has
        self._has_credentials = False

    async def read_result(
        self,
        request_id: int,
        answer: bytes | bytearray,
        contract: ToolContract,
    ) -> LargeResult:
        """Return the result of a call, which follows the output schema of the tool.

        Raises `OtherAnswer`, `MCPError`, and `ValueError` for an answer that cannot be used.
        """
        schema = contract.schema

        def build_request() -> ResultRequest:
            request: ResultRequest = {
                "kind": "result",
                "id": request_id,
                "is_wrapped": contract.is_wrapped,
                "schema": schema.number if schema else None,
            }
            if schema and schema.number not in self._known:
                request["schema_body"] = schema.schema
                self._known.add(schema.number)
            if not self._has_credentials:
                request["credentials"] = list(self._credentials.values)
                self._has_credentials = True
            return request

        reply: AnswerReply
        reply, body = await self._process.ask(build_request, answer, MAX_GROWTH * len(answer))
        raise_problem(reply)
        if reply.get("asks_input"):
            message = "The tool asks for input, which a call from code cannot give."
            raise MCPError(types.INVALID_REQUEST, message)
        if reply.get("is_error"):
            return LargeResult(True, message=reply["message"], data=reply["data"])
        if len(body) <= MAX_INLINE_BYTES:
            return LargeResult(False, decode_json(bytes(body).decode("ascii")))
        return LargeResult(False, LargeValue(bytes(body), reply["shape"]))

    async def read_page(
        self,
        request_id: int,
        answer: bytes | bytearray,
        key: str,
        bounds: PageBounds,
    ) -> ListPage:
        """Return a page of a list; raises what `read_result` raises."""
        request: PageRequest = {
            "kind": "page",
            "id": request_id,
            "key": key,
            "max_items": bounds.max_items,
            "max_bytes": bounds.max_bytes,
            "max_parts": bounds.max_parts,
        }
        reply: AnswerReply
        reply, body = await self._process.ask(lambda: request, answer, MAX_GROWTH * len(answer))
        raise_problem(reply)
        return ListPage(bytes(body).split(b"\n") if body else (), reply["next_cursor"])

    async def close(self) -> None:
        """End the process, if there is one."""
        await self._process.close()

    def _forget(self) -> None:
        """Note that the process has ended, with all that it knew."""
        self._known.clear()
        self._has_credentials = False


def raise_problem(reply: AnswerReply) -> None:
    """Raise why an answer cannot be used, if that is so."""
    if reply.get("is_other"):
        raise OtherAnswer
    if "limit" in reply:
        raise LimitExceeded(reply["limit"], reply.get("setting", ""))
    if "invalid" in reply:
        raise ValueError(reply["invalid"])
    if "error" in reply:
        error: Mapping[str, Any] = reply["error"]
        raise MCPError(error["code"], error["message"], error["data"])


def parse_page(result: Mapping[str, Any], key: str, bounds: PageBounds) -> ListPage:
    """Return the page in a result; raises `ValueError`."""
    items, cursor = result.get(key), result.get("nextCursor")
    if not isinstance(items, list) or not (cursor is None or isinstance(cursor, str)):
        raise ValueError(f"its page has no list of {key}")
    return ListPage(items[: bounds.max_items], cursor)
