"""The schemas of the tools, made short: models pay for every word of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver.tools import Tool


def compact(schema: Mapping[str, Any], *, nested: bool = True) -> dict[str, Any]:
    """Return an object schema without what costs tokens and time: titles, null alternatives, defaults.

    With `nested` false, what is inside arrays and objects is left to the description; clients check results against
    this on every call.
    """
    properties = {}
    for name, given in schema["properties"].items():
        kind: dict[str, Any] = next((each for each in given.get("anyOf", ()) if each.get("type") != "null"), {})
        kept = {key: value for key, value in {**kind, **given}.items() if key not in ("title", "default", "anyOf")}
        if not nested:
            kept = {key: value for key, value in kept.items() if key in ("type", "description", "enum")}
        properties[name] = kept
    return {"type": "object", "properties": properties, "required": list(schema.get("required", ()))}


def parameters(tool: Tool) -> str:
    """Return the sentence that lists what `tool` takes."""
    required = tool.parameters["required"]
    listed = ", ".join(name + "*" * (name in required) for name in tool.parameters["properties"])
    return f"Parameters: {listed} (* = required)."
