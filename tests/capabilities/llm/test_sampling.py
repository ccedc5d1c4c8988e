"""Questions that the client's model answers through the client itself, where that offers it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mcp import MCPError
from mcp.types import (
    INVALID_REQUEST,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ErrorData,
    TextContent,
)

from tests.helpers.server_connection import connect_server, parse_answer, write_settings

from .test_client_model import attach
from .test_model_requests import SMALL

SEVERAL = "[s.value if s.ok else str(s.error) for s in ask_llm_batch([f'{n}?' for n in range(60)])]"


class Model:
    """Model answers and received requests of the client; with `refuses`, it rejects requests."""

    def __init__(self, refuses: Callable[[str], bool] = lambda _: False) -> None:
        self.asked: list[CreateMessageRequestParams] = []
        self.refuses = refuses

    async def answer(
        self, _: Any, asked: CreateMessageRequestParams
    ) -> CreateMessageResult | ErrorData:
        self.asked.append(asked)
        content = asked.messages[0].content
        assert isinstance(content, TextContent)
        if self.refuses(content.text):
            return ErrorData(code=INVALID_REQUEST, message="The person does not want that.")
        text = TextContent(type="text", text=content.text.partition("\n")[0].upper())
        return CreateMessageResult(role="assistant", model="mine", content=text)


async def cut(_: Any, asked: CreateMessageRequestParams) -> CreateMessageResult:
    text = TextContent(type="text", text="It is half a")
    return CreateMessageResult(
        role="assistant", model="mine", content=text, stop_reason="maxTokens"
    )


async def nobody(_: Any, asked: ElicitRequestParams) -> ElicitResult:
    raise AssertionError(f"a person was asked: {asked}")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_truncated_answer_does_not_answer_the_question(tmp_path: Path, mode: str) -> None:
    path = write_settings(tmp_path, sandbox=SMALL, llm={"broker": "sampling"})
    async with connect_server(path, mode=mode, sampling_callback=cut) as server:
        told = await server.run("ask_llm('is it?')")
        assert told.status == "waiting"
        assert "q1 question: is it?" in told.text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_that_offers_sampling_has_its_model_answer(
    tmp_path: Path, mode: str
) -> None:
    model = Model()
    path = write_settings(tmp_path, sandbox=SMALL, llm={"broker": "sampling"})
    async with connect_server(
        path, mode=mode, sampling_callback=model.answer, elicitation_callback=nobody
    ) as server:
        assert (await server.run("ask_llm('is it?', 'data')")).value == "IS IT?"
        [asked] = model.asked
        assert "never instructions" in (asked.system_prompt or "")
        assert (await server.run(SEVERAL)).value == [f"{n}?" for n in range(60)]
        told = parse_answer(await server.client.call_tool("ask_llm", {"prompt": "And you?"}))
        assert told.value == "AND YOU?"


async def test_the_client_model_is_asked_through_the_newest_protocol_only(tmp_path: Path) -> None:
    model = Model()
    path = write_settings(tmp_path, sandbox=SMALL, llm={"broker": "caller"})
    async with connect_server(path, sampling_callback=model.answer) as server:
        assert (await server.run("ask_llm('is it?')")).value == "IS IT?"
    async with connect_server(path, mode="legacy", sampling_callback=model.answer) as server:
        asked = await server.run("ask_llm('is it so?')")
        assert asked.status == "waiting"
        assert (await attach(server, asked.run, answers={"*": "no"})).value == "no"
    assert len(model.asked) == 1


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_request_that_the_client_does_not_answer_waits(tmp_path: Path, mode: str) -> None:
    model = Model(refuses=lambda text: text in ("b", "c"))
    path = write_settings(tmp_path, sandbox=SMALL, llm={"broker": "sampling"})
    async with connect_server(path, mode=mode, sampling_callback=model.answer) as server:
        with suppress(
            MCPError
        ):  # the SDK's client of today gives the request up when its model may not answer
            await server.run("[s.value for s in ask_llm_batch(['a', 'b', 'c'])]", session="mine")
        [step] = (await server.replay("list", "mine")).steps
        told = await attach(server, step["run"], wait_s=0)
        assert told.status == "waiting"
        waits = {wait["call"]: wait["id"] for wait in told.waiting_for}
        assert waits.keys() >= {"b", "c"}
        again = await attach(server, told.run, answers={id: call * 2 for call, id in waits.items()})
        assert again.value[1:] == ["bb", "cc"]


async def test_without_sampling_the_run_waits_and_the_tool_refuses(tmp_path: Path) -> None:
    path = write_settings(tmp_path, sandbox=SMALL, llm={"broker": "sampling"})
    async with connect_server(path) as server:
        asked = await server.run("ask_llm('is it?')")
        assert asked.status == "waiting"
        assert (await attach(server, asked.run, answers={"q1": "yes"})).value == "yes"
        refused = parse_answer(await server.client.call_tool("ask_llm", {"prompt": "And you?"}))
        assert refused.text.startswith("[no_model]")
