"""`mcpruntime-server demo`: the main features on real servers, step by step.

Rule: the demo is an MCP client. Everything it shows comes from the server's answers or from the
journal.
"""

from .scenario import run_demo

__all__ = ["run_demo"]
