"""The reference agent: it has a task done by a model that writes programs for a server, and says what that has cost.

Rule 1: it is a client like any other; whatever it can do, another client can.
Rule 2: what its own questions and its programs' have cost counts against one budget, and is told apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyio.to_thread import run_sync

from ...capabilities.agent import DEFAULT_STEPS, agent_loop
from ...capabilities.agent.agent_loop import (
    MAX_CONVERSATION_CHARS,
    REQUEST_TOO_LONG,
    ValueSubmitted,
    provide_material,
    run_agent,
)
from ...capabilities.agent.conversation import AgentTask
from ...capabilities.agent.material import (
    LocalFiles,
    material_size,
    material_text,
    prepare_material,
)
from ...capabilities.json_schemas import check_schema
from ...capabilities.llm.budget import Budget
from ...capabilities.llm.budgeted_model import BudgetedModel, answer_request
from ...capabilities.model_requests import Completion, Messages, ModelRequest, ModelUsage
from ...errors import CallFailed
from .session_client import SessionClient
from .task_routing import CHARS_PER_TOKEN, MATERIAL_SHARE, TaskRoute, choose_route

COUNTED_FIELDS = ("calls", "tokens_in", "tokens_out")  # figures of usage that are whole numbers


@dataclass(frozen=True)
class TaskCost:
    """What a task has cost: the agent's own questions, those of its programs, and those of agents that these began."""

    own: ModelUsage = field(default_factory=ModelUsage)
    programs: ModelUsage = field(default_factory=ModelUsage)
    agents: ModelUsage = field(default_factory=ModelUsage)
    agents_started: int = 0  # agents

    @property
    def total(self) -> ModelUsage:
        """All of it."""
        return self.own + self.programs + self.agents

    def __add__(self, other: TaskCost) -> TaskCost:
        return TaskCost(
            self.own + other.own,
            self.programs + other.programs,
            self.agents + other.agents,
            self.agents_started + other.agents_started,
        )


@dataclass(frozen=True)
class RouteChosen:
    """The way of the task is chosen."""

    route: TaskRoute


@dataclass(frozen=True)
class SkillsFound:
    """There are skills that may help, a line each."""

    skills: str


@dataclass(frozen=True)
class TaskFinished:
    """The end: `value` is the answer; `kept` says what became of the run as a skill, where that was tried."""

    value: Any
    steps: int
    session_id: str
    cost: TaskCost
    run_id: str = ""
    skill_note: str = ""


TaskEvent = RouteChosen | SkillsFound | TaskFinished | agent_loop.AgentEvent


class ReferenceAgent:
    """Has tasks done, one after the other or at once; see `create_agent`."""

    def __init__(
        self,
        model: BudgetedModel,
        open_session: Any,
        budget: Budget,
        *,
        max_input_tokens: int = 0,
        packages: tuple[str, ...] = (),
        recursive: bool = False,
        steps: int = DEFAULT_STEPS,
        saves_skills: bool = True,
    ) -> None:
        self._model = model
        self._open_session = open_session
        self._budget = budget
        self._max_input_tokens = max_input_tokens
        self._packages = packages
        self._recursive = recursive
        self._steps = steps
        self._saves_skills = saves_skills
        self.cost = TaskCost()  # of all tasks so far

    async def execute_task(
        self, task: str, context: Any = None, *, schema: Mapping[str, Any] | None = None
    ) -> TaskFinished:
        """Return how a task ended; raises `McpRuntimeError` if it came to no answer."""
        finished: TaskFinished | None = None
        async for event in self.stream(task, context, schema=schema):
            if isinstance(event, TaskFinished):
                finished = event
        assert finished is not None, "it ends with an answer or raises"
        return finished

    async def stream(
        self, task: str, context: Any = None, *, schema: Mapping[str, Any] | None = None
    ) -> AsyncIterator[TaskEvent]:
        """Yield what happens while a task is done, `Finished` last; `context` is a text, JSON data, or `Files`."""
        if schema is not None:
            check_schema(schema)
        way = choose_route(
            task,
            material_size(context),
            self._max_input_tokens,
            recursive=self._recursive,
            is_compressed=isinstance(context, LocalFiles) and context.has_compressed_file,
            packages=self._packages,
        )
        yield RouteChosen(way)
        desk = TaskWorkspace(self._model, self._budget, self._open_session())
        try:
            if way.method == "question":
                try:
                    question = ModelRequest(task, await run_sync(material_text, context), schema)
                    answer = await answer_request(question, desk.ask_model)
                except CallFailed as exc:
                    if exc.kind != REQUEST_TOO_LONG:
                        raise
                    yield RouteChosen(
                        TaskRoute("programs", "The model cannot read the material at once.")
                    )
                else:
                    yield TaskFinished(answer.value, 1, desk.session.session_id, desk.cost)
                    return
            async for event in self._run_programs(task, context, schema, desk):
                yield event
        finally:
            self.cost += desk.cost

    async def _run_programs(
        self, task: str, context: Any, schema: Mapping[str, Any] | None, workspace: TaskWorkspace
    ) -> AsyncIterator[TaskEvent]:
        skills = await workspace.session.find_skills(task)
        if skills:
            yield SkillsFound(skills)
        told = await provide_material(workspace, prepare_material(context))
        brief = AgentTask(task, self._steps, 0, told, skills, schema)
        room = (
            min(
                MAX_CONVERSATION_CHARS,
                int(self._max_input_tokens * MATERIAL_SHARE * CHARS_PER_TOKEN),
            )
            if self._max_input_tokens
            else MAX_CONVERSATION_CHARS
        )
        async for event in run_agent(brief, workspace, room):
            yield event
            if isinstance(event, ValueSubmitted):
                run, kept = event.result["run"], ""
                if self._saves_skills and context is None and has_used_tools(event.result):
                    kept = await workspace.session.save_skill(run)
                yield TaskFinished(
                    event.value, event.step, workspace.session.session_id, workspace.cost, run, kept
                )


class TaskWorkspace:
    """Where one task is done: the agent's model, a session on the server, and what both have cost."""

    def __init__(self, model: BudgetedModel, budget: Budget, session: SessionClient) -> None:
        self.session = session
        self.cost = TaskCost()
        self._model = model
        self._budget = budget

    async def ask_model(self, messages: Messages) -> Completion:
        """Return what the model says; raises `CallFailed`."""
        return await self._model.complete(messages, self._budget, record_usage=self._record_usage)

    def _record_usage(self, used: ModelUsage, _: float) -> None:
        self.cost += TaskCost(used)  # of those that failed, too

    async def run_program(self, code: str, inputs: Sequence[Any] = ()) -> Mapping[str, Any]:
        """Run a program to its end; raises `McpRuntimeError`."""
        result = await self.session.run_program(code, inputs)
        figures = result.get("usage", {})
        spent, agents = usage_with_prefix(figures, "llm_"), usage_with_prefix(figures, "agents_")
        self.cost += TaskCost(ModelUsage(), spent, agents, int(figures.get("agents", 0)))
        self._budget.spend(spent + agents)
        return result


def usage_with_prefix(figures: Mapping[str, float], prefix: str) -> ModelUsage:
    """Return what the usage of a run says of questions."""
    calls, tokens_in, tokens_out = (
        int(figures.get(f"{prefix}{what}", 0)) for what in COUNTED_FIELDS
    )
    return ModelUsage(calls, tokens_in, tokens_out, figures.get(f"{prefix}usd", 0.0))


def has_used_tools(result: Mapping[str, Any]) -> bool:
    """Return whether the run that has submitted did something that another task could want again: it used tools."""
    return any(not call["call"].startswith("agent.") for call in result.get("calls", ()))
