"""An MCP server with resources: `shelves.py NAME`.

All have `note://shared`, and each its own `note://NAME`.
"""

from __future__ import annotations

import os
import sys

from mcp.server import MCPServer

NAME = sys.argv[1]
server = MCPServer(NAME)


@server.resource("note://shared")
def shared() -> str:
    return f"of all, told by {NAME}"


@server.resource(f"note://{NAME}")
def own() -> str:
    return f"of {NAME}: ä\n{os.environ.get('SHELF_TOKEN', 'no token')}"


@server.resource("pack://bytes")
def packed() -> bytes:
    return bytes(range(256))


@server.resource("page://{number}/of/{book}")
def page(number: str, book: str) -> str:
    return f"page {number} of {book}"


if __name__ == "__main__":
    server.run()
