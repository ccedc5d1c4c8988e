"""An MCP server of the current protocol revision; its tools answer, fail, hang, crash, change."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel

server = MCPServer("lively", log_level="ERROR")
gate = anyio.Event()
here: list[None] = []


class Bug(BaseModel):
    key: str
    tags: list[str] = []
    parent: Bug | None = None


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def echo(text: str, times: int = 1) -> str:
    """Say `text`. As often as asked for."""
    return text * times


@server.tool(annotations=ToolAnnotations(idempotent_hint=True))
def bug(key: str) -> Bug:
    """Return a bug by its key."""
    return Bug(key=key, tags=["a"], parent=Bug(key="P-1"))


@server.tool()
def numbers(count: int) -> list[int]:
    """Return the first numbers."""
    return list(range(count))


@server.tool(structured_output=False)
def as_json(text: str) -> str:
    """Return JSON as text."""
    return text


@server.tool(structured_output=False)
def blocks(texts: list[str]) -> list[TextContent]:
    """Return one text block each."""
    return [TextContent(type="text", text=text) for text in texts]


@server.tool(structured_output=False)
def picture() -> Image:
    """Return an image."""
    return Image(data=b"\x89PNG", format="png")


@server.tool()
def fail(reason: str) -> str:
    """Fail."""
    raise ValueError(reason)


@server.tool()
def pid() -> int:
    """Return the process id."""
    return os.getpid()


@server.tool(structured_output=False)
def environment() -> str:
    """Return the environment, and say it on stderr too."""
    print(json.dumps(dict(os.environ)), file=sys.stderr, flush=True)
    return json.dumps(dict(os.environ))


@server.tool()
def crash() -> str:
    """End the process in the middle of the call."""
    os._exit(3)


@server.tool()
async def hang() -> str:
    """Never answer."""
    await anyio.sleep_forever()
    return ""


@server.tool()
async def meet(number: int) -> str:
    """Answer once `number` calls are here at the same time."""
    here.append(None)
    if len(here) >= number:
        gate.set()
    await gate.wait()
    return "met"


@server.tool()
async def crowd() -> int:
    """Return how many calls of this tool are here at the same time."""
    here.append(None)
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    size = len(here)
    here.pop()
    return size


@server.tool(structured_output=False)
def lies() -> CallToolResult:
    """Promise a number and answer with something else."""
    return CallToolResult(content=[], structured_content={"number": "seven"})


@server.tool()
async def grow(ctx: Context[Any]) -> str:
    """Add a tool and say so."""
    server.add_tool(lambda: "grown", name="grown", description="New here.")
    await ctx.notify_tools_changed()
    return "ok"


for tool in server._tool_manager.list_tools():
    if tool.name == "lies":
        schema = {
            "type": "object",
            "properties": {"number": {"type": "integer"}},
            "required": ["number"],
        }
        tool.__dict__["output_schema"] = schema

if __name__ == "__main__":
    if "--port" in sys.argv:
        server.run("streamable-http", port=int(sys.argv[sys.argv.index("--port") + 1]))
    else:
        server.run()
