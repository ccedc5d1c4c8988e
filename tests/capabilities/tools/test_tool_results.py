"""Tool results as JSON data, with credentials replaced."""

from __future__ import annotations

from typing import Any

import pytest
from mcp import types

from mcpruntime_server.capabilities.tools.tool_results import (
    error_message,
    error_texts,
    has_result_wrapper,
    parse_text,
    tool_result_data,
)


def text(*texts: str) -> types.CallToolResult:
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text) for text in texts]
    )


def tool(schema: dict[str, Any] | None) -> types.Tool:
    return types.Tool(name="t", input_schema={}, output_schema=schema)


class TestPlain:
    def test_structured_content_is_the_answer(self) -> None:
        result = types.CallToolResult(content=text("x").content, structured_content={"a": 1})
        assert tool_result_data(result, is_wrapped=False) == {"a": 1}

    def test_a_wrapper_is_taken_off_only_where_the_schema_says_so(self) -> None:
        result = types.CallToolResult(content=[], structured_content={"result": [1]})
        assert tool_result_data(result, is_wrapped=True) == [1]
        assert tool_result_data(result, is_wrapped=False) == {"result": [1]}

    @pytest.mark.parametrize(
        ("result", "value"),
        [
            (text(), None),
            (text("hello"), "hello"),
            (text('{"a": [1]}'), {"a": [1]}),
            (text(" [1, 2]\n"), [1, 2]),
            (text("a", '{"b": 2}'), ["a", {"b": 2}]),
        ],
    )
    def test_text_is_text_or_the_data_that_it_encodes(
        self, result: types.CallToolResult, value: Any
    ) -> None:
        assert tool_result_data(result, is_wrapped=False) == value

    @pytest.mark.parametrize(
        "value", ["12", "true", '"quoted"', "{not json", "[1, NaN]", "[" * 100_000, "", "null"]
    )
    def test_what_is_no_json_object_or_array_stays_text(self, value: str) -> None:
        assert parse_text(value) == value

    def test_other_content_keeps_its_type_and_its_data(self) -> None:
        blob = types.BlobResourceContents(uri="a://b", mime_type="image/png", blob="QQ==")
        words = types.TextResourceContents(uri="a://c", text="words")
        result = types.CallToolResult(
            content=[
                types.AudioContent(type="audio", mime_type="audio/wav", data="QQ=="),
                types.EmbeddedResource(type="resource", resource=blob),
                types.EmbeddedResource(type="resource", resource=words),
                types.ResourceLink(type="resource_link", name="n", uri="a://d"),
            ]
        )
        assert tool_result_data(result, is_wrapped=False) == [
            {"type": "audio", "mimeType": "audio/wav", "data": "QQ=="},
            {"type": "resource", "uri": "a://b", "mimeType": "image/png", "data": "QQ=="},
            {"type": "resource", "uri": "a://c", "mimeType": None, "text": "words"},
            {"type": "resource_link", "name": "n", "uri": "a://d"},
        ]

    def test_the_words_of_a_failure_are_bounded_and_never_missing(self) -> None:
        assert error_message(error_texts(text("a", "b"))) == "a\nb"
        assert "without a message" in error_message(error_texts(text()))


class TestWrapper:
    def test_the_sdks_own_wrapper_is_one(self) -> None:
        schema = {
            "type": "object",
            "title": "addOutput",
            "properties": {"result": {}},
            "required": ["result"],
        }
        assert has_result_wrapper(tool(schema))

    @pytest.mark.parametrize(
        "schema",
        [
            None,
            {},
            {"type": "object", "properties": {"result": {}}, "required": ["result"]},
            {
                "type": "object",
                "title": "aOutput",
                "properties": {"result": {}, "more": {}},
                "required": ["result"],
            },
            {
                "type": "object",
                "title": "aOutput",
                "properties": ["result"],
                "required": ["result"],
            },
        ],
    )
    def test_anything_else_is_none(self, schema: dict[str, Any] | None) -> None:
        assert not has_result_wrapper(tool(schema))
