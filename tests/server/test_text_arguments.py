"""Text that looks like JSON arrives as the text that the client sent, in both protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ..helpers.server_connection import (
    ServerConnection,
    connect_server,
    parse_answer,
    write_settings,
)

JSON_TEXTS = ("[1, 2, 3]", '{"a": 1}', "null", '"x"', "1e5", "true")
VALUES = {"[1, 2, 3]": [1, 2, 3], '{"a": 1}': {"a": 1}, '"x"': "x", "1e5": 100000.0}
REQUIRED: dict[str, dict[str, Any]] = {
    "run_code": {},
    "replay": {"action": "rerun"},
    "list_skills": {},
    "save_skill": {},
    "ask_llm": {"prompt": "Which?"},
}
TYPE_PROBLEM = "Input should be"  # in a message about an argument of the wrong type


@pytest.fixture(scope="module", params=["auto", "legacy"])
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServerConnection]:
    """A server, and a client of the newest protocol or of an older one."""
    settings = write_settings(
        tmp_path_factory.mktemp("text"),
        sandbox={"backend": "local", "pool_size": 0},
        llm={"broker": "sampling"},
    )
    async with connect_server(settings, mode=request.param) as connection:
        yield connection


@pytest.mark.parametrize("code", JSON_TEXTS)
async def test_code_that_is_json_runs(server: ServerConnection, code: str) -> None:
    answer = await server.run(code)
    if code in VALUES:
        assert (answer.status, answer.value) == ("ok", VALUES[code]), answer.text
    else:
        assert (answer.status, answer.error["type"]) == ("error", "NameError"), answer.text


@pytest.mark.parametrize("text", JSON_TEXTS)
async def test_every_text_parameter_of_every_tool_keeps_json_as_text(
    server: ServerConnection, text: str
) -> None:
    tools = (await server.client.list_tools()).tools
    assert {tool.name for tool in tools} == REQUIRED.keys()
    for tool in tools:
        properties = tool.input_schema["properties"]
        texts = [
            name
            for name, details in properties.items()
            if details.get("type", "string") == "string" and "enum" not in details
        ]
        assert texts, tool.name
        for name in texts:
            arguments = {**REQUIRED[tool.name], name: text}
            answer = parse_answer(await server.client.call_tool(tool.name, arguments))
            assert TYPE_PROBLEM not in answer.text, (tool.name, name, answer.text)


@pytest.mark.parametrize("text", JSON_TEXTS)
async def test_names_are_looked_up_as_they_were_sent(server: ServerConnection, text: str) -> None:
    call = server.client.call_tool
    unknown = [
        await call("replay", {"action": "list", "session": f" {text}"}),
        await call("run_code", {"run": text}),
        await call("replay", {"action": "show", "run": text}),
        await call("save_skill", {"run": text}),
    ]
    for answer in map(parse_answer, unknown):
        assert answer.is_error, answer.text
        assert text in answer.text


async def test_lists_and_objects_may_still_be_sent_as_json_text(server: ServerConnection) -> None:
    answer = await server.run("str(CONTEXT)", context='[{"text": "[1, 2]"}]')
    assert (answer.status, answer.value) == ("ok", "[1, 2]"), answer.text
