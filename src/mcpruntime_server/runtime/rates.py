"""How often something may happen in a minute, for each principal or address.

A count recovers steadily: who is at a limit of 60 a minute may go on after a second. The counts are
in memory, and the least recently used ones are forgotten first.
"""

from __future__ import annotations

from math import ceil

from ..errors import RateLimited
from ..journal.principals import LOCAL_PRINCIPAL

MAX_COUNTS = 100_000
ALGORITHM = "gcra"


class Rate:
    """A number of times in a minute, for each key; 0 means no limit."""

    def __init__(self, per_minute: int) -> None:
        self._limiter = None
        if per_minute:
            from throttled import MemoryStore, RateLimiterRegistry, per_min  # not for stdio

            self._limiter = RateLimiterRegistry.get(ALGORITHM)(
                per_min(per_minute, burst=per_minute),
                MemoryStore(options={"MAX_SIZE": MAX_COUNTS}),
            )

    def count(self, key: str, times: int = 1) -> float:
        """Count so many times, and return the seconds to wait if that was too often, else 0."""
        if self._limiter is None:
            return 0.0
        result = self._limiter.limit(key, times)
        return result.state.retry_after if result.limited else 0.0

    def is_used_up(self, key: str) -> bool:
        """Return whether the next time would be too often."""
        return self._limiter is not None and self._limiter.peek(key).remaining < 1


class RunStarts:
    """How many runs a principal may start; the local user has no limit."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._rate: Rate | None = None

    def count(self, principal: str) -> None:
        """Count a run that a request starts; raises `RateLimited` if there are too many."""
        if principal == LOCAL_PRINCIPAL:
            return
        if self._rate is None:
            self._rate = Rate(self._per_minute)
        if wait_s := self._rate.count(principal):
            raise RateLimited(
                f"More than {self._per_minute} runs were started in a minute.",
                remedy=f"Try again in {ceil(wait_s)} s, or do more in one run.",
                retry_after_s=wait_s,
            )
