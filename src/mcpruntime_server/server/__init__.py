"""The MCP surface: tools, resources and prompts, and the format of results."""
