"""Tool results as plain JSON data for sandboxed code.

Rule 1: structured content is the result if there is any; its text blocks only repeat it.
Rule 2: otherwise each content block becomes one value, and several blocks become a list.
Rule 3: a text block that is a JSON object or array is parsed; every other text stays text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import mcp_types as types

FASTMCP_WRAPPER_KEY = (
    "x-fastmcp-wrap-result"  # how one server framework marks an output schema as a wrapper
)


def has_result_wrapper(tool: types.Tool) -> bool:
    """Return whether `tool` declares the `{"result": value}` that SDKs wrap around a non-object."""
    schema = tool.output_schema
    properties = schema.get("properties") if schema else None
    if not schema or not isinstance(properties, dict) or set(properties) != {"result"}:
        return False
    if schema.get(FASTMCP_WRAPPER_KEY) is True:
        return True
    title = str(schema.get("title", ""))
    return schema.get("required") == ["result"] and title.endswith("Output")


def tool_result_data(result: types.CallToolResult, is_wrapped: bool) -> Any:
    """Return `result` as JSON data; `is_wrapped` is the tool's `has_result_wrapper`."""
    structured = result.structured_content
    if structured is not None:
        has_wrapper = is_wrapped and isinstance(structured, dict) and "result" in structured
        return structured["result"] if has_wrapper else structured
    values = [content_block_value(block) for block in result.content]
    if len(values) == 1:
        return values[0]
    return values or None


def error_texts(result: types.CallToolResult) -> list[str]:
    """Return the text blocks of a failed result."""
    return [block.text for block in result.content if isinstance(block, types.TextContent)]


def error_message(texts: Sequence[str]) -> str:
    """Return the message of a failed result that has these text blocks."""
    return "\n".join(texts).strip() or "the tool failed without a message"


def content_block_value(block: types.ContentBlock) -> Any:
    """Return one content block as JSON data: parsed text, or a dict with `type` and its data."""
    if isinstance(block, types.TextContent):
        return parse_text(block.text)
    if isinstance(block, types.ImageContent | types.AudioContent):
        return {"type": block.type, "mimeType": block.mime_type, "data": block.data}
    if isinstance(block, types.EmbeddedResource):
        resource = block.resource
        value = {"type": "resource", "uri": str(resource.uri), "mimeType": resource.mime_type}
        if isinstance(resource, types.BlobResourceContents):
            return {**value, "data": resource.blob}
        return {**value, "text": resource.text}
    return block.model_dump(mode="json", by_alias=True, exclude_none=True)


def parse_text(text: str) -> Any:
    """Return the JSON object or array in `text`, else `text` itself."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return text


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
