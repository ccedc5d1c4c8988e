"""The user's MCP servers: connections, the catalogue of tools, and the shims that make them importable."""
