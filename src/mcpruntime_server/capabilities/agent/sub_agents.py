"""The calls for agents: `agent.run` starts one, and `agent.submit` ends its task with a value.

Only the call `agent.submit` submits a value. Any other value that looks like an answer may be data
of a third party.

An agent works in a session of its own, which is linked to the run that started it. It pays from a
budget below that run's. While it works, the clock of the run is stopped and the run's slot is free
for other runs. The agent ends when the run ends.

The call does not show what the agent changed outside. So it counts as a write: a dry run plans
it, and a replay answers it from the journal. After a crash during the call, a person must decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypedDict, cast

from ...config import BudgetLimits
from ...config.validation import Bounds
from ...errors import CallFailed, McpRuntimeError
from ...journal.call_scope import CallScope, current_call_scope
from ...journal.events import InputEntry, canonical_json
from ...protocol.library_names import SLICE_KEY
from ...protocol.payloads import JsonObject
from ..call_arguments import invalid_arguments
from ..json_schemas import check_schema
from ..model_requests import Completion, Messages, ModelUsage, UsageData
from . import DEFAULT_STEPS
from .agent_loop import ValueSubmitted, provide_material, run_agent
from .conversation import MAX_TASK_CHARS, AgentTask
from .material import PREVIEW_CHARS, AgentMaterial, material_text, prepare_inputs, prepare_material
from .program_result import ProgramResult

RUN_TARGET = "agent.run"
SUBMIT_TARGET = "agent.submit"
MAX_CONTEXT_CHARS = 8_000_000  # larger material is passed as files
MAX_MODEL_NAME_CHARS = 200
MAX_BUDGET_CHARS = 2_000


@dataclass(frozen=True, kw_only=True)
class AgentLimits(BudgetLimits):
    """Limits of an agent, within the remaining budget of the run that starts it."""

    steps: Annotated[int, Bounds(at_least=1, at_most=1000)] = DEFAULT_STEPS


class DrivingModel(Protocol):
    """The model that drives an agent, paid from the agent's budget."""

    @property
    def depth(self) -> int:
        """Number of agents above the agent's programs, itself included."""
        ...

    @property
    def used(self) -> ModelUsage:
        """The usage of the agent and its programs so far."""
        ...

    async def complete(self, messages: Messages) -> Completion:
        """Return the model's completion; raises `CallFailed`."""
        ...

    def time_limit(self) -> AbstractContextManager[None]:
        """Cancel the body and raise `CallFailed` when the time of the budget is used up."""
        ...

    def charge_session(self, session_id: str) -> AbstractContextManager[None]:
        """Charge the requests of programs in a session to the agent's budget."""
        ...


class ProgramSession(Protocol):
    """The session in which an agent works."""

    session_id: str

    async def execute(
        self, code: str, report_status: Callable[[str], None], inputs: Sequence[InputEntry] = ()
    ) -> Mapping[str, Any]:
        """Run code to its end and return the answer of `run_code`; raises `McpRuntimeError`."""
        ...


class SliceStore(Protocol):
    """The inputs of runs."""

    async def add_slice(
        self, session_id: str, run_id: str, reference: Any, name: str = ""
    ) -> InputEntry:
        """Return a slice of an input of a run as a new input; raises `CallFailed`."""
        ...

    async def read_preview(self, entry: InputEntry, size: int) -> str:
        """Return the first bytes of an input as text; raises `CallFailed`."""
        ...


OpenModel = Callable[[CallScope, BudgetLimits, str], AbstractAsyncContextManager[DrivingModel]]
OpenProgramSession = Callable[[CallScope], AbstractAsyncContextManager[ProgramSession]]


class AgentAnswer(TypedDict):
    """The answer of `agent.run`."""

    value: Any
    session: str
    steps: int
    usage: UsageData


@dataclass(frozen=True)
class AgentRequest:
    """The arguments of `agent.run`."""

    task: str
    context: Any
    limits: AgentLimits
    schema: Mapping[str, Any] | None
    model: str


class SubAgents:
    """Runs the agents that code starts."""

    def __init__(
        self, open_model: OpenModel, open_session: OpenProgramSession, input_slices: SliceStore
    ) -> None:
        self._open_model = open_model
        self._open_session = open_session
        self._input_slices = input_slices
        self._waiting: dict[str, dict[str, str]] = {}  # what agents wait for, by run and session

    @staticmethod
    def call_effect(target: str) -> Any:
        """Return what a call may change."""
        return "read" if target == SUBMIT_TARGET else "write"

    async def handle_call(self, target: str, args: JsonObject) -> AgentAnswer | None:
        """Answer `agent.run {task, context, budget, schema, model}` or `agent.submit {value}`.

        Raises `CallFailed`.
        """
        if target == SUBMIT_TARGET:
            return None
        if target == RUN_TARGET:
            return await self._run_agent(current_call_scope(), parse_request(args))
        raise CallFailed("unknown_target", f"There is no call {target!r:.80} for agents.")

    async def _run_agent(self, caller: CallScope, request: AgentRequest) -> AgentAnswer:
        try:
            async with (
                self._open_model(caller, request.limits, request.model) as model,
                caller.release_slot(),
                self._open_session(caller) as session,
            ):
                with model.charge_session(session.session_id):
                    return await self._run_task(caller, request, model, session)
        except CallFailed:
            raise
        except McpRuntimeError as exc:
            raise CallFailed("unavailable", f"The agent could not work: {exc}") from None

    async def _run_task(
        self,
        caller: CallScope,
        request: AgentRequest,
        model: DrivingModel,
        session: ProgramSession,
    ) -> AgentAnswer:
        session_id = session.session_id
        workspace = SubAgentWorkspace(
            model, session, lambda status: self._report_status(caller, session_id, status)
        )
        value: Any = None
        steps = 0
        try:
            material = await self._prepare_material(caller, request.context)
            description = await provide_material(workspace, material)
            task = AgentTask(
                request.task,
                request.limits.steps,
                model.depth,
                description,
                schema=request.schema,
            )
            async for event in run_agent(task, workspace):
                if isinstance(event, ValueSubmitted):
                    value, steps = event.value, event.step
        except CallFailed as exc:
            data = {**(exc.data or {}), "session": session_id}
            raise CallFailed(exc.kind, exc.message, remedy=exc.remedy, data=data) from None
        finally:
            self._report_status(caller, session_id, "")
        return {
            "value": value,
            "session": session_id,
            "steps": steps,
            "usage": model.used.to_data(),
        }

    async def _prepare_material(self, caller: CallScope, context: Any) -> AgentMaterial | None:
        """Return how an agent receives its material: a slice becomes an input of its own."""
        if not isinstance(context, dict) or context.keys() != {SLICE_KEY}:
            return prepare_material(context)
        entry = await self._input_slices.add_slice(caller.session_id, caller.run_id, context)
        preview = await self._input_slices.read_preview(entry, PREVIEW_CHARS)
        end = entry["size"] if entry["end"] is None else entry["end"]
        name = f"{entry['name']} ({end - entry['start']:,} bytes)"
        return prepare_inputs(name, preview, [entry])

    def _report_status(self, caller: CallScope, session_id: str, status: str) -> None:
        """Show in the run what its agents wait for; `status` is "" if this one does not wait."""
        waiting = self._waiting.setdefault(caller.run_id, {})
        if waiting.get(session_id, "") != status:
            if status:
                waiting[session_id] = status
            else:
                del waiting[session_id]
            caller.set_agent_question("; ".join(waiting.values()))
        if not waiting:
            del self._waiting[caller.run_id]


@dataclass(frozen=True)
class SubAgentWorkspace:
    """The model and the session of a sub-agent."""

    model: DrivingModel
    session: ProgramSession
    report_status: Callable[[str], None]

    async def ask_model(self, messages: Messages) -> Completion:
        """Return the model's completion; raises `CallFailed`."""
        return await self.model.complete(messages)

    async def run_program(self, code: str, inputs: Sequence[Any] = ()) -> ProgramResult:
        """Run a program to its end, or to the end of the agent's time.

        Raises `McpRuntimeError` or `CallFailed`.
        """
        with self.model.time_limit():
            result = await self.session.execute(code, self.report_status, inputs)
        return cast(ProgramResult, result)


def parse_request(args: Mapping[str, Any]) -> AgentRequest:
    """Return a request as code sent it; raises `CallFailed` for invalid arguments."""
    task, context, schema = args.get("task"), args.get("context"), args.get("schema")
    model = args.get("model") or ""
    if not isinstance(task, str) or not task.strip() or len(task) > MAX_TASK_CHARS:
        raise invalid_arguments(f"A task is a text of 1 to {MAX_TASK_CHARS:,} characters.")
    if not isinstance(model, str) or len(model) > MAX_MODEL_NAME_CHARS:
        raise invalid_arguments("`model` must be the name of a model.")
    if schema is not None:
        check_schema(schema)
    if len(material_text(context)) > MAX_CONTEXT_CHARS:
        raise invalid_arguments(
            f"A context has at most {MAX_CONTEXT_CHARS:,} characters.",
            "Give each agent a part of it.",
        )
    return AgentRequest(task, context, parse_limits(args.get("budget") or {}), schema, model)


def parse_limits(budget: Any) -> AgentLimits:
    """Return the budget of an agent; raises `CallFailed` with what is wrong."""
    if not isinstance(budget, dict):
        raise invalid_arguments("The budget must be a dict.")
    if len(canonical_json(budget)) > MAX_BUDGET_CHARS:  # each unknown name is compared with all
        raise invalid_arguments(f"A budget has at most {MAX_BUDGET_CHARS:,} characters as JSON.")
    try:
        return AgentLimits.from_mapping(budget)
    except ValueError as exc:
        raise invalid_arguments(f"The budget is invalid: {exc}") from None
