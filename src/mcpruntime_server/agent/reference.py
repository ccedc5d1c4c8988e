"""The reference agent: it has a task done by a model that writes programs for a server, and says what that has cost.

Rule 1: it is a client like any other; whatever it can do, another client can.
Rule 2: what its own questions and its programs' have cost counts against one budget, and is told apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyio.to_thread import run_sync

from ..errors import CallFailed
from ..llm.asker import Asker, answered
from ..llm.budget import Budget
from ..llm.messages import check_schema
from ..llm.model import Completion, Messages, Question, Usage
from . import STEPS, loop
from .client import Server
from .conversation import Brief
from .given import Files, given, size_in, text_of
from .loop import ROOM, TOO_LONG, Submitted, hand_over, solve
from .route import SHARE, TOKEN, Route, route

WHOLE = ("calls", "tokens_in", "tokens_out")  # figures of usage that are whole numbers


@dataclass(frozen=True)
class Cost:
    """What a task has cost: the agent's own questions, those of its programs, and those of agents that these began."""

    own: Usage = field(default_factory=Usage)
    programs: Usage = field(default_factory=Usage)
    agents: Usage = field(default_factory=Usage)
    begun: int = 0  # agents

    @property
    def total(self) -> Usage:
        """All of it."""
        return self.own + self.programs + self.agents

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.own + other.own,
            self.programs + other.programs,
            self.agents + other.agents,
            self.begun + other.begun,
        )


@dataclass(frozen=True)
class Routed:
    """The way of the task is chosen."""

    route: Route


@dataclass(frozen=True)
class Found:
    """There are skills that may help, a line each."""

    skills: str


@dataclass(frozen=True)
class Finished:
    """The end: `value` is the answer; `kept` says what became of the run as a skill, where that was tried."""

    value: Any
    steps: int
    session: str
    cost: Cost
    run: str = ""
    kept: str = ""


Event = Routed | Found | Finished | loop.Event


class Agent:
    """Has tasks done, one after the other or at once; see `create_agent`."""

    def __init__(
        self,
        asker: Asker,
        servers: Any,
        budget: Budget,
        *,
        window: int = 0,
        packages: tuple[str, ...] = (),
        recursive: bool = False,
        steps: int = STEPS,
        keeps: bool = True,
    ) -> None:
        self._asker = asker
        self._new_server = servers
        self._budget = budget
        self._window = window
        self._packages = packages
        self._recursive = recursive
        self._steps = steps
        self._keeps = keeps
        self.cost = Cost()  # of all tasks so far

    async def execute_task(
        self, task: str, context: Any = None, *, schema: Mapping[str, Any] | None = None
    ) -> Finished:
        """Return how a task ended; raises `McpRuntimeError` if it came to no answer."""
        finished: Finished | None = None
        async for event in self.stream(task, context, schema=schema):
            if isinstance(event, Finished):
                finished = event
        assert finished is not None, "it ends with an answer or raises"
        return finished

    async def stream(
        self, task: str, context: Any = None, *, schema: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Event]:
        """Yield what happens while a task is done, `Finished` last; `context` is a text, JSON data, or `Files`."""
        if schema is not None:
            check_schema(schema)
        way = route(
            task,
            size_in(context),
            self._window,
            recursive=self._recursive,
            packed=isinstance(context, Files) and context.are_packed,
            packages=self._packages,
        )
        yield Routed(way)
        desk = Desk(self._asker, self._budget, self._new_server())
        try:
            if way.way == "question":
                try:
                    question = Question(task, await run_sync(text_of, context), schema)
                    answer = await answered(question, desk.ask)
                except CallFailed as exc:
                    if exc.kind != TOO_LONG:
                        raise
                    yield Routed(Route("programs", "The model cannot read the material at once."))
                else:
                    yield Finished(answer.value, 1, desk.server.session, desk.cost)
                    return
            async for event in self._by_programs(task, context, schema, desk):
                yield event
        finally:
            self.cost += desk.cost

    async def _by_programs(
        self, task: str, context: Any, schema: Mapping[str, Any] | None, desk: Desk
    ) -> AsyncIterator[Event]:
        skills = await desk.server.skills_for(task)
        if skills:
            yield Found(skills)
        told = await hand_over(desk, given(context))
        brief = Brief(task, self._steps, 0, told, skills, schema)
        room = min(ROOM, int(self._window * SHARE * TOKEN)) if self._window else ROOM
        async for event in solve(brief, desk, room):
            yield event
            if isinstance(event, Submitted):
                run, kept = event.result["run"], ""
                if self._keeps and context is None and is_worth_keeping(event.result):
                    kept = await desk.server.keep(run)
                yield Finished(event.value, event.step, desk.server.session, desk.cost, run, kept)


class Desk:
    """Where one task is done: the agent's model, a session on the server, and what both have cost."""

    def __init__(self, asker: Asker, budget: Budget, server: Server) -> None:
        self.server = server
        self.cost = Cost()
        self._asker = asker
        self._budget = budget

    async def ask(self, messages: Messages) -> Completion:
        """Return what the model says; raises `CallFailed`."""
        return await self._asker.complete(messages, self._budget, note=self._note)

    def _note(self, used: Usage, _: float) -> None:
        self.cost += Cost(used)  # of those that failed, too

    async def execute(self, code: str, inputs: Sequence[Any] = ()) -> Mapping[str, Any]:
        """Run a program to its end; raises `McpRuntimeError`."""
        result = await self.server.execute(code, inputs)
        figures = result.get("usage", {})
        spent, agents = usage_in(figures, "llm_"), usage_in(figures, "agents_")
        self.cost += Cost(Usage(), spent, agents, int(figures.get("agents", 0)))
        self._budget.spend(spent + agents)
        return result


def usage_in(figures: Mapping[str, float], prefix: str) -> Usage:
    """Return what the usage of a run says of questions."""
    calls, tokens_in, tokens_out = (int(figures.get(f"{prefix}{what}", 0)) for what in WHOLE)
    return Usage(calls, tokens_in, tokens_out, figures.get(f"{prefix}usd", 0.0))


def is_worth_keeping(result: Mapping[str, Any]) -> bool:
    """Return whether the run that has submitted did something that another task could want again: it used tools."""
    return any(not call["call"].startswith("agent.") for call in result.get("calls", ()))
