"""When this process looks for garbage in cycles, which stops its event loop meanwhile.

CPython looks through young objects often, which takes few milliseconds, and through all objects
each time that their number has grown by a quarter. In a server with many upstreams that takes 50 to
400 ms of processor time, finds next to nothing, and anybody can cause it. So old objects, those
that have survived two looks, are examined only when no session is used. While one is, garbage in
cycles may accumulate among them, up to a bound. What is freed without cycles, such as the data of
messages, does not count.

To count the old objects takes up to 30 ms. So they are counted only when there may be too many: a
collection of young objects makes a known number of them old at most.

What is imported at the start is frozen (`cli/imports`), and never examined.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import anyio

OLDEST_GENERATION = 2
NEVER = 2**31 - 1  # so many collections of younger objects have to come first
INTERVAL_S = 10.0  # between two looks
MIN_GROWTH = 20_000  # old objects; some megabytes
MAX_GROWTH = 200_000  # some 40 MB; past that they are examined while sessions are used, too


async def collect_cycles(is_quiet: Callable[[], bool], interval_s: float = INTERVAL_S) -> None:
    """Decide when garbage in cycles is collected among old objects, until cancelled."""
    thresholds = gc.get_threshold()
    gc.set_threshold(thresholds[0], thresholds[1], NEVER)
    largest_step = (thresholds[0] + 1) * (thresholds[1] + 1)  # objects that become old at once
    known, next_count = count_old_objects(), MAX_GROWTH
    try:
        while True:
            await anyio.sleep(interval_s)
            largest_growth = gc.get_count()[OLDEST_GENERATION] * largest_step
            is_time = is_quiet() and largest_growth > MIN_GROWTH
            if not is_time and largest_growth > next_count:
                growth = count_old_objects() - known
                is_time = growth > MAX_GROWTH
                next_count = largest_growth + MAX_GROWTH - growth
            if is_time:
                gc.collect()
                known, next_count = count_old_objects(), MAX_GROWTH
    finally:
        gc.set_threshold(*thresholds)


def count_old_objects() -> int:
    """Return how many objects a collection would examine, but for young ones."""
    return len(gc.get_objects(OLDEST_GENERATION))
