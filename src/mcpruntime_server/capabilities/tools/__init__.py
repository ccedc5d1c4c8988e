"""The user's MCP servers: connections, the catalogue of tools, and their importable shims."""
