"""The network service: HTTP, who may use it, and one MCP server for each of them."""
