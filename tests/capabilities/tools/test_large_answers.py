"""Large answers are read in a process of their own; only their text comes back."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import mcp_types as types
import pytest
from mcp import MCPError

from mcpruntime_server.capabilities.redaction import Credentials
from mcpruntime_server.capabilities.schema_checks import prepare_schema
from mcpruntime_server.capabilities.tools.large_answers import (
    LargeAnswers,
    LargeResult,
    OtherAnswer,
    PageBounds,
    ToolContract,
)
from mcpruntime_server.capabilities.tools.message_limits import LimitExceeded
from mcpruntime_server.capabilities.tools.observed_shapes import LargeValue

NO_CONTRACT = ToolContract(None, is_wrapped=False)
SECRET = "s3cret-s3cret-s3cret"
LONG = "x" * 100_000


def answer(result: Any, number: int = 7) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode()


def structured(value: Any) -> bytes:
    return answer({"content": [], "structuredContent": value})


@pytest.fixture
async def answers() -> AsyncIterator[LargeAnswers]:
    reader = LargeAnswers(Credentials([SECRET]))
    yield reader
    await reader.close()


async def read(
    answers: LargeAnswers, data: bytes, contract: ToolContract = NO_CONTRACT
) -> LargeResult:
    return await answers.read_result(7, data, contract)


async def test_a_large_value_is_not_built_here(answers: LargeAnswers) -> None:
    value = {"rows": [{"id": 1, "text": LONG + "\u20ac"}]}
    result = await read(answers, structured(value))
    assert isinstance(result.value, LargeValue)
    assert result.value.data.isascii()
    assert result.value.decode() == value
    assert result.value.shape["properties"]["rows"]["type"] == ["array"]


async def test_a_small_value_of_a_large_answer_is_data(answers: LargeAnswers) -> None:
    text = [{"type": "text", "text": LONG}]
    found = await read(answers, answer({"content": text, "structuredContent": {"a": 1}}))
    assert found.value == {"a": 1}


async def test_wrappers_are_removed_and_texts_parsed(answers: LargeAnswers) -> None:
    found = await read(answers, structured({"result": [1, 2]}), ToolContract(None, is_wrapped=True))
    assert found.value == [1, 2]
    found = await read(answers, answer({"content": [{"type": "text", "text": '{"a": [1]}'}]}))
    assert found.value == {"a": [1]}


async def test_credentials_do_not_come_back(answers: LargeAnswers) -> None:
    found = await read(answers, structured({SECRET: [f"Bearer {SECRET}", LONG]}))
    assert SECRET.encode() not in found.value.data
    failure = {"content": [{"type": "text", "text": f"no {SECRET}"}], "isError": True}
    found = await read(answers, answer({**failure, "structuredContent": {"key": SECRET}}))
    assert (found.is_error, found.message, found.data) == (True, "no ***", {"key": "***"})
    error = {"code": -32000, "message": f"no {SECRET}", "data": [SECRET]}
    with pytest.raises(MCPError) as caught:
        await read(answers, json.dumps({"jsonrpc": "2.0", "id": 7, "error": error}).encode())
    assert (caught.value.error.message, caught.value.error.data) == ("no ***", ["***"])


async def test_an_error_is_short(answers: LargeAnswers) -> None:
    error = {"code": -32000, "message": LONG, "data": LONG}
    with pytest.raises(MCPError) as caught:
        await read(answers, json.dumps({"jsonrpc": "2.0", "id": 7, "error": error}).encode())
    assert len(caught.value.error.message) == 2_000
    assert caught.value.error.data is None


async def test_a_value_follows_the_schema_of_its_tool(answers: LargeAnswers) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    contract = ToolContract(prepare_schema(schema), is_wrapped=False)
    assert (await read(answers, structured({"a": 1}), contract)).value == {"a": 1}
    for _ in range(2):  # the process knows the schema by its number
        with pytest.raises(ValueError, match=r"does not follow its output schema: \$\.a"):
            await read(answers, structured({"a": LONG}), contract)
    with pytest.raises(ValueError, match="there is no structured content"):
        await read(answers, answer({"content": []}), contract)
    invalid = ToolContract(prepare_schema({"type": "nothing"}), is_wrapped=False)
    with pytest.raises(ValueError, match="the schema is not valid"):
        await read(answers, structured({"a": 1}), invalid)


@pytest.mark.parametrize("data", [answer({}, 8), b'{"jsonrpc":"2.0","method":"x"}', b"[1]"])
async def test_what_answers_something_else_is_told_apart(
    answers: LargeAnswers, data: bytes
) -> None:
    with pytest.raises(OtherAnswer):
        await read(answers, data)


async def test_what_cannot_be_used_says_why(answers: LargeAnswers) -> None:
    with pytest.raises(LimitExceeded, match="nested more than 100 levels"):
        await read(answers, structured({"a": json.loads("[" * 150 + "]" * 150)}))
    with pytest.raises(LimitExceeded, match="more than 10,000 content blocks"):
        await read(answers, answer({"content": [{"type": "text", "text": ""}] * 10_001}))
    with pytest.raises(ValueError, match="not a valid CallToolResult"):
        await read(answers, answer({"content": 1}))
    with pytest.raises(ValueError, match="has no result"):
        await read(answers, answer([]))
    with pytest.raises(MCPError, match="asks for input"):
        await read(answers, answer({"resultType": "input_required"}))


async def test_it_goes_on_after_its_process_has_ended(answers: LargeAnswers) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    contract = ToolContract(prepare_schema(schema), is_wrapped=False)
    assert (await read(answers, structured({"a": 1}), contract)).value == {"a": 1}
    process = answers._process._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert (await read(answers, structured({"a": 2}), contract)).value == {"a": 2}


async def test_a_page_comes_item_by_item(answers: LargeAnswers) -> None:
    tools = [
        {"name": f"t{n}", "inputSchema": {"type": "object"}, "description": LONG} for n in range(9)
    ]
    page = answer({"tools": tools, "nextCursor": "more"})
    found = await answers.read_page(7, page, "tools", PageBounds(5, 10**9, 1_000))
    assert [types.Tool.model_validate_json(item).name for item in found.items] == [
        f"t{n}" for n in range(5)
    ]
    assert found.next_cursor == "more"
    found = await answers.read_page(7, page, "tools", PageBounds(5, 150_000, 1_000))
    assert len(found.items) == 2
    with pytest.raises(ValueError, match="its page has no list of tools"):
        await answers.read_page(7, answer({}), "tools", PageBounds(5, 1, 1))


async def test_a_schema_past_its_bounds_does_not_come_back(answers: LargeAnswers) -> None:
    properties = {f"p{n}": {"type": "string", "description": "d" * 100} for n in range(5_000)}
    tool = {"name": "t", "inputSchema": {"type": "object", "properties": properties}}
    found = await answers.read_page(7, answer({"tools": [tool]}), "tools", PageBounds(5, 1, 1_000))
    bounded = types.Tool.model_validate_json(found.items[0])
    assert bounded.input_schema == {"type": "object"}
    assert "has more than 1,000 parts" in (bounded.description or "")
