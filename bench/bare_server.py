"""The smallest MCP server of the SDK: the baseline, and the upstream that both sides call.

With `--port N` it serves HTTP, otherwise stdio. With `--delay S` it reads nothing for that time.
"""

from __future__ import annotations

import argparse
import time

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    time.sleep(options.delay)
    if options.port:  # without the log of requests
        uvicorn.run(
            server.streamable_http_app(), port=options.port, log_level="warning", lifespan="on"
        )
    else:
        server.run()
