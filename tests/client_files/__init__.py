"""Reading and changing the configurations of MCP clients."""
