"""`mcpruntime-server demo`: the main job on real input, step by step.

Rule: the demo is a client. What it shows, it has been told by the server or by the journal; nothing is made up.
"""

from .scenario import run_demo

__all__ = ["run_demo"]
