"""The calls by which code has agents work for it: `agent.run`, and `agent.submit`, by which an agent ends its task.

An agent works in a session of its own, which the run that has begun it knows, and is known by. It pays from a budget
below that run's. While it works, the run's time stands still and its turn to execute is somebody else's; it ends when
the run does.

What an agent has done outside is not known from its call alone. So the call counts as one that writes: it is planned in
a dry run, answered from the journal in a replay, and when a server has died in its middle, somebody is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from ...config import BudgetLimits
from ...config.validation import Bounds, setting_types
from ...errors import CallFailed, McpRuntimeError
from ...journal.call_scope import CallScope, current_call_scope
from ...journal.events import InputEntry
from ...protocol.library_names import SLICE_KEY
from ..json_schemas import check_schema
from ..llm.budget_accounts import BudgetAccount
from ..llm.model_service import ModelService, usage_data
from ..model_requests import Completion, Messages
from . import DEFAULT_STEPS
from .agent_loop import ValueSubmitted, provide_material, run_agent
from .conversation import MAX_TASK_CHARS, AgentTask
from .material import PREVIEW_CHARS, AgentMaterial, material_text, prepare_inputs, prepare_material

RUN_TARGET, SUBMIT_TARGET = "agent.run", "agent.submit"
MAX_CONTEXT_CHARS = 8_000_000  # of a context; larger ones are files that the agent reads
MAX_MODEL_NAME_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class AgentLimits(BudgetLimits):
    """What an agent may use, within what the run has left that begins it."""

    steps: Annotated[int, Bounds(at_least=1, at_most=1000)] = DEFAULT_STEPS


class ProgramSession(Protocol):
    """A session in which an agent works."""

    session_id: str

    async def execute(
        self, code: str, report_status: Callable[[str], None], inputs: Sequence[InputEntry] = ()
    ) -> Mapping[str, Any]:
        """Run code to its end and return what `run_code` answers with; raises `McpRuntimeError`."""
        ...


class InputSlices(Protocol):
    """Whoever knows the inputs of runs."""

    async def add_slice(
        self, session_id: str, run_id: str, reference: Any, name: str = ""
    ) -> InputEntry:
        """Return a piece of an input of a run as an input of its own; raises `CallFailed`."""
        ...

    async def read_preview(self, entry: InputEntry, size: int) -> str:
        """Return the first bytes of an input as text; raises `CallFailed`."""
        ...


OpenProgramSession = Callable[[CallScope], AbstractAsyncContextManager[ProgramSession]]


class SubAgents:
    """The agents that runs have begun; `open_place` makes a session for one."""

    def __init__(
        self, models: ModelService, input_slices: InputSlices, open_session: OpenProgramSession
    ) -> None:
        self._models = models
        self._input_slices = input_slices
        self._open_session = open_session
        self._agent_waits: dict[
            str, dict[str, str]
        ] = {}  # by run: what its agents wait for, by their sessions

    @staticmethod
    def call_effect(target: str) -> Any:
        """Return what a call may change."""
        return "read" if target == SUBMIT_TARGET else "write"

    async def handle_call(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `agent.run {task, context, budget, schema, model}` or `agent.submit {value}`; raises `CallFailed`."""
        if target == SUBMIT_TARGET:
            return None
        if target == RUN_TARGET:
            return await self._run_agent(current_call_scope(), parse_request(args))
        raise CallFailed("unknown_target", f"Agents are not asked for {target!r:.80}.")

    async def _run_agent(self, caller: CallScope, request: AgentRequest) -> dict[str, Any]:
        """Have an agent work; return what it has submitted, in which session, and what it has used."""
        self._models.check_can_drive_agents(request.model)
        try:
            async with (
                self._models.open_agent_account(caller, request.limits) as purse,
                caller.release_slot(),
                self._open_session(caller) as place,
            ):
                with self._models.charge_session(place.session_id, purse):
                    return await self._run_task(caller, request, purse, place)
        except CallFailed:
            raise
        except McpRuntimeError as exc:
            raise CallFailed("unavailable", f"The agent could not work: {exc}") from None

    async def _run_task(
        self,
        caller: CallScope,
        request: AgentRequest,
        account: BudgetAccount,
        session: ProgramSession,
    ) -> dict[str, Any]:
        desk = SubAgentWorkspace(
            self._models,
            account,
            request.model,
            session,
            lambda text: self._report_status(caller, session.session_id, text),
        )
        value, steps = None, 0
        try:
            context = await provide_material(
                desk, await self._prepare_material(caller, request.context)
            )
            brief = AgentTask(
                request.task,
                request.limits.steps,
                account.budget.depth,
                context,
                schema=request.schema,
            )
            async for event in run_agent(brief, desk):
                if isinstance(event, ValueSubmitted):
                    value, steps = event.value, event.step
        except CallFailed as exc:
            data = {**(exc.data or {}), "session": session.session_id}
            raise CallFailed(exc.kind, exc.message, remedy=exc.remedy, data=data) from None
        finally:
            self._report_status(caller, session.session_id, "")
        return {
            "value": value,
            "session": session.session_id,
            "steps": steps,
            "usage": usage_data(account.budget.used),
        }

    async def _prepare_material(self, caller: CallScope, context: Any) -> AgentMaterial | None:
        """Return how an agent gets what it is given: a reference to a piece becomes an input of its own."""
        if not (isinstance(context, dict) and context.keys() == {SLICE_KEY}):
            return prepare_material(context)
        entry = await self._input_slices.add_slice(caller.session_id, caller.run_id, context)
        begins = await self._input_slices.read_preview(entry, PREVIEW_CHARS)
        size = (entry["size"] if entry["end"] is None else entry["end"]) - entry["start"]
        return prepare_inputs(f"{entry['name']} ({size:,} bytes)", begins, [entry])

    def _report_status(self, caller: CallScope, session_id: str, message: str) -> None:
        """Have whoever looks at a run know what its agents wait for."""
        waits = self._agent_waits.setdefault(caller.run_id, {})
        if waits.get(session_id, "") != message:
            waits.pop(session_id, None) if not message else waits.update({session_id: message})
            caller.report_progress("; ".join(waits.values()))
        if not waits:
            del self._agent_waits[caller.run_id]


@dataclass
class SubAgentWorkspace:
    """Where an agent of a run asks and executes."""

    models: ModelService
    account: BudgetAccount
    model: str
    session: ProgramSession
    report_status: Callable[[str], None]

    async def ask_model(self, messages: Messages) -> Completion:
        """Return what the model says; raises `CallFailed`."""
        return await self.models.complete_for_agent(messages, self.account, self.model)

    async def run_program(self, code: str, inputs: Sequence[Any] = ()) -> Mapping[str, Any]:
        """Run a program to its end, or to that of the agent's time; raises `McpRuntimeError`, `CallFailed`."""
        with self.account.budget.time_limit():
            return await self.session.execute(code, self.report_status, inputs)


@dataclass(frozen=True)
class AgentRequest:
    """What code wants an agent to do."""

    task: str
    context: Any
    limits: AgentLimits
    schema: Mapping[str, Any] | None
    model: str


def parse_request(args: Mapping[str, Any]) -> AgentRequest:
    """Return what code has sent, made sure to be what it should be; raises `CallFailed`."""
    task, context, schema = args.get("task"), args.get("context"), args.get("schema")
    model, budget = args.get("model") or "", args.get("budget") or {}
    if not isinstance(task, str) or not task.strip() or len(task) > MAX_TASK_CHARS:
        raise CallFailed(
            "invalid_arguments", f"A task is a text of 1 to {MAX_TASK_CHARS:,} characters."
        )
    if not isinstance(model, str) or len(model) > MAX_MODEL_NAME_CHARS:
        raise CallFailed("invalid_arguments", "`model` is the name of one.")
    if schema is not None:
        check_schema(schema)
    if len(material_text(context)) > MAX_CONTEXT_CHARS:
        raise CallFailed(
            "invalid_arguments",
            f"A context has at most {MAX_CONTEXT_CHARS:,} characters.",
            remedy="Give each agent a part of it.",
        )
    try:
        limits = AgentLimits.from_mapping(budget)
    except ValueError as exc:
        known = ", ".join(setting_types(AgentLimits))
        raise CallFailed(
            "invalid_arguments", f"The budget is invalid: {exc} It may have {known}."
        ) from None
    return AgentRequest(task, context, limits, schema, model)
