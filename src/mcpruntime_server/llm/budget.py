"""What questions to models may cost, for a principal, a session, a run and whoever it has had begin.

Budgets are a tree. What a question may cost at most is taken from all levels before it is asked, or from none, and set
right when it is answered; so no limit is passed, however many ask at once. Each time that a question is put before a
model counts as one question, retries and repairs too. Time is counted from the first question on; when it is over,
what is under way is cut off. What was cut off counts with all that was reserved: nobody knows what it has cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio

from ..config import Limits
from ..errors import CallFailed
from .model import Usage

EXCEEDED = "budget_exceeded"
NAMES = {"calls": "questions", "tokens_in": "tokens in", "tokens_out": "tokens out", "usd": "USD"}
DIGITS = 12  # of USD that matter: sums of floats are a little off
REMEDY = "Ask less, or have it raised under [llm] in the settings."


@dataclass
class Reservation:
    """What was taken for a question that is being asked."""

    budget: Budget
    amount: Usage
    is_open: bool = True

    def settle(self, used: Usage) -> None:
        """Give back what was taken, and count what it has really cost."""
        assert self.is_open, "a reservation is settled once"
        self.is_open = False
        for level in self.budget.levels():
            left = level.reserved.calls - self.amount.calls
            level.reserved = minus(level.reserved, self.amount) if left else Usage()
            level.used += used


class Budget:
    """One level: what was used, what is reserved, and the limits of both; `began` is on the monotonic clock."""

    def __init__(
        self,
        name: str,
        limits: Limits,
        parent: Budget | None = None,
        depth: int = 0,
        used: Usage | None = None,
        began: float | None = None,
    ) -> None:
        self.name = name
        self.used = used or Usage()
        self.reserved = Usage()
        self._limits = limits
        self._parent = parent
        self._depth = depth
        self._began = began
        self._slots = anyio.CapacityLimiter(limits.concurrency or math.inf)

    def levels(self) -> Iterator[Budget]:
        """Yield this level and those above it."""
        level: Budget | None = self
        while level is not None:
            yield level
            level = level._parent

    def child(self, name: str, limits: Limits) -> Budget:
        """Return a level below this one; raises `CallFailed` beyond the depth that any level allows."""
        depth = self._depth + 1
        for level in self.levels():
            if level._limits.depth is not None and depth > level._limits.depth:
                raise CallFailed(
                    EXCEEDED, f"{level.name} may go {level._limits.depth} levels deep, and this is {depth}."
                )
        return Budget(name, limits, self, depth)

    def reserve(self, amount: Usage) -> Reservation:
        """Take `amount` from every level; raises `CallFailed` if one has not so much left, and takes nothing."""
        now = time.monotonic()
        for level in self.levels():
            level._check(amount)
            if level._left_s(now) <= 0:
                raise level._late()
        for level in self.levels():
            level.reserved += amount
            level._began = now if level._began is None else level._began
        return Reservation(self, amount)

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Cut off what is done in here when the time of a level is over; raises `CallFailed` then."""
        now = time.monotonic()
        first = min(self.levels(), key=lambda level: level._left_s(now))
        with anyio.move_on_after(first._left_s(now)) as limit:
            yield
        if limit.cancelled_caught:
            raise first._late()

    def _check(self, amount: Usage) -> None:
        taken = self.used + self.reserved
        for what, limit in self._limits.amounts().items():
            asked = getattr(amount, what)
            if limit is not None and asked and round(getattr(taken, what) + asked, DIGITS) > limit:
                raise CallFailed(
                    EXCEEDED,
                    f"The budget of {self.name} is {limit:g} {NAMES[what]}; {getattr(self.used, what):g} are used, "
                    f"{getattr(self.reserved, what):g} reserved, and this asks for up to {asked:g}.",
                    remedy=REMEDY,
                    data={"level": self.name, "what": what, "limit": limit, "used": getattr(self.used, what)},
                )

    def _left_s(self, now: float) -> float:
        limit = self._limits.wall_s
        return math.inf if limit is None else limit - (now - (now if self._began is None else self._began))

    def _late(self) -> CallFailed:
        limit = self._limits.wall_s
        return CallFailed(
            EXCEEDED,
            f"The budget of {self.name} is {limit:g} seconds from its first question on.",
            remedy=REMEDY,
            data={"level": self.name, "what": "wall_s", "limit": limit},
        )

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait until every level lets one more question be under way."""
        async with AsyncExitStack() as stack:
            for level in self.levels():
                await stack.enter_async_context(level._slots)
            yield

    def told(self) -> dict[str, dict[str, float | None]]:
        """Return what each level has used, and its limits."""
        return {
            level.name: {
                **{what: getattr(level.used, what) for what in NAMES},
                **{f"max_{what}": limit for what, limit in level._limits.amounts().items() if limit is not None},
            }
            for level in self.levels()
        }


def minus(one: Usage, other: Usage) -> Usage:
    """Return the difference."""
    return Usage(
        one.calls - other.calls,
        one.tokens_in - other.tokens_in,
        one.tokens_out - other.tokens_out,
        max(one.usd - other.usd, 0.0),
    )
