"""An MCP server that runs the Python code of agents in sandboxes and journals every run."""

APP_NAME = "mcpruntime-server"
__version__ = "0.1.0"
