"""The tool `ask_llm`: one question of the client's, answered as code's questions are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench import fake_llm
from mcpruntime_server.cli.demo.token_count import count_tokens
from tests.helpers.server_connection import (
    ServerConnection,
    ToolAnswer,
    connect_server,
    parse_answer,
    write_settings,
)

from .test_model_requests import SMALL, settings


@pytest.fixture(scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory, model: fake_llm.ModelServer
) -> AsyncIterator[ServerConnection]:
    async with connect_server(settings(tmp_path_factory.mktemp("tool"), model)) as connection:
        yield connection


async def ask(server: ServerConnection, prompt: str, **more: Any) -> ToolAnswer:
    progress = more.pop("progress_callback", None)
    arguments = {"prompt": prompt, **more}
    return parse_answer(
        await server.client.call_tool("ask_llm", arguments, progress_callback=progress)
    )


async def test_the_answer_is_the_value_and_the_question_a_step(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    told = await ask(server, 'How\'s "it"?\n\U0001f600', data={"rows": [1, None, True]})
    assert (told.status, told.text.splitlines()[0].split(" | ")[0]) == ("ok", "ok")
    assert told.value.startswith('How\'s "it"?\n\U0001f600\n\n<data ')
    assert '{"rows":[1,null,true]}' in told.value
    assert "calls" not in told.data
    shown = await server.replay("show", told.session, run=told.run)
    assert [call["call"].partition("(")[0] for call in shown.calls] == ["llm.ask"]
    await server.run("ask_llm = None", told.session)
    assert (await ask(server, "Again")).value == "Again"  # whatever code makes of the name
    await server.replay("rerun", told.session, run=told.run)
    assert model.read_counts()["calls"] == 2


async def test_answers_follow_the_schema_or_are_errors_with_a_code(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    told = await ask(server, "How many?", schema={"type": "integer"}, model="json")
    assert told.value == 0
    refused = await ask(server, "How many?", schema={"type": "integer"}, model="never-json")
    assert refused.is_error
    assert refused.text.startswith("[llm_bad_answer] The model's answer does not follow the schema")
    assert "replay(action='show', session=" in refused.text
    model.set_script({"fault": "400", "times": 9})
    assert (await ask(server, "Well?")).text.startswith(
        "[llm_failed] The model request failed (HTTP 400)"
    )


@pytest.mark.parametrize("depth", [50, 80])
async def test_a_schema_that_is_too_deep_is_refused(server: ServerConnection, depth: int) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    refused = await ask(server, "x", schema=schema)
    assert refused.is_error
    assert "The schema is nested" in refused.text


async def test_a_long_request_is_reported_within_seconds(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    heard: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    model.set_script({"match": "slow", "latency_s": 2.5})
    assert (await ask(server, "slow", progress_callback=on_progress)).value == "slow"
    assert heard
    assert heard[0] == (1, "still running, 1 s")


async def test_budgets_hold_for_the_tool_too(tmp_path: Path, model: fake_llm.ModelServer) -> None:
    async with connect_server(settings(tmp_path, model, session={"calls": 2})) as server:
        assert [(await ask(server, f"{n}")).is_error for n in range(2)] == [False, False]
        refused = await ask(server, "one more")
        assert refused.text.startswith("[budget_exceeded] The session budget is 2 model requests")


@pytest.mark.parametrize(
    ("llm", "says"),
    [({}, "ask you"), ({"broker": "caller", "model": "m"}, "ask you"), ({"broker": "off"}, "")],
)
async def test_without_another_model_the_tool_is_not_offered(
    tmp_path: Path, llm: dict[str, str], says: str
) -> None:
    async with connect_server(write_settings(tmp_path, sandbox=SMALL, llm=llm)) as server:
        tools = (await server.client.list_tools()).tools
        assert "ask_llm" not in [tool.name for tool in tools]
        instructions = server.client.instructions or ""
        assert ("ask_llm" in instructions) is bool(says)
        assert says in instructions
        refused = parse_answer(await server.client.call_tool("ask_llm", {"prompt": "x"}))
        assert "There is no tool 'ask_llm'" in refused.text
        asked = await server.run("ask_llm('Which?')")
        if says:
            answers = {"run": asked.run, "answers": {"q1": "this"}}
            told = parse_answer(await server.client.call_tool("run_code", answers))
            assert told.value == "this"
        else:
            assert "No model is configured." in asked.text


async def test_all_tools_together_cost_a_model_little(server: ServerConnection) -> None:
    tools = (await server.client.list_tools()).tools
    assert [tool.name for tool in tools] == [
        "run_code",
        "replay",
        "list_skills",
        "save_skill",
        "ask_llm",
    ]
    seen = [
        {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
        for tool in tools
    ]
    assert count_tokens(json.dumps(seen, ensure_ascii=False)) <= 750
