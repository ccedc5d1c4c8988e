"""The least MCP server that the SDK makes: what others are measured against, and the upstream that both sides call."""

from __future__ import annotations

import anyio
from mcp.server import MCPServer
from mcp.types import ToolAnnotations
from pydantic import BaseModel

server = MCPServer("bare")
READS = ToolAnnotations(read_only_hint=True)


class Answer(BaseModel):
    """A typed result, as tools of our day have it."""

    n: int


@server.tool(annotations=READS)
async def noop(n: int = 0) -> Answer:
    """Do nothing."""
    return Answer(n=n)


@server.tool()
async def unsaid(n: int) -> Answer:
    """Do nothing, without telling anybody that it changes nothing."""
    return Answer(n=n)


@server.tool(annotations=READS)
async def nap(n: int, ms: int) -> Answer:
    """Do nothing for `ms` milliseconds."""
    await anyio.sleep(ms / 1e3)
    return Answer(n=n)


if __name__ == "__main__":
    server.run()
