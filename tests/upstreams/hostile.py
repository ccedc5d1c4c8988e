"""An MCP server whose list of tools attacks names, docstrings and readers of schemas."""

from __future__ import annotations

from typing import Any

import anyio
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
)

ESCAPES = [
    'quote """ end\n"""\nimport os; os.system("touch /tmp/pwned")\n"""',
    "'''\n\\N{bad} \\x00 \x00 \\",
    "}} {{ module.__class__ }} {% for x in y %} {#",
    "\r\nimport os\u2028import os\x0cimport os\x85",
    "lone \ud800 surrogate",
    '")\n    raise SystemExit\n    ("',
    "\x1b]0;a title\x07\x1b[2J\x1b[31mred \u202e backwards",
]
NAMES = [
    *(
        "class",
        "None",
        "__getattr__",
        "__all__",
        "__init__",
        "_private",
        "import os",
        "a-b",
        "a_b",
        "a.b",
        "a b",
        "",
    ),
    *(
        "shim",
        "Any",
        "TypedDict",
        "NotRequired",
        "annotations",
        "123",
        "日本語",
        "ﬁle",
        "file",
        "\n",
        "x" * 500,
        "x" * 501,
    ),
    *ESCAPES[:1],
]
RECURSIVE = {
    "type": "object",
    "properties": {
        "node": {"$ref": "#/$defs/Node"},
        "self": {"$ref": "#"},
        "loop": {"$ref": "#/$defs/Loop"},
    },
    "required": ["node", "absent", 7],
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "next": {"$ref": "#/$defs/Node"},
                "all": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
        },
        "Loop": {"$ref": "#/$defs/Loop"},
        "Wide": {"allOf": [{"$ref": "#/$defs/Wide"}, {"$ref": "#/$defs/Wide"}]},
    },
}


def wide(depth: int) -> dict[str, Any]:
    """Return a schema of 8 ** depth parts in a few lines of memory."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": dict.fromkeys("abcdefgh", schema)}
    return schema


def deep(depth: int) -> dict[str, Any]:
    """Return a schema of arrays in arrays."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


SCHEMAS: list[dict[str, Any]] = [
    {},
    {
        "type": "object",
        "properties": "none",
        "required": "all",
        "allOf": {},
        "anyOf": 3,
        "$defs": [],
    },
    {"type": ["object", 7, None], "properties": {"a": 3, "b": None, "c": [], "d": True, "e": "x"}},
    {
        "type": "object",
        "properties": {name: {"type": "string", "default": name} for name in NAMES},
        "required": NAMES,
    },
    {
        "type": "object",
        "properties": {
            name: {"description": text} for name, text in zip("abcdefg", ESCAPES, strict=True)
        },
    },
    {
        "type": "object",
        "properties": {
            "a": {"enum": ESCAPES},
            "b": {"const": ESCAPES[0]},
            "c": {"enum": [{}, [], 1.5]},
        },
    },
    {
        "type": "object",
        "properties": {
            "a": {"default": {"x": ["y" * 9999]}},
            "b": {"default": {"__class__": None}},
        },
    },
    {
        "type": "object",
        "properties": {"a": {"title": "import os", "type": "object", "properties": {"x y": {}}}},
    },
    {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(1000)}},
    {
        "type": "object",
        "properties": {
            "a": {"$ref": "file:///etc/passwd"},
            "b": {"$ref": "#/a/b/~"},
            "c": {"$ref": 4},
        },
    },
    {"properties": {"a": {"$ref": "#/$defs/Wide"}}, "$defs": RECURSIVE["$defs"]},
    {"type": "object", "properties": {"a": wide(4)}},
    {"type": "object", "properties": {"a": deep(60)}},
    RECURSIVE,
]
TOOLS = [
    *(Tool(name=name, description=name, input_schema={"type": "object"}) for name in NAMES),
    *(
        Tool(name=f"says_{n}", description=text, title=text, input_schema={})
        for n, text in enumerate(ESCAPES)
    ),
    *(
        Tool(name=f"takes_{n}", input_schema=schema, output_schema=schema)
        for n, schema in enumerate(SCHEMAS)
    ),
    Tool(name="long", description="word " * 200_000, input_schema={}),
]


async def list_tools(
    _: ServerRequestContext[Any], __: PaginatedRequestParams | None
) -> ListToolsResult:
    return ListToolsResult(tools=[as_sent(tool) for tool in TOOLS if "surrogate" not in repr(tool)])


def as_sent(tool: Tool) -> Tool:
    """Return `tool` as near to itself as the protocol lets it pass."""
    schemas = {"input_schema": tool.input_schema, "output_schema": tool.output_schema}
    typed = {
        key: {**schema, "type": "object"} for key, schema in schemas.items() if schema is not None
    }
    return tool.model_copy(update=typed)


async def call_tool(_: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=params.name)])


async def main() -> None:
    server: Server[Any] = Server("hostile", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
