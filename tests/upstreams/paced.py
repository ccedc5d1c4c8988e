"""An MCP server whose answers take as long as they are told to, and are never the same twice."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import anyio
from mcp.server import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("paced", log_level="ERROR")
READS = ToolAnnotations(read_only_hint=True)
ticks = count(1)


@server.tool(annotations=READS)
async def nap(name: str, ms: int) -> str:
    """Answer after `ms` milliseconds, with the name and a number that no other answer has."""
    await anyio.sleep(ms / 1e3)
    return f"{name}-{next(ticks)}"


@server.tool(annotations=READS)
async def refuse(name: str) -> str:
    """Fail, with a number that no other answer has."""
    raise ValueError(f"{name} is refused, number {next(ticks)}")


@server.tool()
def note(text: str) -> int:
    """Append a line to the file named by the server's argument; return the number of answers."""
    with Path(sys.argv[1]).open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")
    return next(ticks)


if __name__ == "__main__":
    server.run()
