"""`mcpruntime-server demo`: the main features on real servers, in short acts.

Rule: the demo is an MCP client. Everything it shows comes from the server's answers or from the
journal. This module is imported with the command, so it imports nothing that is slow to load.
"""

ACT_NAMES = ("program", "undo", "ask", "skill", "replay")
