"""Tool calls that go straight to the pipes of a child process, past the SDK's session.

In the SDK's session a call passes a memory stream, a telemetry span, three validations of its
result and two more turns of the event loop, which costs as much as all the rest of a call from
inside. So the requests for tools are sent from here, and everything else by the SDK: the handshake,
lists, subscriptions, and answers to what the server asks. Both write whole lines to the same pipe,
and an answer belongs to the one whose id it carries.

Rule 1: a request ends once: with its answer, or as `MCPError` when its time is over or the
connection has ended, with the codes that the SDK uses.
Rule 2: a server is told when nobody waits for its answer any more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import anyio
from mcp import Client, MCPError, types
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

FIRST_REQUEST_ID = 2**30  # far from the SDK's ids, which count from 1, and still 32 bits
CANCEL_TIMEOUT_S = 1.0  # to tell a server that does not read that a request was given up
CLOSED_MESSAGE = "Connection closed"  # the SDK's message if the connection has ended

WriteLine = Callable[[bytes], Awaitable[None]]
Answer = asyncio.Future[Mapping[str, Any] | ValueError | Literal["closed", "timeout"]]


class DirectRequests:
    """The requests of one connection that the SDK does not know of."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._write_line: WriteLine | None = None
        self._answers: dict[int, Answer] = {}  # of open requests, by id
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
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result("closed")

    async def send(self, method: str, params: Mapping[str, Any], timeout_s: float) -> Any:
        """Return the result of a request.

        Raises `MCPError`, and `ValueError` for an answer that could not be taken.
        """
        self._last_id += 1
        request_id, answer = self._last_id, self._loop.create_future()
        self._answers[request_id] = answer
        timer = self._loop.call_later(timeout_s, self._expire, answer)  # cheaper than a scope
        try:
            await self._write({"id": request_id, "method": method, "params": params})
            found = await answer
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._cancel(request_id, "the caller does not wait any more")
            raise
        finally:
            timer.cancel()
            del self._answers[request_id]
        if found == "closed":
            raise MCPError(types.CONNECTION_CLOSED, CLOSED_MESSAGE)
        if isinstance(found, ValueError):
            raise found
        if found == "timeout":
            await self._cancel(request_id, f"timed out after {timeout_s:g} s")
            raise MCPError(types.REQUEST_TIMEOUT, f"The request {method} timed out.")
        return extract_result(found)

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
        waiting = (request_id for request_id, each in self._answers.items() if not each.done())
        return next(waiting, None)

    def _resolve(self, request_id: int, outcome: Mapping[str, Any] | ValueError) -> bool:
        answer = self._answers.get(request_id)
        if answer is None or answer.done():
            return False
        answer.set_result(outcome)
        return True

    @staticmethod
    def _expire(answer: Answer) -> None:
        if not answer.done():
            answer.set_result("timeout")

    async def _cancel(self, request_id: int, reason: str) -> None:
        params = {"requestId": request_id, "reason": reason}
        with anyio.move_on_after(CANCEL_TIMEOUT_S):
            try:
                await self._write({"method": "notifications/cancelled", "params": params})
            except MCPError:
                return  # nobody is left to be told

    async def _write(self, message: Mapping[str, Any]) -> None:
        if self._write_line is None:
            raise MCPError(types.CONNECTION_CLOSED, CLOSED_MESSAGE)
        text = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False, separators=(",", ":"))
        try:
            await self._write_line(text.encode("utf-8", "replace") + b"\n")
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
    """Calls the tools of one connected upstream with `DirectRequests`."""

    def __init__(self, requests: DirectRequests, client: Client) -> None:
        self._requests = requests
        self._meta = build_request_meta(client)

    async def call_tool(
        self, tool: str, arguments: Mapping[str, Any], timeout_s: float
    ) -> types.CallToolResult:
        """Return the result of a call, which the tool's own schema may not allow.

        Raises `MCPError`, and `ValueError` for a result that the protocol does not allow.
        """
        params = {"name": tool, "arguments": arguments, **self._meta}
        found = await self._requests.send("tools/call", params, timeout_s)
        if found.get("resultType") == "input_required":
            message = f"{tool} asks for input, which a call from code cannot give."
            raise MCPError(types.INVALID_REQUEST, message)
        return types.CallToolResult.model_validate(found, by_name=False)


def build_request_meta(client: Client) -> dict[str, Any]:
    """Return the member `_meta` that each request has, or nothing in older protocol revisions."""
    if client.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return {}
    info = client.client_info or types.Implementation(name="", version="")
    return {
        "_meta": {
            types.PROTOCOL_VERSION_META_KEY: client.protocol_version,
            types.CLIENT_INFO_META_KEY: info.model_dump(by_alias=True, exclude_none=True),
            types.CLIENT_CAPABILITIES_META_KEY: {},
        }
    }
