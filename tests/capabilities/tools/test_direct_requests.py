"""Requests that share the pipes of a child process with the SDK."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import MCPError, types
from mcp.shared.message import SessionMessage

from mcpruntime_server.capabilities.tools.direct_requests import DirectRequests
from mcpruntime_server.capabilities.tools.message_limits import MessageLimits
from mcpruntime_server.capabilities.tools.message_reader import UpstreamMessageReader
from mcpruntime_server.capabilities.tools.stdio_client import open_stdio_client
from mcpruntime_server.capabilities.tools.unrequested_messages import MessageFilter

TIMEOUT_S = 30.0  # only a test that fails waits so long
LIMITS = MessageLimits(message_bytes=4_000_000, values=10_000, listed=10, messages_per_s=1_000)
SERVER = """\
import json, sys
def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
held = []
for line in sys.stdin:
    message = json.loads(line)
    number, params = message.get("id"), message["params"]
    match message["method"]:
        case "echo":
            say(id=number, result={"params": params, "line": line})
        case "error":
            say(id=number, error={"code": -32050, "message": "no", "data": [1]})
        case "hold":
            held.append(number)
            say(method="notifications/held", params={})
        case "notifications/cancelled":
            say(id=params["requestId"], result={"late": True})
            say(method="notifications/told", params=params)
        case "release":
            for each in reversed(held):
                say(id=each, result={"id": each})
            say(id=number, result={})
        case "odd":
            say(id=number, result=7)
        case "strange":
            for each in (True, 1.5, str(number), number + 1, [number], None):
                say(id=each, result={"stolen": True})
            say(method="notifications/asked", params={"id": number})
            say(id=number, result={"mine": True})
            say(id=number, result={"twice": True})
        case "die":
            sys.exit()
"""


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[tuple[DirectRequests, UpstreamMessageReader]]:
    requests = DirectRequests()
    command = [sys.executable, "-c", SERVER]
    messages = MessageFilter(LIMITS)
    with (folder / "stderr").open("w") as errors, anyio.fail_after(TIMEOUT_S):
        async with open_stdio_client(
            command, {}, folder, errors, anyio.Event(), requests, messages
        ) as streams:
            yield requests, streams[0]


async def notification(reader: UpstreamMessageReader) -> types.JSONRPCNotification:
    """Return the next message for the SDK, which has to be a notification."""
    received = await reader.receive()
    assert isinstance(received, SessionMessage)
    assert isinstance(received.message, types.JSONRPCNotification), received.message
    return received.message


async def test_a_request_is_answered_with_what_was_sent(tmp_path: Path) -> None:
    async with server(tmp_path) as (requests, _):
        params = {"text": 'ü\n"\u2028\x00', "n": [1, 2.5, None, True]}
        answer = await requests.send("echo", params, TIMEOUT_S)
        assert answer["params"] == params
        assert answer["line"].count("\n") == 1
        lone = await requests.send("echo", {"text": "a\ud800b"}, TIMEOUT_S)
        assert lone["params"] == {"text": "a?b"}


async def test_concurrent_requests_get_their_own_answers(tmp_path: Path) -> None:
    answers: dict[int, Any] = {}

    async with server(tmp_path) as (requests, reader):

        async def hold(number: int) -> None:
            answers[number] = (await requests.send("hold", {}, TIMEOUT_S))["id"]

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(hold, number)
                await notification(reader)
            await requests.send("release", {}, TIMEOUT_S)
    assert [answers[number] - answers[0] for number in range(5)] == list(range(5))


async def test_an_error_and_a_result_of_the_wrong_kind_are_raised(tmp_path: Path) -> None:
    async with server(tmp_path) as (requests, _):
        with pytest.raises(MCPError) as failed:
            await requests.send("error", {}, TIMEOUT_S)
        assert (failed.value.code, failed.value.message, failed.value.data) == (-32050, "no", [1])
        with pytest.raises(ValueError, match="has no result"):
            await requests.send("odd", {}, TIMEOUT_S)


async def test_only_the_answer_with_the_id_of_a_request_is_taken(tmp_path: Path) -> None:
    async with server(tmp_path) as (requests, reader):
        assert await requests.send("strange", {}, TIMEOUT_S) == {"mine": True}
        assert (await notification(reader)).method == "notifications/asked"
        assert (await requests.send("echo", {}, TIMEOUT_S))["params"] == {}


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_a_request_that_is_given_up_is_cancelled_and_its_late_answer_dropped(
    tmp_path: Path, how: str
) -> None:
    async with server(tmp_path) as (requests, reader):
        if how == "timeout":
            with pytest.raises(MCPError) as failed:
                await requests.send("hold", {}, 0.05)
            assert failed.value.code == types.REQUEST_TIMEOUT
            await notification(reader)
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(requests.send, "hold", {}, TIMEOUT_S)
                await notification(reader)
                tasks.cancel_scope.cancel()
        told = await notification(reader)  # after the late answer
        assert told.params is not None
        assert told.params["reason"]
        assert (await requests.send("echo", {}, TIMEOUT_S))["params"] == {}


async def test_the_end_of_the_process_ends_all_requests(tmp_path: Path) -> None:
    codes: list[int] = []

    async with server(tmp_path) as (requests, reader):

        async def hold() -> None:
            with pytest.raises(MCPError) as failed:
                await requests.send("hold", {}, TIMEOUT_S)
            codes.append(failed.value.code)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(hold)
                await notification(reader)
            with pytest.raises(MCPError):
                await requests.send("die", {}, TIMEOUT_S)
        with pytest.raises(MCPError):
            await requests.send("echo", {}, TIMEOUT_S)
    assert codes == [types.CONNECTION_CLOSED] * 3
