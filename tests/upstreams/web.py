"""An MCP server with tools that fetch, one that only sounds like it, and 43 others."""

from __future__ import annotations

from mcp.server import MCPServer

server = MCPServer("web", log_level="ERROR")


@server.tool()
def fetch(url: str, headers: dict[str, str] | None = None) -> str:
    """Return the page at an address. It is cut after 5,000 characters."""
    return f"the page at {url}"


@server.tool()
def browse_page(url: str) -> str:
    """Open a page."""
    return url


@server.tool()
def prefetched(name: str) -> str:
    """Return what is at hand."""
    return name


for number in range(43):
    server.add_tool(
        lambda query, limit=10: query,
        name=f"list_records_of_kind_{number}",
        description=f"List the records of kind {number}. {'All fields are included. ' * 20}",
    )

if __name__ == "__main__":
    server.run()
