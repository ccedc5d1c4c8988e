"""When this process looks for garbage in cycles, which stops its event loop meanwhile.

CPython looks through young objects often, which takes few milliseconds, and through all objects
each time that their number has grown by a quarter. In a server with many upstreams that takes 50 to
400 ms of processor time, finds next to nothing, and anybody can cause it. So old objects, those
that have survived two looks, are examined only when no session is used. While one is, garbage in
cycles may accumulate among them, up to a bound. What is freed without cycles, such as the data of
messages, does not count.

What is imported at the start is frozen (`cli/imports`), and never examined.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import anyio

OLDEST_GENERATION = 2
NEVER = 2**31 - 1  # so many collections of younger objects have to come first
INTERVAL_S = 10.0  # between two looks at the number of objects; counting them takes milliseconds
MIN_GROWTH = 20_000  # old objects; some megabytes
MAX_GROWTH = 200_000  # some 40 MB: then it is time, whoever works


async def collect_cycles(is_quiet: Callable[[], bool], interval_s: float = INTERVAL_S) -> None:
    """Decide when garbage in cycles is collected among old objects, until cancelled."""
    thresholds = gc.get_threshold()
    gc.set_threshold(thresholds[0], thresholds[1], NEVER)
    known = count_old_objects()
    try:
        while True:
            await anyio.sleep(interval_s)
            if count_old_objects() - known > (MIN_GROWTH if is_quiet() else MAX_GROWTH):
                gc.collect()
                known = count_old_objects()
    finally:
        gc.set_threshold(*thresholds)


def count_old_objects() -> int:
    """Return how many objects a collection would examine, but for young ones."""
    return len(gc.get_objects(OLDEST_GENERATION))
