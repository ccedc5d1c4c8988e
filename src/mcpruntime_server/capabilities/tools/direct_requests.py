"""Tool calls that go straight to the pipes of a child process, past the SDK's session.

In the SDK's session a call passes a memory stream, a telemetry span, three validations of its
result and two more turns of the event loop, which costs as much as all the rest of a call from
inside. So the requests for tools are sent from here, and everything else by the SDK: the handshake,
lists, subscriptions, and answers to what the server asks. Both write whole lines to the same pipe,
and an answer belongs to the one whose id it carries.

Rule 1: a request ends once: with its answer, or as `MCPError` when its time is over or the
connection has ended, with the codes that the SDK uses.
Rule 2: a server is told when nobody waits for its answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import anyio
from anyio.lowlevel import checkpoint
from mcp import Client, MCPError, types
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from ...journal.events import EncodedArguments, find_encoded
from ...protocol.payloads import JsonObject
from ..trace_context import add_trace_context
from .large_answers import (
    LargeAnswers,
    LargeResult,
    ListPage,
    OtherAnswer,
    PageBounds,
    ToolContract,
    parse_page,
)
from .message_limits import LARGE_BYTES

FIRST_REQUEST_ID = 2**30  # far from the SDK's ids, which count from 1, and still 32 bits
CANCEL_TIMEOUT_S = 1.0  # to tell a server that does not read that a request was given up
LIST_METHODS = {
    "tools": "tools/list",
    "resources": "resources/list",
    "resourceTemplates": "resources/templates/list",
}
CLOSED_MESSAGE = "Connection closed"  # the SDK's message if the connection has ended

WriteLine = Callable[..., Awaitable[None]]  # gets the line in pieces
ReadLarge = Callable[[int, bytes | bytearray], Awaitable[Any]]  # of a request, by its id


class LargeLine:
    """A line that is too large to be parsed here; nothing more is read until it is released."""

    def __init__(self, data: bytes | bytearray, on_release: Callable[[], None]) -> None:
        self.data = data
        self._on_release: Callable[[], None] | None = on_release

    def release(self) -> None:
        """Let the connection go on; only the first call does anything."""
        on_release, self._on_release = self._on_release, None
        self.data = b""
        if on_release is not None:
            on_release()


Outcome = Mapping[str, Any] | LargeLine | ValueError | Literal["closed", "timeout"]


@dataclass
class OpenRequest:
    """A request that waits for its answer; `read_large` reads one that is large."""

    answer: asyncio.Future[Outcome]
    read_large: ReadLarge | None
    is_expired: bool = False

    def release_line(self) -> None:
        """Release the line that nobody has read, if there is one."""
        outcome = self.answer.result() if self.answer.done() else None
        if isinstance(outcome, LargeLine):
            outcome.release()


class DirectRequests:
    """The requests of one connection that the SDK does not know of."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._write_line: WriteLine | None = None
        self._open: dict[int, OpenRequest] = {}  # by id
        self._last_id = FIRST_REQUEST_ID
        self.close_reason = "its connection closed"  # a clause for people

    def open(self, write_line: WriteLine) -> None:
        """Send requests with `write_line` from here on."""
        self._write_line = write_line

    def close(self, reason: str) -> None:
        """End every request: no more answers can come, for `reason`."""
        if self._write_line is not None:
            self.close_reason = reason
        self._write_line = None
        for request in self._open.values():
            if not request.answer.done():
                request.answer.set_result("closed")

    async def send(
        self,
        method: str,
        params: Mapping[str, Any],
        timeout_s: float,
        read_large: ReadLarge | None = None,
        arguments: EncodedArguments | None = None,
    ) -> Any:
        """Return the result of a request, or what `read_large` makes of a large answer.

        `arguments` are those of a call, where they are not in `params`. Raises `MCPError`, and
        `ValueError` for an answer that could not be taken.
        """
        self._last_id += 1
        request_id = self._last_id
        request = self._open[request_id] = OpenRequest(self._loop.create_future(), read_large)
        timer = self._loop.call_later(timeout_s, self._expire, request_id)  # cheaper than a scope
        try:
            message = {"id": request_id, "method": method, "params": params}
            await self._write(message, arguments)
            found = await request.answer
            while isinstance(found, LargeLine):
                try:
                    return await self._read_large(request_id, request, found)
                except OtherAnswer:
                    found = await request.answer
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._cancel(request_id, "the caller no longer waits")
            raise
        finally:
            timer.cancel()
            del self._open[request_id]
            request.release_line()
        if found == "closed":
            raise MCPError(types.CONNECTION_CLOSED, CLOSED_MESSAGE)
        if isinstance(found, ValueError):
            raise found
        if found == "timeout":
            await self._cancel(request_id, f"timed out after {timeout_s:g} s")
            raise MCPError(types.REQUEST_TIMEOUT, f"The request {method} timed out.")
        return extract_result(found)

    async def _read_large(self, request_id: int, request: OpenRequest, line: LargeLine) -> Any:
        """Return what a large line holds; if it answers something else, wait for another one."""
        assert request.read_large is not None, "only such requests get large lines"
        try:
            return await request.read_large(request_id, line.data)
        except OtherAnswer:
            request.answer = self._loop.create_future()
            if request.is_expired:
                request.answer.set_result("timeout")
            raise
        finally:
            line.release()

    def take_large(self, request_id: int | None, line: LargeLine) -> bool:
        """Hand over a large line; return whether its request, or the oldest one, waits for it."""
        if request_id is None:
            request_id = self.oldest_request
        request = self._open.get(request_id) if request_id is not None else None
        if request is None or request.answer.done() or request.read_large is None:
            return False
        request.answer.set_result(line)
        return True

    def take_answer(self, message: Any) -> bool:
        """Return whether a message is the answer that one of these requests waits for."""
        if not isinstance(message, dict) or "method" in message:
            return False
        request_id = message.get("id")
        return type(request_id) is int and self._resolve(request_id, message)

    def fail(self, request_id: int, problem: ValueError) -> bool:
        """End a request whose answer cannot be taken; return whether it was open."""
        return self._resolve(request_id, problem)

    @property
    def oldest_request(self) -> int | None:
        """The open request that has waited longest."""
        waiting = (number for number, each in self._open.items() if not each.answer.done())
        return next(waiting, None)

    def _resolve(self, request_id: int, outcome: Mapping[str, Any] | ValueError) -> bool:
        request = self._open.get(request_id)
        if request is None or request.answer.done():
            return False
        request.answer.set_result(outcome)
        return True

    def _expire(self, request_id: int) -> None:
        request = self._open.get(request_id)
        if request is None:
            return
        request.is_expired = True
        if not request.answer.done():
            request.answer.set_result("timeout")

    async def _cancel(self, request_id: int, reason: str) -> None:
        params = {"requestId": request_id, "reason": reason}
        with anyio.move_on_after(CANCEL_TIMEOUT_S):
            try:
                await self._write({"method": "notifications/cancelled", "params": params})
            except MCPError:
                return  # nobody waits for the answer

    async def _write(
        self, message: Mapping[str, Any], arguments: EncodedArguments | None = None
    ) -> None:
        write_line = self._write_line
        if write_line is None:
            raise MCPError(types.CONNECTION_CLOSED, CLOSED_MESSAGE)
        text = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False, separators=(",", ":"))
        if len(text) > LARGE_BYTES:  # to encode it, and to write it, take some milliseconds each
            await checkpoint()
        line = text.encode("utf-8", "replace") + b"\n"
        pieces = [line]
        if arguments is not None:  # the parameters are not empty, and they end the message
            pieces = [line[:-3] + b',"arguments":', arguments.data, line[-3:]]
        try:
            await write_line(*pieces)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise MCPError(types.CONNECTION_CLOSED, CLOSED_MESSAGE) from None


def extract_result(answer: Mapping[str, Any]) -> Any:
    """Return the result in an answer; raises `MCPError`, or `ValueError` if it has none."""
    if "error" in answer:
        error = types.ErrorData.model_validate(answer["error"], by_name=False)
        raise MCPError(error.code, error.message, error.data)
    if not isinstance(answer.get("result"), dict):
        raise ValueError("its answer has no result")
    return answer["result"]


class DirectCalls:
    """Calls the tools of one connected upstream, and fetches its lists, with `DirectRequests`."""

    def __init__(self, requests: DirectRequests, client: Client, answers: LargeAnswers) -> None:
        self._requests = requests
        self._answers = answers
        self._meta = build_request_meta(client)

    async def call_tool(
        self, tool: str, arguments: Mapping[str, Any], timeout_s: float, contract: ToolContract
    ) -> types.CallToolResult | LargeResult:
        """Return the result of a call; only a large one is compared with the tool's `contract`.

        Raises `MCPError`, and `ValueError` for a result that is not allowed.
        """

        async def read_large(request_id: int, answer: bytes | bytearray) -> LargeResult:
            return await self._answers.read_result(request_id, answer, contract)

        encoded = find_encoded(arguments)
        params = {"name": tool, **self._describe_request()}
        if encoded is None:
            params["arguments"] = arguments
        found = await self._requests.send("tools/call", params, timeout_s, read_large, encoded)
        if isinstance(found, LargeResult):
            return found
        if found.get("resultType") == "input_required":
            message = f"{tool} asks for input, which a call from code cannot give."
            raise MCPError(types.INVALID_REQUEST, message)
        return types.CallToolResult.model_validate(found, by_name=False)

    def _describe_request(self) -> JsonObject:
        """Return the member `_meta` of a request, or nothing."""
        meta = dict(self._meta)
        add_trace_context(meta)
        return {"_meta": meta} if meta else {}

    async def fetch_page(
        self, key: str, cursor: str | None, bounds: PageBounds, timeout_s: float
    ) -> ListPage:
        """Return a page of a list (`ListKind.key`); raises what `call_tool` raises."""

        async def read_large(request_id: int, answer: bytes | bytearray) -> ListPage:
            return await self._answers.read_page(request_id, answer, key, bounds)

        params = {**({} if cursor is None else {"cursor": cursor}), **self._describe_request()}
        found = await self._requests.send(LIST_METHODS[key], params, timeout_s, read_large)
        return found if isinstance(found, ListPage) else parse_page(found, key, bounds)


def build_request_meta(client: Client) -> JsonObject:
    """Return what `_meta` of each request has: nothing in older protocol revisions."""
    if client.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return {}
    info = client.client_info or types.Implementation(name="", version="")
    return {
        types.PROTOCOL_VERSION_META_KEY: client.protocol_version,
        types.CLIENT_INFO_META_KEY: info.model_dump(by_alias=True, exclude_none=True),
        types.CLIENT_CAPABILITIES_META_KEY: {},
    }
