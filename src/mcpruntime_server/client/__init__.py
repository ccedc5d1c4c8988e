"""The Python API: a server in this process, or a connection to one elsewhere, and agents.

The package `mcpruntime_server` exports the names that programs use.
Rule: everything goes through MCP. A program can do what any client can, and nothing else.
"""
