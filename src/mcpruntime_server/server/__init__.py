"""What clients see: the MCP tools, and how results are told."""
