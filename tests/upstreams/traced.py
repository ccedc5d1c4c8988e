"""An MCP server that says which trace context its requests carry; over stdio, or HTTP in a test."""

from __future__ import annotations

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("traced", log_level="ERROR")


@server.tool()
async def read_context(secret: str, ctx: Context) -> dict[str, str]:
    """Return the context of this request."""
    headers = ctx.headers or {}
    meta = dict(ctx.request_context.meta or {})
    return {
        "meta": str(meta.get("traceparent", "")),
        "header": headers.get("traceparent", ""),
        "baggage": headers.get("baggage", "") + str(meta.get("baggage", "")),
    }


if __name__ == "__main__":
    server.run()
