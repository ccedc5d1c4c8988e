"""Budgets for model requests, per principal, session, run and agent.

Budgets form a tree. Before a request is sent, its maximum cost is reserved at every level, or at
none if one level lacks it. After the request, the real cost replaces the reservation. So no limit
is exceeded, however many requests run concurrently.

Every attempt counts as one call, retries and repairs included. Time counts from the first request.
When the time is used up, requests in progress are interrupted. An interrupted request counts with
its whole reservation, because its cost is unknown.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio

from ...config import BudgetLimits
from ...errors import CallFailed
from ...protocol.payloads import JsonObject
from ..model_requests import ModelUsage

BUDGET_EXCEEDED = "budget_exceeded"
AMOUNT_LABELS = {
    "calls": "model requests",
    "tokens_in": "input tokens",
    "tokens_out": "output tokens",
    "usd": "USD",
}
USD_DIGITS = 12  # digits compared with a limit: sums of floats are slightly off
RAISE_BUDGET_REMEDY = "Send fewer requests, or raise the budget under [llm] in the settings."
MAX_LISTED_AGENTS = 200  # per level; the usage of older agents is only summed


@dataclass
class Reservation:
    """The amount that is reserved for one request."""

    budget: Budget
    amount: ModelUsage
    is_open: bool = True

    def settle(self, used: ModelUsage) -> None:
        """Release the reserved amount and count the real cost."""
        assert self.is_open, "a reservation is settled once"
        self.is_open = False
        for level in self.budget.levels():
            is_last = level.reserved.calls == self.amount.calls
            level.reserved = ModelUsage() if is_last else level.reserved - self.amount
            level.used += used


class Budget:
    """One level: its limits, the used amount and the reserved amount.

    `started_at` is a monotonic time.
    """

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
        self.depth = depth  # number of agents above this level, itself included
        self.used = used or ModelUsage()
        self.reserved = ModelUsage()
        self.agent_budgets: deque[Budget] = deque()  # budgets of the latest agents
        self.agents_started = 0
        self._limits = limits
        self._parent = parent
        self._started_at = started_at
        self._request_limiter = anyio.CapacityLimiter(limits.concurrency or math.inf)
        self._unlisted_usage = ModelUsage()  # of agents no longer in `agent_budgets`

    def levels(self) -> Iterator[Budget]:
        """Yield this level and those above it."""
        level: Budget | None = self
        while level is not None:
            yield level
            level = level._parent

    def add_agent_budget(self, limits: BudgetLimits) -> Budget:
        """Return a new level for an agent below this one.

        Raises `CallFailed` if a level forbids the depth.
        """
        depth = self.depth + 1
        for level in self.levels():
            level._check_depth(depth - level.depth)
        self.agents_started += 1
        number = self.agents_started
        name = f"{self.name}.{number}" if self.depth else f"agent {number}"
        budget = Budget(name, limits, self, depth)
        if len(self.agent_budgets) == MAX_LISTED_AGENTS:
            self._unlisted_usage += self.agent_budgets.popleft().used
        self.agent_budgets.append(budget)
        return budget

    def reserve(self, amount: ModelUsage) -> Reservation:
        """Reserve `amount` at every level.

        Raises `CallFailed`, and reserves nothing, if a level lacks it.
        """
        now = time.monotonic()
        for level in self.levels():
            level._check_limits(amount)
            if level._remaining_s(now) <= 0:
                raise level._time_exceeded()
        for level in self.levels():
            level.reserved += amount
            if level._started_at is None:
                level._started_at = now
        return Reservation(self, amount)

    def spend(self, used: ModelUsage) -> None:
        """Count a cost for which nothing was reserved."""
        for level in self.levels():
            level.used += used

    @property
    def agents_usage(self) -> ModelUsage:
        """The total usage of the agents that were started at this level."""
        return sum((budget.used for budget in self.agent_budgets), self._unlisted_usage)

    @contextmanager
    def time_limit(self) -> Iterator[None]:
        """Cancel the body and raise `CallFailed` when the time of a level is used up."""
        now = time.monotonic()
        shortest = min(self.levels(), key=lambda level: level._remaining_s(now))
        with anyio.move_on_after(shortest._remaining_s(now)) as scope:
            yield
        if scope.cancelled_caught:
            raise shortest._time_exceeded()

    @asynccontextmanager
    async def request_slot(self) -> AsyncIterator[None]:
        """Wait until every level allows one more concurrent request."""
        async with AsyncExitStack() as stack:
            for level in self.levels():
                await stack.enter_async_context(level._request_limiter)
            yield

    def usage_report(self) -> dict[str, JsonObject]:
        """Return the usage and the limits of each level by its name, as JSON data.

        The report of this level includes its agents.
        """
        return {
            level.name: level._agent_report() if level is self else level._usage_figures()
            for level in self.levels()
        }

    def _agent_report(self) -> JsonObject:
        report: JsonObject = dict(self._usage_figures())
        if self.agent_budgets:
            report["agents"] = [
                {"name": budget.name, **budget._agent_report()} for budget in self.agent_budgets
            ]
        return report

    def _usage_figures(self) -> dict[str, float]:
        limits = {
            f"max_{name}": limit
            for name, limit in self._limits.counted_limits().items()
            if limit is not None
        }
        used = {name: getattr(self.used, name) for name in AMOUNT_LABELS}
        return used | limits

    def _check_depth(self, depth: int) -> None:
        limit = self._limits.depth
        if limit is not None and depth > limit:
            raise CallFailed(
                BUDGET_EXCEEDED,
                f"The {self.name} budget allows agents {limit} levels deep, "
                f"and this one would be at level {depth}.",
                remedy="Do the work here, or raise `depth` under [llm.run] in the settings.",
                data={"level": self.name, "what": "depth", "limit": limit},
            )

    def _check_limits(self, requested: ModelUsage) -> None:
        taken = self.used + self.reserved
        for name, limit in self._limits.counted_limits().items():
            amount = getattr(requested, name)
            if limit is None or not amount:
                continue
            if round(getattr(taken, name) + amount, USD_DIGITS) > limit:
                used, reserved = getattr(self.used, name), getattr(self.reserved, name)
                raise CallFailed(
                    BUDGET_EXCEEDED,
                    f"The {self.name} budget is {limit:g} {AMOUNT_LABELS[name]}: "
                    f"{used:g} are used, "
                    f"{reserved:g} are reserved, and this request may need {amount:g}.",
                    remedy=RAISE_BUDGET_REMEDY,
                    data={"level": self.name, "what": name, "limit": limit, "used": used},
                )

    def _remaining_s(self, now: float) -> float:
        limit = self._limits.wall_s
        if limit is None:
            return math.inf
        return limit if self._started_at is None else limit - (now - self._started_at)

    def _time_exceeded(self) -> CallFailed:
        limit = self._limits.wall_s
        return CallFailed(
            BUDGET_EXCEEDED,
            f"The {self.name} budget is {limit:g} seconds from its first request, "
            "and they have passed.",
            remedy=RAISE_BUDGET_REMEDY,
            data={"level": self.name, "what": "wall_s", "limit": limit},
        )
