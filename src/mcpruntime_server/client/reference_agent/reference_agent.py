"""The agent itself: it does a task and reports the cost.

Rule 1: it is an ordinary client. Another client can do everything that it does.
Rule 2: its own model requests and those of its programs count against one budget, but are reported
separately.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyio.to_thread import run_sync

from ...capabilities.agent import DEFAULT_STEPS
from ...capabilities.agent.agent_loop import (
    MAX_CONVERSATION_CHARS,
    REQUEST_TOO_LONG,
    AgentEvent,
    ValueSubmitted,
    provide_material,
    run_agent,
)
from ...capabilities.agent.conversation import AgentTask
from ...capabilities.agent.program_result import ProgramResult
from ...capabilities.json_schemas import check_schema
from ...capabilities.llm.budget import Budget
from ...capabilities.llm.budgeted_model import BudgetedModel
from ...capabilities.llm.model_backend import ModelRequest
from ...capabilities.llm.structured_answers import answer_request
from ...capabilities.model_requests import Completion, Messages, ModelUsage
from ...errors import CallFailed
from .local_files import (
    LocalFiles,
    context_size,
    context_text,
    name_files,
    prepare_context,
)
from .session_client import SessionClient
from .task_routing import TaskRoute, choose_route, max_material_chars


@dataclass(frozen=True)
class TaskCost:
    """The cost of a task: of the agent's own requests, its programs and their sub-agents."""

    own: ModelUsage = field(default_factory=ModelUsage)
    programs: ModelUsage = field(default_factory=ModelUsage)
    agents: ModelUsage = field(default_factory=ModelUsage)
    agents_started: int = 0

    @property
    def total(self) -> ModelUsage:
        """The sum of all."""
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
    """The agent decided how to do the task."""

    route: TaskRoute


@dataclass(frozen=True)
class SkillsFound:
    """The search found skills that may help; `skills` has one per line."""

    skills: str


@dataclass(frozen=True)
class TaskFinished:
    """The last event: `value` is the answer.

    `skill_note` is the outcome of saving the run as a skill; "" if that was not tried.
    """

    value: Any
    steps: int
    session_id: str
    cost: TaskCost
    run_id: str = ""
    skill_note: str = ""


TaskEvent = RouteChosen | SkillsFound | TaskFinished | AgentEvent


class ReferenceAgent:
    """Does tasks, one after another or concurrently; see `create_agent`."""

    def __init__(
        self,
        model: BudgetedModel,
        open_session: Callable[[], SessionClient],
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
        """Do a task and return how it finished; raises `McpRuntimeError` if there is no answer."""
        finished: TaskFinished | None = None
        async for event in self.stream(task, context, schema=schema):
            if isinstance(event, TaskFinished):
                finished = event
        assert finished is not None, "the stream ends with `TaskFinished` or raises"
        return finished

    async def stream(
        self, task: str, context: Any = None, *, schema: Mapping[str, Any] | None = None
    ) -> AsyncIterator[TaskEvent]:
        """Do a task and yield its events, `TaskFinished` last.

        `context` is a text, JSON data, a path or several, or `LocalFiles`.
        """
        context = name_files(context)
        if schema is not None:
            check_schema(schema)
        route = choose_route(
            task,
            context_size(context),
            self._max_input_tokens,
            recursive=self._recursive,
            is_compressed=isinstance(context, LocalFiles) and context.has_compressed_file,
            packages=self._packages,
        )
        yield RouteChosen(route)
        workspace = TaskWorkspace(self._model, self._budget, self._open_session())
        try:
            if route.method == "request":
                finished = await self._ask_once(task, context, schema, workspace)
                if finished is not None:
                    yield finished
                    return
                yield RouteChosen(
                    TaskRoute("programs", "The model cannot read the material at once.")
                )
            async for event in self._run_programs(task, context, schema, workspace):
                yield event
        finally:
            self.cost += workspace.cost

    async def _ask_once(
        self, task: str, context: Any, schema: Mapping[str, Any] | None, workspace: TaskWorkspace
    ) -> TaskFinished | None:
        """Do a task with one request.

        Return None if the model refuses the material as too long.
        """
        request = ModelRequest(task, await run_sync(context_text, context), schema)
        try:
            response = await answer_request(request, workspace.ask_model)
        except CallFailed as exc:
            if exc.kind == REQUEST_TOO_LONG:
                return None
            raise
        return TaskFinished(response.value, 1, workspace.session.session_id, workspace.cost)

    async def _run_programs(
        self, task: str, context: Any, schema: Mapping[str, Any] | None, workspace: TaskWorkspace
    ) -> AsyncIterator[TaskEvent]:
        session = workspace.session
        skills = await session.find_skills(task)
        if skills:
            yield SkillsFound(skills)
        description = await provide_material(workspace, prepare_context(context))
        agent_task = AgentTask(task, self._steps, 0, description, skills, schema)
        max_chars = MAX_CONVERSATION_CHARS
        if self._max_input_tokens:
            max_chars = min(max_chars, max_material_chars(self._max_input_tokens))
        async for event in run_agent(agent_task, workspace, max_chars):
            yield event
            if isinstance(event, ValueSubmitted):
                run_id, skill_note = event.result["run"], ""
                if self._saves_skills and context is None and has_used_tools(event.result):
                    skill_note = await session.save_skill(run_id)
                yield TaskFinished(
                    event.value, event.step, session.session_id, workspace.cost, run_id, skill_note
                )


class TaskWorkspace:
    """The model and the session of one task, and the cost of both."""

    def __init__(self, model: BudgetedModel, budget: Budget, session: SessionClient) -> None:
        self.session = session
        self.cost = TaskCost()
        self._model = model
        self._budget = budget

    async def ask_model(self, messages: Messages) -> Completion:
        """Return the model's completion; raises `CallFailed`."""
        return await self._model.complete(messages, self._budget, record_usage=self._record_usage)

    def _record_usage(self, used: ModelUsage, _: float) -> None:
        self.cost += TaskCost(used)

    async def run_program(self, code: str, inputs: Sequence[Any] = ()) -> ProgramResult:
        """Run a program to its end; raises `McpRuntimeError`."""
        result = await self.session.run_program(code, inputs)
        figures = result.get("usage", {})
        programs, agents = find_usage(figures, "llm_"), find_usage(figures, "agents_")
        self.cost += TaskCost(ModelUsage(), programs, agents, int(figures.get("agents", 0)))
        self._budget.spend(programs + agents)
        return result


def find_usage(figures: Mapping[str, float], prefix: str) -> ModelUsage:
    """Return the model usage in the `usage` of a run whose keys begin with `prefix`."""
    return ModelUsage(
        int(figures.get(f"{prefix}calls", 0)),
        int(figures.get(f"{prefix}tokens_in", 0)),
        int(figures.get(f"{prefix}tokens_out", 0)),
        figures.get(f"{prefix}usd", 0.0),
    )


def has_used_tools(result: ProgramResult) -> bool:
    """Return whether a run called tools, so that its program may help with another task."""
    return any(not call["call"].startswith("agent.") for call in result.get("calls", ()))
