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

from ..config import LlmSettings
from ..errors import NotFound
from ..journal.events import Spent
from ..journal.scope import Scope
from ..journal.store import Journal
from .budget import Budget
from .model import Answer, Usage

SESSIONS = 200  # whose answers and budgets are remembered, beside those that are asking
RUNS = 1_000  # of a session, whose budgets are remembered
KEPT, KEPT_CHARS = 2_000, 4_000_000  # answers of a session


class Answers:
    """The answers that a session has had; the same question is asked once, also by many at once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Answer] = OrderedDict()
        self._chars = 0
        self._asking: dict[str, anyio.Event] = {}

    async def get(self, key: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the answer to the question `key`; `ask` asks it."""
        while key in self._asking:
            await self._asking[key].wait()
        if key in self._kept:
            self._kept.move_to_end(key)
            return replace(self._kept[key], usage=Usage(), is_cached=True)
        self._asking[key] = anyio.Event()
        try:
            answer = await ask()
        finally:
            self._asking.pop(key).set()
        self._kept[key] = answer
        self._chars += answer.chars
        while len(self._kept) > KEPT or self._chars > KEPT_CHARS:
            _, gone = self._kept.popitem(last=False)
            self._chars -= gone.chars
        return answer


@dataclass
class Account:
    """A session: its budget, what its runs have used, and its answers; `users` are asking now."""

    budget: Budget
    past: dict[str, tuple[Usage, float]]  # what runs had used when this was opened, and when they began
    runs: OrderedDict[str, Budget] = field(default_factory=OrderedDict)
    answers: Answers = field(default_factory=Answers)
    users: int = 0


@dataclass(frozen=True)
class Purse:
    """What a run or an agent pays from, the answers that it has had, and the run in whose name that is journaled."""

    budget: Budget
    answers: Answers
    session: str = ""
    run: str = ""


class Accounts:
    """All of them, as far as they are remembered."""

    def __init__(self, settings: LlmSettings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._principals: dict[str, Budget] = {}
        self._sessions: OrderedDict[str, Account] = OrderedDict()
        self._opening = anyio.Lock()
        self.agents: dict[str, Purse] = {}  # of those that work, by their sessions

    @asynccontextmanager
    async def using(self, asking: Scope) -> AsyncIterator[Purse]:
        """Yield what a run pays from, which is not forgotten meanwhile."""
        if asking.session in self.agents:
            yield self.agents[asking.session]
            return
        async with self._opening:
            account = self._sessions.get(asking.session) or await self._open(asking.session)
            account.users += 1
        self._sessions.move_to_end(asking.session)
        try:
            yield Purse(self._run(account, asking.run), account.answers, asking.session, asking.run)
        finally:
            account.users -= 1

    def budget_of(self, run: str) -> Budget | None:
        """Return the budget of a run that has asked something not long ago."""
        return next((account.runs[run] for account in self._sessions.values() if run in account.runs), None)

    async def owner(self, session: str) -> Budget:
        """Return the budget of whom a session belongs to."""
        principal = await self._principal_of(session)
        return self._principals.setdefault(principal, Budget("principal", self._settings.principal))

    def _run(self, account: Account, run: str) -> Budget:
        if run not in account.runs:
            used, began = account.past.get(run, (Usage(), None))
            account.runs[run] = Budget("run", self._settings.run, account.budget, used=used, began=began)
            if len(account.runs) > RUNS:  # runs of a session come one after the other: that one is over
                account.runs.popitem(last=False)
        return account.runs[run]

    async def _open(self, session: str) -> Account:
        past: dict[str, tuple[Usage, float]] = {}
        now = time.time() - time.monotonic()
        for stored in await self._journal.events(session, kind="spent", damage=[]):
            spent = stored.event
            if isinstance(spent, Spent) and stored.run is not None:
                used, began = past.get(stored.run, (Usage(), stored.at - now - spent.ms / 1e3))
                past[stored.run] = used + usage_of(spent), began
        used = sum((each for each, _ in past.values()), Usage())
        first = min((began for _, began in past.values()), default=None)
        budget = Budget("session", self._settings.session, await self.owner(session), used=used, began=first)
        self._forget()
        self._sessions[session] = Account(budget, past)
        return self._sessions[session]

    def _forget(self) -> None:
        idle = [session for session, account in self._sessions.items() if not account.users]
        for session in idle[: max(len(self._sessions) - SESSIONS + 1, 0)]:
            del self._sessions[session]

    async def _principal_of(self, session: str) -> str:
        try:
            return (await self._journal.session(session)).principal
        except NotFound:
            return ""


def usage_of(spent: Spent) -> Usage:
    """Return what was spent; an imported session may say that it was less than nothing."""
    return Usage(max(spent.calls, 0), max(spent.tokens_in, 0), max(spent.tokens_out, 0), max(spent.usd, 0.0))
