"""The smallest MCP server of the SDK: the baseline, and the upstream that both sides call."""

from __future__ import annotations

import sys

import anyio
import uvicorn
from mcp.server import MCPServer
from mcp.types import ToolAnnotations
from pydantic import BaseModel

server = MCPServer("bare")
READ_ONLY = ToolAnnotations(read_only_hint=True)
IDEMPOTENT = ToolAnnotations(idempotent_hint=True)


class NoopResult(BaseModel):
    """A typed result."""

    n: int


@server.tool(annotations=READ_ONLY)
async def noop(n: int = 0) -> NoopResult:
    """Do nothing."""
    return NoopResult(n=n)


@server.tool(annotations=IDEMPOTENT)
async def again(n: int) -> NoopResult:
    """Do nothing, with the hint that the tool may be called again."""
    return NoopResult(n=n)


@server.tool()
async def unsaid(n: int) -> NoopResult:
    """Do nothing, without the hint that the tool only reads."""
    return NoopResult(n=n)


@server.tool(annotations=READ_ONLY)
async def nap(n: int, ms: int) -> NoopResult:
    """Do nothing for `ms` milliseconds."""
    await anyio.sleep(ms / 1e3)
    return NoopResult(n=n)


if __name__ == "__main__":
    if sys.argv[1:]:  # a port: over HTTP, without the log of requests
        uvicorn.run(
            server.streamable_http_app(), port=int(sys.argv[1]), log_level="warning", lifespan="on"
        )
    else:
        server.run()
