"""A tool as its upstream lists it, kept as JSON text.

The data of a tool take ten times the memory of their text, and a garbage collection examines them.
They are needed only when something is made of the tool, so they are built then, and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mcp_types as types

from ...protocol.payloads import JsonObject


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool by its upstream's own name, as JSON in which equal tools are equal."""

    name: str
    text: bytes  # one line

    def parse(self) -> types.Tool:
        """Return the data of the tool."""
        return types.Tool.model_validate_json(self.text, by_name=False)


def list_tool(tool: types.Tool) -> ListedTool:
    """Return a tool as it is kept."""
    text = tool.model_dump_json(by_alias=True, exclude_unset=True)
    return ListedTool(tool.name, text.encode())


def dump_tool(tool: types.Tool) -> JsonObject:
    """Return `tool` as the JSON data that its server sent."""
    data: JsonObject = tool.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return data


def parse_tool(data: Any) -> types.Tool:
    """Return the tool that is described by JSON data; raises `ValueError`."""
    return types.Tool.model_validate(data, by_name=False)
