"""When this process looks for garbage in cycles, which stops its event loop meanwhile.

CPython examines all objects each time that their number has grown by a quarter. In a server with
many upstreams that takes 50 to 140 ms of processor time, finds next to nothing, and anybody can
cause it. So the objects that survive such a collection are not examined by the next one, which then
takes as long as what is new. Those that become garbage later are collected when no session is used,
or at the latest when the number of objects has doubled.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import anyio

OLDEST_GENERATION = 2
INTERVAL_S = 10.0  # between two looks at the number of objects; counting them takes milliseconds
MIN_GROWTH = 20_000  # objects; some megabytes


async def collect_cycles(is_quiet: Callable[[], bool], interval_s: float = INTERVAL_S) -> None:
    """Decide when garbage in cycles is collected, until cancelled."""
    known = gc.get_freeze_count()
    gc.callbacks.append(keep_survivors)
    try:
        while True:
            await anyio.sleep(interval_s)
            growth = gc.get_freeze_count() - known
            if growth > max(known, MIN_GROWTH) or (growth > MIN_GROWTH and is_quiet()):
                gc.unfreeze()
                gc.collect()
                known = gc.get_freeze_count()
    finally:
        gc.callbacks.remove(keep_survivors)


def keep_survivors(phase: str, info: dict[str, Any]) -> None:
    """Examine no more what has survived a collection of the oldest generation."""
    if phase == "stop" and info["generation"] == OLDEST_GENERATION:
        gc.freeze()
