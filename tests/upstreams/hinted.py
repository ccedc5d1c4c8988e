"""An MCP server whose tools say of themselves all that a tool can say, one combination each."""

from __future__ import annotations

from mcp.server import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("hinted", log_level="ERROR")

SAYS: dict[str, ToolAnnotations | None] = {
    "nothing": None,
    "no_hints": ToolAnnotations(title="Nothing"),
    "destroys": ToolAnnotations(destructive_hint=True),
    "destroys_again": ToolAnnotations(
        destructive_hint=True, idempotent_hint=True, read_only_hint=False
    ),
    "adds": ToolAnnotations(destructive_hint=False, read_only_hint=False),
    "reads_and_destroys": ToolAnnotations(destructive_hint=True, read_only_hint=True),
    "open": ToolAnnotations(open_world_hint=True),
    "closed": ToolAnnotations(open_world_hint=False, destructive_hint=True),
}


def act() -> str:
    """Do something."""
    return "done"


for name, said in SAYS.items():
    server.add_tool(act, name=name, annotations=said)

if __name__ == "__main__":
    server.run()
