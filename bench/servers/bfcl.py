"""The tool classes of the Berkeley Function-Calling Leaderboard as one MCP server.

It runs in the environment that `scripts/test-bfcl` makes. Each scenario has instances of its
classes; the scenario is in a file of the state folder, and a new one there starts fresh instances.
After each call, the server adds the result and a copy of all instances to the trace, by which the
leaderboard's own checker judges.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import anyio
import bfcl_eval
from bfcl_eval.constants.executable_backend_config import (
    CLASS_FILE_PATH_MAPPING,
    MULTI_TURN_FUNC_DOC_FILE_MAPPING,
    STATELESS_CLASSES,
)
from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from bench.servers.names import SCENARIO_FILE, STATE_VARIABLE, TRACE_FILE

DOCUMENTS = Path(bfcl_eval.__file__).parent / "data" / "multi_turn_func_doc"
CLASSES = (
    *("GorillaFileSystem", "MathAPI", "MessageAPI", "TwitterAPI"),
    *("TicketAPI", "TradingBot", "TravelAPI", "VehicleControlAPI"),
)


class ScenarioTools:
    """The tools of all classes, and the instances of the current scenario."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scenario = ""
        self._instances: dict[str, Any] = {}
        self._owners: dict[str, str] = {}
        self.tools: list[types.Tool] = []
        for owner in CLASSES:
            documents = (DOCUMENTS / MULTI_TURN_FUNC_DOC_FILE_MAPPING[owner]).read_text("utf-8")
            for document in map(json.loads, documents.splitlines()):
                self._owners[document["name"]] = owner
                self.tools.append(make_tool(document))

    def call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Call a tool of the current scenario and add the call to the trace."""
        self._load_scenario()
        instance = self._instances.get(self._owners.get(name, ""))
        if instance is None:
            return text_result(f"This scenario has no tool {name!r}.", is_error=True)
        try:
            result = make_result(getattr(instance, name)(**arguments))
        except Exception as exc:  # noqa: BLE001 - a tool class may raise anything
            result = text_result(str(exc), is_error=True)
        with (self._folder / TRACE_FILE).open("ab") as trace:
            pickle.dump((name, arguments, self._instances), trace)
        return result

    def _load_scenario(self) -> None:
        """Make new instances if the scenario is another one, as the leaderboard's executor does."""
        text = (self._folder / SCENARIO_FILE).read_text("utf-8")
        if text == self._scenario:
            return
        scenario = json.loads(text)
        self._scenario, self._instances = text, {}
        for name in scenario["classes"]:
            instance = getattr(importlib.import_module(CLASS_FILE_PATH_MAPPING[name]), name)()
            if name not in STATELESS_CLASSES:
                config = copy.deepcopy(scenario["config"].get(name, {}))
                instance._load_scenario(config, long_context=scenario["long_context"])
            self._instances[name] = instance


def make_tool(document: dict[str, Any]) -> types.Tool:
    """Return a tool with the leaderboard's description and parameters."""
    _, _, description = document["description"].rpartition("Tool description: ")
    fields = document.get("response", {}).get("properties", {})
    if fields:
        returned = ", ".join(f"{name}: {about['type']}" for name, about in fields.items())
        description = f"{description.rstrip()} Returns {{{returned}}}."
    return types.Tool(
        name=document["name"],
        description=description,
        input_schema=convert_schema(document["parameters"]),
    )


def convert_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema of the leaderboard as JSON Schema."""
    kept = ("description", "required", "enum")
    converted: dict[str, Any] = {key: schema[key] for key in kept if key in schema}
    if "default" in schema and schema["default"] != "None":
        converted["default"] = schema["default"]
    kind = schema.get("type", "any")
    if kind not in ("any", "Any"):
        converted["type"] = GORILLA_TO_OPENAPI[kind]
    if "items" in schema:
        converted["items"] = convert_schema(schema["items"])
    if "properties" in schema:
        converted["properties"] = {
            name: convert_schema(each) for name, each in schema["properties"].items()
        }
    return converted


def make_result(value: Any) -> types.CallToolResult:
    """Return the value of a tool; what JSON lacks is text, as in the leaderboard."""
    if value is None:
        return types.CallToolResult(content=[])
    try:
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    except TypeError:
        return text_result(str(value))
    structured = json.loads(text) if isinstance(value, dict) else None
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], structured_content=structured
    )


def text_result(text: str, *, is_error: bool = False) -> types.CallToolResult:
    """Return a text."""
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], is_error=is_error
    )


async def serve(folder: Path) -> None:
    """Serve over stdio."""
    scenario = ScenarioTools(folder)

    async def list_tools(context: Any, parameters: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=scenario.tools)

    async def call_tool(context: Any, request: types.CallToolRequestParams) -> types.CallToolResult:
        return scenario.call(request.name, dict(request.arguments or {}))

    server: Server[Any] = Server("bfcl", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(serve, Path(os.environ[STATE_VARIABLE]))
