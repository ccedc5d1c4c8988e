"""Builds the tools: their schemas are short, because models pay for every word of them.

Text that a client sends for a text parameter stays as it is. The SDK would parse it as JSON, so
that the code `[1, 2, 3]` would no longer be text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any, cast, get_args

from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp.types import ToolAnnotations
from pydantic import BaseModel

from .token_estimates import estimate_tokens

MAX_LIST_TOKENS = 750  # of all tools: names, descriptions and input schemas
MAX_JSON_TEXT_CHARS = 256 * 1024  # of a list or an object that a client sends as text
MAX_QUOTED_CHARS = 100  # of one that is longer
SIGNATURES_MARGIN = 1.2  # unusual names have more tokens than estimated
BOUND_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "additionalProperties")
OMITTED_KEYWORDS = ("title", "default", "anyOf", *BOUND_KEYWORDS)
FLAT_KEYWORDS = ("type", "description", "enum")
_derived_tools: dict[tuple[CodeType, type[BaseModel] | None], Tool] = {}


class ToolArguments(FuncMetadata):
    """The arguments of a tool, in which JSON is parsed only where text is not accepted."""

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return `data` with lists and objects instead of the JSON text that some clients send.

        Code is not parsed even to be left as it is: it may hold millions of values.
        """
        texts = {
            name: data[name]
            for name, parameter in self.arg_model.model_fields.items()
            if isinstance(data.get(name), str) and not accepts_text(parameter.annotation)
        }
        for name, text in texts.items():
            if len(text) > MAX_JSON_TEXT_CHARS:  # an error quotes it, and looks at all of it
                texts[name] = text[:MAX_QUOTED_CHARS]
        return {**data, **super().pre_parse_json(texts)}


def accepts_text(annotation: Any) -> bool:
    """Return whether a parameter with this annotation accepts any text."""
    return annotation is Any or str in (annotation, *get_args(annotation))


def build_tool(
    function: Callable[..., Any],
    description: str,
    annotations: ToolAnnotations,
    result: type[BaseModel] | None = None,
) -> Tool:
    """Return the tool that `function` implements, with compact schemas.

    `result` is what it answers. Deriving the schemas takes 10 ms, so it is done once in a process
    for each function in the source: servers for further principals have the same functions.
    """
    source = (cast(FunctionType, function).__code__, result)
    if source not in _derived_tools:
        _derived_tools[source] = derive_tool(function, result)
    changes = {"fn": function, "description": description, "annotations": annotations}
    return _derived_tools[source].model_copy(update=changes)


def derive_tool(function: Callable[..., Any], result: type[BaseModel] | None) -> Tool:
    """Return a tool without a description, with the compact schemas of `function` and `result`."""
    tool = Tool.from_function(function)
    tool.parameters = compact_schema(tool.parameters)
    tool.fn_metadata = ToolArguments(arg_model=tool.fn_metadata.arg_model)
    if result is not None:
        schema = result.model_json_schema()
        tool.fn_metadata.output_schema = compact_schema(schema, nested=False)
    return tool


def compact_schema(schema: Mapping[str, Any], *, nested: bool = True) -> dict[str, Any]:
    """Return an object schema without titles, null alternatives, defaults and bounds.

    The server itself refuses values that are out of bounds, with a clear message. With `nested`
    false, the content of arrays and objects is omitted, too: clients check every result against
    the output schema.
    """
    properties = {}
    for name, details in schema["properties"].items():
        alternatives = [each for each in details.get("anyOf", ()) if each.get("type") != "null"]
        merged = {**alternatives[0], **details} if alternatives else details
        kept = {
            key: value
            for key, value in merged.items()
            if key not in OMITTED_KEYWORDS and value != {}
        }
        if not nested:
            is_model = "$ref" in kept
            kept = {key: value for key, value in kept.items() if key in FLAT_KEYWORDS}
            if is_model:
                kept["type"] = "object"
            elif len(alternatives) > 1:
                kept["anyOf"] = details["anyOf"]
                kept.pop("type", None)
        properties[name] = kept
    compact: dict[str, Any] = {"type": "object", "properties": properties}
    if required := schema.get("required"):
        compact["required"] = list(required)
    return compact


def add_signatures(tools: Sequence[Tool], signatures: Sequence[str]) -> None:
    """Add `signatures` to the description of the first tool if all of them fit into the list."""
    listed = json.dumps([[tool.name, tool.description, tool.parameters] for tool in tools])
    text = f"\nThey declare: {'; '.join(signatures)}."
    cost = estimate_tokens(listed) + math.ceil(SIGNATURES_MARGIN * estimate_tokens(text))
    if signatures and cost <= MAX_LIST_TOKENS:
        tools[0].description += text


def list_fitting_names(names: Sequence[str], max_tokens: int) -> str:
    """Return the first names that fit into `max_tokens`, and how many more there are."""
    for count in range(min(len(names), max_tokens), 0, -1):
        rest = len(names) - count
        text = ", ".join(names[:count]) + (f" and {rest} more" if rest else "")
        if math.ceil(SIGNATURES_MARGIN * estimate_tokens(text)) <= max_tokens:
            return text
    return f"{len(names)}; tools.list() names them" if names else ""


def list_parameters(tool: Tool) -> str:
    """Return a sentence with the parameters of `tool`."""
    required = tool.parameters.get("required", ())
    listed = ", ".join(name + "*" * (name in required) for name in tool.parameters["properties"])
    return f"Parameters: {listed} (* = required)."
