"""Shortens the schemas of the tools, because models pay for every word of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver.tools import Tool

BOUND_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "additionalProperties")
OMITTED_KEYWORDS = ("title", "default", "anyOf", *BOUND_KEYWORDS)
FLAT_KEYWORDS = ("type", "description", "enum")


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
            kept = {key: value for key, value in kept.items() if key in FLAT_KEYWORDS}
        properties[name] = kept
    compact: dict[str, Any] = {"type": "object", "properties": properties}
    if required := schema.get("required"):
        compact["required"] = list(required)
    return compact


def list_parameters(tool: Tool) -> str:
    """Return a sentence with the parameters of `tool`."""
    required = tool.parameters.get("required", ())
    listed = ", ".join(name + "*" * (name in required) for name in tool.parameters["properties"])
    return f"Parameters: {listed} (* = required)."
