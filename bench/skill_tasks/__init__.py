"""The proof set for skills: what agents did once on real servers, and the right answers, known without them."""

from .task import Task
from .world import World, make_world, missing_servers

__all__ = ["Task", "World", "make_world", "missing_servers"]
