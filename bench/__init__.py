"""Benchmarks of code-execution servers: an MCP and HTTP client that imports no server."""
