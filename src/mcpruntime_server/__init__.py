"""An MCP server that is itself the runtime: it runs an agent's Python in sandboxes and journals every run."""

APP_NAME = "mcpruntime-server"
__version__ = "0.1.0"
