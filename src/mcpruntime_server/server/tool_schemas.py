"""The schemas of the tools, made short: models pay for every word of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver.tools import Tool

BOUND_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "additionalProperties")
OMITTED_KEYWORDS = ("title", "default", "anyOf", *BOUND_KEYWORDS)


def compact_schema(schema: Mapping[str, Any], *, nested: bool = True) -> dict[str, Any]:
    """Return an object schema without what costs tokens and time: titles, null alternatives, defaults, bounds.

    What is out of bounds is refused by the server, with a message that says so.
    With `nested` false, what is inside arrays and objects is left to the description; clients check results against
    this on every call.
    """
    properties = {}
    for name, given in schema["properties"].items():
        kind: dict[str, Any] = next(
            (each for each in given.get("anyOf", ()) if each.get("type") != "null"), {}
        )
        kept = {
            key: value
            for key, value in {**kind, **given}.items()
            if key not in OMITTED_KEYWORDS and value != {}
        }
        if not nested:
            kept = {
                key: value for key, value in kept.items() if key in ("type", "description", "enum")
            }
        properties[name] = kept
    required = list(schema.get("required", ()))
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
    }


def list_parameters(tool: Tool) -> str:
    """Return the sentence that lists what `tool` takes."""
    required = tool.parameters.get("required", ())
    listed = ", ".join(name + "*" * (name in required) for name in tool.parameters["properties"])
    return f"Parameters: {listed} (* = required)."
