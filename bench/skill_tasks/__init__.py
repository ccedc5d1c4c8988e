"""Sessions of agents on real servers, with right answers that are computed without them."""

from .files import FILES
from .held_out import HELD_OUT
from .history import HISTORY
from .mixed import MIXED
from .refused import REFUSED
from .shop import SHOP
from .task import Task
from .world import POLICY, World, make_world, missing_servers

TASKS: tuple[Task, ...] = (*SHOP, *HISTORY, *FILES, *MIXED, *REFUSED)

__all__ = ["HELD_OUT", "POLICY", "TASKS", "Task", "World", "make_world", "missing_servers"]
