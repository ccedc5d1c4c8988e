"""An MCP server that runs the Python code of agents in sandboxes and journals every run.

Programs use it through the names in `__all__`, which are imported at their first use:

    async with embed_runtime() as runtime:
        outcome = await runtime.session("sums").run("sum(range(10))")
        print(outcome.value)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.connecting import Approval, connect_runtime, embed_runtime
    from .client.outcomes import RunOutcome
    from .client.reference_agent import create_agent
    from .client.runtime_client import RuntimeClient, RuntimeSession
    from .client.task_events import ProgramFinished, ProgramStarted, TaskEvent, TaskFinished
    from .config import Config, load_config
    from .errors import McpRuntimeError

__all__ = [
    "APP_NAME",
    "Approval",
    "Config",
    "McpRuntimeError",
    "ProgramFinished",
    "ProgramStarted",
    "RunOutcome",
    "RuntimeClient",
    "RuntimeSession",
    "TaskEvent",
    "TaskFinished",
    "__version__",
    "connect_runtime",
    "create_agent",
    "embed_runtime",
    "load_config",
]

APP_NAME = "mcpruntime-server"
__version__ = "0.1.0"

EXPORTS = {  # by name, the module that defines it; the command line must start quickly
    "Approval": "client.connecting",
    "Config": "config",
    "McpRuntimeError": "errors",
    "ProgramFinished": "client.task_events",
    "ProgramStarted": "client.task_events",
    "RunOutcome": "client.outcomes",
    "RuntimeClient": "client.runtime_client",
    "RuntimeSession": "client.runtime_client",
    "TaskEvent": "client.task_events",
    "TaskFinished": "client.task_events",
    "connect_runtime": "client.connecting",
    "create_agent": "client.reference_agent",
    "embed_runtime": "client.connecting",
    "load_config": "config",
}


def __getattr__(name: str) -> Any:
    """Import an exported name at its first use."""
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{EXPORTS[name]}", __name__), name)
