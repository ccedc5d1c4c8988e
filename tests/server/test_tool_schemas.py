"""The signatures in the description of a tool: all of them, or none, within the tokens allowed."""

from __future__ import annotations

import json
from time import thread_time
from typing import Any

import pytest
from mcp.types import ToolAnnotations
from pydantic import ValidationError

from mcpruntime_server.cli.demo.token_count import count_tokens
from mcpruntime_server.server.token_estimates import estimate_tokens
from mcpruntime_server.server.tool_schemas import (
    MAX_LIST_TOKENS,
    add_signatures,
    build_tool,
)

SIGNATURES = [
    "github.create_issue(repo: str, title: str, labels=None)",
    "calendar.list_events(start: str, end: str, max_results=250)",
    "files.read(path: str, encoding='utf-8')",
    "getWeatherForecast.query(latitudeDegrees: float, longitudeDegrees: float)",
]


def describe(tool_words: int, signatures: list[str]) -> tuple[str, int]:
    """Return the description of a tool with so many words, and the tokens of the list."""

    async def call(query: str) -> str:
        return query

    tool = build_tool(call, "word " * tool_words, ToolAnnotations())
    add_signatures([tool], signatures)
    listed = json.dumps([[tool.name, tool.description, tool.parameters]])
    return tool.description, count_tokens(listed)


@pytest.mark.parametrize("count", range(1, 60, 3))
def test_all_signatures_are_there_or_none_and_the_list_stays_small(count: int) -> None:
    for words in (0, 300, 500, 600, 650):
        signatures = [SIGNATURES[n % len(SIGNATURES)] for n in range(count)]
        shown, tokens = describe(words, signatures)
        assert tokens <= MAX_LIST_TOKENS
        assert shown.count("(") in (0, count)


def test_what_fits_is_used() -> None:
    assert all(each in describe(300, SIGNATURES)[0] for each in SIGNATURES)
    assert "declare" not in describe(300, [])[0]


@pytest.mark.parametrize("text", ["; ".join(SIGNATURES), "naïve 汉字", "x" * 200, "1234567 {}[]"])
def test_tokens_are_not_underestimated(text: str) -> None:
    assert estimate_tokens(text) * 1.2 >= count_tokens(text)


def test_only_what_is_no_text_is_read_as_json_and_only_if_it_is_short() -> None:
    async def call(code: str | None = None, answers: dict[str, Any] | None = None) -> str:
        return ""

    validate = build_tool(call, "", ToolAnnotations()).fn_metadata.validate_arguments
    assert validate({"code": "[1]", "answers": '{"a": 1}'}) == {"code": "[1]", "answers": {"a": 1}}
    started = thread_time()
    assert validate({"code": f"[{'{},' * 1_300_000}1]"})["answers"] is None
    with pytest.raises(ValidationError):
        validate({"answers": '{"a": [' + "{}," * 1_300_000 + "1]}"})
    assert thread_time() - started < 0.5  # to parse that takes a second
