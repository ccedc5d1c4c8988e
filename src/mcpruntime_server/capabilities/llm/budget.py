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

from ...config import BudgetLimits
from ...errors import CallFailed
from ..model_requests import ModelUsage

BUDGET_EXCEEDED = "budget_exceeded"
AMOUNT_LABELS = {
    "calls": "questions",
    "tokens_in": "tokens in",
    "tokens_out": "tokens out",
    "usd": "USD",
}
USD_DIGITS = 12  # of USD that matter: sums of floats are a little off
RAISE_BUDGET_REMEDY = "Ask less, or have it raised under [llm] in the settings."
MAX_LISTED_AGENTS = 200  # agents of one level that are told apart


@dataclass
class Reservation:
    """What was taken for a question that is being asked."""

    budget: Budget
    amount: ModelUsage
    is_open: bool = True

    def settle(self, used: ModelUsage) -> None:
        """Give back what was taken, and count what it has really cost."""
        assert self.is_open, "a reservation is settled once"
        self.is_open = False
        for level in self.budget.levels():
            left = level.reserved.calls - self.amount.calls
            level.reserved = subtract_usage(level.reserved, self.amount) if left else ModelUsage()
            level.used += used


class Budget:
    """One level: what was used, what is reserved, and the limits of both; `began` is on the monotonic clock."""

    def __init__(
        self,
        name: str,
        limits: BudgetLimits,
        parent: Budget | None = None,
        depth: int = 0,
        used: ModelUsage | None = None,
        started_at: float | None = None,
    ) -> None:
        self.name = name
        self.used = used or ModelUsage()
        self.reserved = ModelUsage()
        self._limits = limits
        self._parent = parent
        self._depth = depth
        self._started_at = started_at
        self._request_limiter = anyio.CapacityLimiter(limits.concurrency or math.inf)
        self.agent_budgets: deque[Budget] = deque()  # that were begun here, the last ones
        self._unlisted_usage = (
            ModelUsage()
        )  # what agents have used that are not told apart any more
        self._agent_count = 0

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

    def add_agent_budget(self, limits: BudgetLimits) -> Budget:
        """Return the level of an agent below this one; raises `CallFailed` beyond the depth that any level allows."""
        depth = self._depth + 1
        for level in self.levels():
            below = depth - level._depth
            if level._limits.depth is not None and below > level._limits.depth:
                raise CallFailed(
                    BUDGET_EXCEEDED,
                    f"Agents of {level.name} may begin agents {level._limits.depth} levels deep, and this is {below}.",
                    remedy="Do it here, or have it raised as `depth` under [llm.run] in the settings.",
                    data={"level": level.name, "what": "depth", "limit": level._limits.depth},
                )
        self._agent_count += 1
        name = f"{self.name}.{self._agent_count}" if self._depth else f"agent {self._agent_count}"
        made = Budget(name, limits, self, depth)
        if len(self.agent_budgets) == MAX_LISTED_AGENTS:
            self._unlisted_usage += self.agent_budgets.popleft().used
        self.agent_budgets.append(made)
        return made

    def reserve(self, amount: ModelUsage) -> Reservation:
        """Take `amount` from every level; raises `CallFailed` if one has not so much left, and takes nothing."""
        now = time.monotonic()
        for level in self.levels():
            level._check_limits(amount)
            if level._remaining_s(now) <= 0:
                raise level._time_exceeded()
        for level in self.levels():
            level.reserved += amount
            level._started_at = now if level._started_at is None else level._started_at
        return Reservation(self, amount)

    def spend(self, used: ModelUsage) -> None:
        """Count what was paid without having been reserved."""
        for level in self.levels():
            level.used += used

    @property
    def agents_started(self) -> int:
        """How many agents were begun here."""
        return self._agent_count

    @property
    def agents_usage(self) -> ModelUsage:
        """What the agents that were begun here have used."""
        return sum((each.used for each in self.agent_budgets), self._unlisted_usage)

    @contextmanager
    def time_limit(self) -> Iterator[None]:
        """Cut off what is done in here when the time of a level is over; raises `CallFailed` then."""
        now = time.monotonic()
        first = min(self.levels(), key=lambda level: level._remaining_s(now))
        with anyio.move_on_after(first._remaining_s(now)) as limit:
            yield
        if limit.cancelled_caught:
            raise first._time_exceeded()

    def _check_limits(self, requested: ModelUsage) -> None:
        taken = self.used + self.reserved
        for what, limit in self._limits.counted_limits().items():
            asked = getattr(requested, what)
            if (
                limit is not None
                and asked
                and round(getattr(taken, what) + asked, USD_DIGITS) > limit
            ):
                raise CallFailed(
                    BUDGET_EXCEEDED,
                    f"The budget of {self.name} is {limit:g} {AMOUNT_LABELS[what]}; {getattr(self.used, what):g} are used, "
                    f"{getattr(self.reserved, what):g} reserved, and this asks for up to {asked:g}.",
                    remedy=RAISE_BUDGET_REMEDY,
                    data={
                        "level": self.name,
                        "what": what,
                        "limit": limit,
                        "used": getattr(self.used, what),
                    },
                )

    def _remaining_s(self, now: float) -> float:
        limit = self._limits.wall_s
        return (
            math.inf
            if limit is None
            else limit - (now - (now if self._started_at is None else self._started_at))
        )

    def _time_exceeded(self) -> CallFailed:
        limit = self._limits.wall_s
        return CallFailed(
            BUDGET_EXCEEDED,
            f"The budget of {self.name} is {limit:g} seconds from its first question on.",
            remedy=RAISE_BUDGET_REMEDY,
            data={"level": self.name, "what": "wall_s", "limit": limit},
        )

    @asynccontextmanager
    async def request_slot(self) -> AsyncIterator[None]:
        """Wait until every level lets one more question be under way."""
        async with AsyncExitStack() as stack:
            for level in self.levels():
                await stack.enter_async_context(level._request_limiter)
            yield

    def usage_report(self) -> dict[str, dict[str, Any]]:
        """Return what each level has used, and its limits; of this one, what each of its agents has used."""
        agents = (
            {"agents": [each._agent_report() for each in self.agent_budgets]}
            if self.agent_budgets
            else {}
        )
        return {
            level.name: {**level._usage_figures(), **(agents if level is self else {})}
            for level in self.levels()
        }

    def _usage_figures(self) -> dict[str, float]:
        limits = {
            f"max_{what}": limit
            for what, limit in self._limits.counted_limits().items()
            if limit is not None
        }
        return {**{what: getattr(self.used, what) for what in AMOUNT_LABELS}, **limits}

    def _agent_report(self) -> dict[str, Any]:
        agents = (
            {"agents": [each._agent_report() for each in self.agent_budgets]}
            if self.agent_budgets
            else {}
        )
        return {"name": self.name, **self._usage_figures(), **agents}


def subtract_usage(one: ModelUsage, other: ModelUsage) -> ModelUsage:
    """Return the difference."""
    return ModelUsage(
        one.calls - other.calls,
        one.tokens_in - other.tokens_in,
        one.tokens_out - other.tokens_out,
        max(one.usd - other.usd, 0.0),
    )
