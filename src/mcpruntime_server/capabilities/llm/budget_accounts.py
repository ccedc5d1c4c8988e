"""Find the budget that a run or an agent pays from, and the answers that it can reuse.

Rule: the journal records the usage of sessions and runs. So neither a restart of the server nor an
eviction from memory renews a budget. The budget of a principal lasts as long as the server process.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import anyio

from ...config import BudgetLimits, LlmSettings
from ...errors import JournalFailed, NotFound
from ...journal.call_scope import CallScope
from ...journal.events import ModelUsageRecorded
from ...journal.store import Journal
from ..model_requests import ModelUsage
from .answer_cache import AnswerCache
from .budget import Budget

MAX_IDLE_SESSIONS = 200  # sessions whose budgets and answers stay in memory
MAX_RUN_BUDGETS = 1_000  # kept in memory per session

logger = logging.getLogger(__name__)


@dataclass
class JournaledUsage:
    """What a run used according to the journal, and the monotonic time of its first request."""

    used: ModelUsage
    started_at: float


@dataclass
class SessionAccount:
    """The budget of a session, those of its runs, and its answers."""

    budget: Budget
    journaled: dict[str, JournaledUsage]  # by run, as it was when the account was loaded
    run_budgets: OrderedDict[str, Budget] = field(default_factory=OrderedDict)
    answer_cache: AnswerCache = field(default_factory=AnswerCache)
    active_requests: int = 0


@dataclass(frozen=True)
class BudgetAccount:
    """The budget and the answers of a run or an agent.

    `journal`, if there is one, records the usage for the run.
    """

    budget: Budget
    answer_cache: AnswerCache = field(default_factory=AnswerCache)
    journal: Journal | None = None
    session_id: str = ""
    run_id: str = ""

    def for_agent(self, limits: BudgetLimits) -> BudgetAccount:
        """Return the account of an agent below this one.

        Raises `CallFailed` if its depth is not allowed.
        """
        budget = self.budget.add_agent_budget(limits)
        return BudgetAccount(budget, AnswerCache(), self.journal, self.session_id, self.run_id)

    def record_usage(self, used: ModelUsage, duration_ms: float) -> None:
        """Write to the journal what one attempt cost."""
        if self.journal is None:
            return
        event = ModelUsageRecorded(
            used.calls, used.tokens_in, used.tokens_out, used.usd, round(duration_ms, 3)
        )
        try:
            self.journal.append(self.session_id, event, self.run_id)
        except JournalFailed as exc:
            logger.error(
                "the cost of a model request of run %s was not journaled: %s", self.run_id, exc
            )


class AccountRegistry:
    """The accounts of all sessions and of the agents at work."""

    def __init__(self, settings: LlmSettings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._principal_budgets: dict[str, Budget] = {}
        self._session_accounts: OrderedDict[str, SessionAccount] = OrderedDict()
        self._agent_accounts: dict[str, BudgetAccount] = {}  # by the sessions of the agents
        self._open_lock = anyio.Lock()

    @asynccontextmanager
    async def open_account(self, caller: CallScope) -> AsyncIterator[BudgetAccount]:
        """Yield the account that a run pays from, and keep it in memory until the context ends."""
        if caller.session_id in self._agent_accounts:
            yield self._agent_accounts[caller.session_id]
            return
        async with self._open_lock:
            session = self._session_accounts.get(caller.session_id)
            if session is None:
                session = await self._load_account(caller.session_id)
            session.active_requests += 1
        self._session_accounts.move_to_end(caller.session_id)
        budget = self._run_budget(session, caller.run_id)
        try:
            yield BudgetAccount(
                budget, session.answer_cache, self._journal, caller.session_id, caller.run_id
            )
        finally:
            session.active_requests -= 1

    @contextmanager
    def charge_session(self, session_id: str, account: BudgetAccount) -> Iterator[None]:
        """Charge all requests in the session of an agent to the agent's account."""
        self._agent_accounts[session_id] = account
        try:
            yield
        finally:
            del self._agent_accounts[session_id]

    def find_run_budget(self, run_id: str) -> Budget | None:
        """Return the budget of a run, if it sent a request and is still in memory."""
        for session in self._session_accounts.values():
            if run_id in session.run_budgets:
                return session.run_budgets[run_id]
        return None

    async def find_owner_budget(self, session_id: str) -> Budget:
        """Return the budget of the principal that a session belongs to."""
        principal = await self._find_principal(session_id)
        if principal not in self._principal_budgets:
            self._principal_budgets[principal] = Budget("principal", self._settings.principal)
        return self._principal_budgets[principal]

    def _run_budget(self, session: SessionAccount, run_id: str) -> Budget:
        budget = session.run_budgets.get(run_id)
        if budget is not None:
            return budget
        past = session.journaled.get(run_id)
        budget = Budget(
            "run",
            self._settings.run,
            session.budget,
            used=past.used if past else None,
            started_at=past.started_at if past else None,
        )
        session.run_budgets[run_id] = budget
        if len(session.run_budgets) > MAX_RUN_BUDGETS:
            # The oldest run has finished, because a session executes its runs in order.
            session.run_budgets.popitem(last=False)
        return budget

    async def _load_account(self, session_id: str) -> SessionAccount:
        journaled = await self._load_journaled_usage(session_id)
        budget = Budget(
            "session",
            self._settings.session,
            await self.find_owner_budget(session_id),
            used=sum((past.used for past in journaled.values()), ModelUsage()),
            started_at=min((past.started_at for past in journaled.values()), default=None),
        )
        self._evict_idle_accounts()
        self._session_accounts[session_id] = SessionAccount(budget, journaled)
        return self._session_accounts[session_id]

    async def _load_journaled_usage(self, session_id: str) -> dict[str, JournaledUsage]:
        monotonic_offset = time.time() - time.monotonic()
        found: dict[str, JournaledUsage] = {}
        for stored in await self._journal.load_events(
            session_id, event_type=ModelUsageRecorded, damage=[]
        ):
            event = stored.event
            if not isinstance(event, ModelUsageRecorded) or stored.run_id is None:
                continue
            started_at = stored.recorded_at - monotonic_offset - event.duration_ms / 1e3
            past = found.setdefault(stored.run_id, JournaledUsage(ModelUsage(), started_at))
            past.used += usage_from_event(event)
        return found

    def _evict_idle_accounts(self) -> None:
        idle = [
            session_id
            for session_id, session in self._session_accounts.items()
            if not session.active_requests
        ]
        excess = len(self._session_accounts) - MAX_IDLE_SESSIONS + 1
        for session_id in idle[: max(excess, 0)]:
            del self._session_accounts[session_id]

    async def _find_principal(self, session_id: str) -> str:
        try:
            return (await self._journal.load_session(session_id)).principal
        except NotFound:
            return ""


def usage_from_event(event: ModelUsageRecorded) -> ModelUsage:
    """Return the usage in an event.

    A negative number, which an imported session may contain, counts as 0.
    """
    return ModelUsage(
        max(event.calls, 0), max(event.tokens_in, 0), max(event.tokens_out, 0), max(event.usd, 0.0)
    )
