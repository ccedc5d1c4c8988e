"""Builds what is published beside the wheel: the bundle for MCP clients, a list of licences."""
