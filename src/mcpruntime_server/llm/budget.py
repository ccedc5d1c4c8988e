"""What questions to models may cost, for a principal, a session, a run and whoever it has had begin.

Budgets are a tree. What a question may cost at most is taken from all levels before it is asked, or from none, and set
right when it is answered; so no limit is passed, however many ask at once. Each time that a question is put before a
model counts as one question, retries and repairs too. Time is counted from the first question on; when it is over,
what is under way is cut off. What was cut off counts with all that was reserved: nobody knows what it has cost.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from ..config import Limits
from ..errors import CallFailed
from .model import Usage

EXCEEDED = "budget_exceeded"
NAMES = {"calls": "questions", "tokens_in": "tokens in", "tokens_out": "tokens out", "usd": "USD"}
DIGITS = 12  # of USD that matter: sums of floats are a little off
REMEDY = "Ask less, or have it raised under [llm] in the settings."
KEPT = 200  # agents of one level that are told apart


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
        self.agents: deque[Budget] = deque()  # that were begun here, the last ones
        self._forgotten = Usage()  # what agents have used that are not told apart any more
        self._count = 0

    def levels(self) -> Iterator[Budget]:
        """Yield this level and those above it."""
        level: Budget | None = self
        while level is not None:
            yield level
            level = level._parent

    @property
    def depth(self) -> int:
        """How many agents are above it, itself included; 0 for a run that nobody's agent makes."""
        return self._depth

    def child(self, limits: Limits) -> Budget:
        """Return the level of an agent below this one; raises `CallFailed` beyond the depth that any level allows."""
        depth = self._depth + 1
        for level in self.levels():
            below = depth - level._depth
            if level._limits.depth is not None and below > level._limits.depth:
                raise CallFailed(
                    EXCEEDED,
                    f"Agents of {level.name} may begin agents {level._limits.depth} levels deep, and this is {below}.",
                    remedy="Do it here, or have it raised as `depth` under [llm.run] in the settings.",
                    data={"level": level.name, "what": "depth", "limit": level._limits.depth},
                )
        self._count += 1
        name = f"{self.name}.{self._count}" if self._depth else f"agent {self._count}"
        made = Budget(name, limits, self, depth)
        if len(self.agents) == KEPT:
            self._forgotten += self.agents.popleft().used
        self.agents.append(made)
        return made

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

    def spend(self, used: Usage) -> None:
        """Count what was paid without having been reserved."""
        for level in self.levels():
            level.used += used

    @property
    def begun(self) -> int:
        """How many agents were begun here."""
        return self._count

    @property
    def of_agents(self) -> Usage:
        """What the agents that were begun here have used."""
        return sum((each.used for each in self.agents), self._forgotten)

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

    def told(self) -> dict[str, dict[str, Any]]:
        """Return what each level has used, and its limits; of this one, what each of its agents has used."""
        agents = {"agents": [each._tree() for each in self.agents]} if self.agents else {}
        return {level.name: {**level._figures(), **(agents if level is self else {})} for level in self.levels()}

    def _figures(self) -> dict[str, float]:
        limits = {f"max_{what}": limit for what, limit in self._limits.amounts().items() if limit is not None}
        return {**{what: getattr(self.used, what) for what in NAMES}, **limits}

    def _tree(self) -> dict[str, Any]:
        agents = {"agents": [each._tree() for each in self.agents]} if self.agents else {}
        return {"name": self.name, **self._figures(), **agents}


def minus(one: Usage, other: Usage) -> Usage:
    """Return the difference."""
    return Usage(
        one.calls - other.calls,
        one.tokens_in - other.tokens_in,
        one.tokens_out - other.tokens_out,
        max(one.usd - other.usd, 0.0),
    )
