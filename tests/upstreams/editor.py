"""An MCP server that replaces text in files, which only counts what it is asked for."""

from __future__ import annotations

from mcp.server import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("editor", log_level="ERROR")
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=True)


@server.tool(annotations=WRITES)
def replace_text(path: str, old_text: str, new_text: str) -> int:
    """Replace a text in a file; return how many characters are new."""
    return len(new_text) - len(old_text)


if __name__ == "__main__":
    server.run()
