"""Who has used how much: the budgets of principals, sessions and runs, and the answers that sessions have had.

Rule: what sessions and runs have used is the journal's to say. So neither the death of a server nor being forgotten
here gives anybody a new budget. A principal's is for as long as a server lives.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio

from ...config import LlmSettings
from ...errors import NotFound
from ...journal.call_scope import CallScope
from ...journal.events import ModelUsageRecorded
from ...journal.store import Journal
from ..model_requests import ModelResponse, ModelUsage
from .budget import Budget

MAX_IDLE_SESSIONS = 200  # whose answers and budgets are remembered, beside those that are asking
MAX_RUN_BUDGETS = 1_000  # of a session, whose budgets are remembered
MAX_CACHED_ANSWERS, MAX_CACHED_CHARS = 2_000, 4_000_000  # answers of a session


class AnswerCache:
    """The answers that a session has had; the same question is asked once, also by many at once."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, ModelResponse] = OrderedDict()
        self._total_chars = 0
        self._in_flight: dict[str, anyio.Event] = {}

    async def get_or_ask(
        self, key: str, ask: Callable[[], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Return the answer to the question `key`; `ask` asks it."""
        while key in self._in_flight:
            await self._in_flight[key].wait()
        if key in self._responses:
            self._responses.move_to_end(key)
            return replace(self._responses[key], usage=ModelUsage(), is_cached=True)
        self._in_flight[key] = anyio.Event()
        try:
            answer = await ask()
        finally:
            self._in_flight.pop(key).set()
        self._responses[key] = answer
        self._total_chars += answer.text_chars
        while len(self._responses) > MAX_CACHED_ANSWERS or self._total_chars > MAX_CACHED_CHARS:
            _, gone = self._responses.popitem(last=False)
            self._total_chars -= gone.text_chars
        return answer


@dataclass
class SessionAccount:
    """A session: its budget, what its runs have used, and its answers; `users` are asking now."""

    budget: Budget
    journaled_usage: dict[
        str, tuple[ModelUsage, float]
    ]  # what runs had used when this was opened, and when they began
    run_budgets: OrderedDict[str, Budget] = field(default_factory=OrderedDict)
    answer_cache: AnswerCache = field(default_factory=AnswerCache)
    active_requests: int = 0


@dataclass(frozen=True)
class BudgetAccount:
    """What a run or an agent pays from, the answers that it has had, and the run in whose name that is journaled."""

    budget: Budget
    answer_cache: AnswerCache
    session_id: str = ""
    run_id: str = ""


class AccountRegistry:
    """All of them, as far as they are remembered."""

    def __init__(self, settings: LlmSettings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._principal_budgets: dict[str, Budget] = {}
        self._session_accounts: OrderedDict[str, SessionAccount] = OrderedDict()
        self._open_lock = anyio.Lock()
        self.agent_accounts: dict[str, BudgetAccount] = {}  # of those that work, by their sessions

    @asynccontextmanager
    async def open_account(self, caller: CallScope) -> AsyncIterator[BudgetAccount]:
        """Yield what a run pays from, which is not forgotten meanwhile."""
        if caller.session_id in self.agent_accounts:
            yield self.agent_accounts[caller.session_id]
            return
        async with self._open_lock:
            account = self._session_accounts.get(caller.session_id) or await self._load_account(
                caller.session_id
            )
            account.active_requests += 1
        self._session_accounts.move_to_end(caller.session_id)
        try:
            yield BudgetAccount(
                self._run_budget(account, caller.run_id),
                account.answer_cache,
                caller.session_id,
                caller.run_id,
            )
        finally:
            account.active_requests -= 1

    def find_run_budget(self, run_id: str) -> Budget | None:
        """Return the budget of a run that has asked something not long ago."""
        return next(
            (
                account.run_budgets[run_id]
                for account in self._session_accounts.values()
                if run_id in account.run_budgets
            ),
            None,
        )

    async def find_owner_budget(self, session_id: str) -> Budget:
        """Return the budget of whom a session belongs to."""
        principal = await self._find_principal(session_id)
        return self._principal_budgets.setdefault(
            principal, Budget("principal", self._settings.principal)
        )

    def _run_budget(self, account: SessionAccount, run_id: str) -> Budget:
        if run_id not in account.run_budgets:
            used, began = account.journaled_usage.get(run_id, (ModelUsage(), None))
            account.run_budgets[run_id] = Budget(
                "run", self._settings.run, account.budget, used=used, started_at=began
            )
            if (
                len(account.run_budgets) > MAX_RUN_BUDGETS
            ):  # runs of a session come one after the other: that one is over
                account.run_budgets.popitem(last=False)
        return account.run_budgets[run_id]

    async def _load_account(self, session_id: str) -> SessionAccount:
        past: dict[str, tuple[ModelUsage, float]] = {}
        now = time.time() - time.monotonic()
        for stored in await self._journal.load_events(
            session_id, event_type=ModelUsageRecorded, damage=[]
        ):
            spent = stored.event
            if isinstance(spent, ModelUsageRecorded) and stored.run_id is not None:
                used, began = past.get(
                    stored.run_id,
                    (ModelUsage(), stored.recorded_at - now - spent.duration_ms / 1e3),
                )
                past[stored.run_id] = used + usage_from_event(spent), began
        used = sum((each for each, _ in past.values()), ModelUsage())
        first = min((began for _, began in past.values()), default=None)
        budget = Budget(
            "session",
            self._settings.session,
            await self.find_owner_budget(session_id),
            used=used,
            started_at=first,
        )
        self._evict_idle_accounts()
        self._session_accounts[session_id] = SessionAccount(budget, past)
        return self._session_accounts[session_id]

    def _evict_idle_accounts(self) -> None:
        idle = [
            session
            for session, account in self._session_accounts.items()
            if not account.active_requests
        ]
        for session in idle[: max(len(self._session_accounts) - MAX_IDLE_SESSIONS + 1, 0)]:
            del self._session_accounts[session]

    async def _find_principal(self, session_id: str) -> str:
        try:
            return (await self._journal.load_session(session_id)).principal
        except NotFound:
            return ""


def usage_from_event(spent: ModelUsageRecorded) -> ModelUsage:
    """Return what was spent; an imported session may say that it was less than nothing."""
    return ModelUsage(
        max(spent.calls, 0), max(spent.tokens_in, 0), max(spent.tokens_out, 0), max(spent.usd, 0.0)
    )
