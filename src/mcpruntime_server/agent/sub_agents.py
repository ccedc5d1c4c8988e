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

from pydantic import Field, ValidationError

from ..config import Limits
from ..errors import CallFailed, McpRuntimeError
from ..journal.events import Input
from ..journal.scope import Scope, scope
from ..llm.accounts import Purse
from ..llm.messages import check_schema
from ..llm.model import Completion, Messages
from ..llm.service import Models, cost_of
from . import STEPS
from .conversation import TASK_CHARS, Brief
from .given import BEGINS, Given, given, given_inputs, text_of
from .loop import Submitted, hand_over, solve

RUN, SUBMIT = "agent.run", "agent.submit"
REFERENCE = "$piece"  # the only key of what stands for a piece of an input
CONTEXT_CHARS = 8_000_000  # of a context; larger ones are files that the agent reads
MODEL_CHARS = 200


class AgentLimits(Limits):
    """What an agent may use, within what the run has left that begins it."""

    steps: Annotated[int, Field(ge=1, le=1000)] = STEPS


class Place(Protocol):
    """A session in which an agent works."""

    id: str

    async def execute(self, code: str, tell: Callable[[str], None], inputs: Sequence[Input] = ()) -> Mapping[str, Any]:
        """Run code to its end and return what `run_code` answers with; raises `McpRuntimeError`."""
        ...


class Pieces(Protocol):
    """Whoever knows the inputs of runs."""

    async def of_piece(self, session: str, run: str, reference: Any, name: str = "") -> Input:
        """Return a piece of an input of a run as an input of its own; raises `CallFailed`."""
        ...

    async def beginning(self, entry: Input, size: int) -> str:
        """Return the first bytes of an input as text; raises `CallFailed`."""
        ...


OpenPlace = Callable[[Scope], AbstractAsyncContextManager[Place]]


class SubAgents:
    """The agents that runs have begun; `open_place` makes a session for one."""

    open_place: OpenPlace

    def __init__(self, models: Models, pieces: Pieces) -> None:
        self._models = models
        self._pieces = pieces
        self._waits: dict[str, dict[str, str]] = {}  # by run: what its agents wait for, by their sessions

    @staticmethod
    def effect(target: str) -> Any:
        """Return what a call may change."""
        return "read" if target == SUBMIT else "write"

    async def answer(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `agent.run {task, context, budget, schema, model}` or `agent.submit {value}`; raises `CallFailed`."""
        if target == SUBMIT:
            return None
        if target == RUN:
            return await self._run(scope(), parsed(args))
        raise CallFailed("unknown_target", f"Agents are not asked for {target!r:.80}.")

    async def _run(self, asking: Scope, wanted: Wanted) -> dict[str, Any]:
        """Have an agent work; return what it has submitted, in which session, and what it has used."""
        self._models.check_drives(wanted.model)
        try:
            async with (
                self._models.hiring(asking, wanted.limits) as purse,
                asking.away(),
                self.open_place(asking) as place,
            ):
                with self._models.agent(place.id, purse):
                    return await self._drive(asking, wanted, purse, place)
        except CallFailed:
            raise
        except McpRuntimeError as exc:
            raise CallFailed("unavailable", f"The agent could not work: {exc}") from None

    async def _drive(self, asking: Scope, wanted: Wanted, purse: Purse, place: Place) -> dict[str, Any]:
        desk = Desk(self._models, purse, wanted.model, place, lambda text: self._tell(asking, place.id, text))
        value, steps = None, 0
        try:
            context = await hand_over(desk, await self._material(asking, wanted.context))
            brief = Brief(wanted.task, wanted.limits.steps, purse.budget.depth, context, schema=wanted.schema)
            async for event in solve(brief, desk):
                if isinstance(event, Submitted):
                    value, steps = event.value, event.step
        except CallFailed as exc:
            data = {**(exc.data or {}), "session": place.id}
            raise CallFailed(exc.kind, exc.message, remedy=exc.remedy, data=data) from None
        finally:
            self._tell(asking, place.id, "")
        return {"value": value, "session": place.id, "steps": steps, "usage": cost_of(purse.budget.used)}

    async def _material(self, asking: Scope, context: Any) -> Given | None:
        """Return how an agent gets what it is given: a reference to a piece becomes an input of its own."""
        if not (isinstance(context, dict) and context.keys() == {REFERENCE}):
            return given(context)
        entry = await self._pieces.of_piece(asking.session, asking.run, context)
        begins = await self._pieces.beginning(entry, BEGINS)
        size = (entry["size"] if entry["end"] is None else entry["end"]) - entry["start"]
        return given_inputs(f"{entry['name']} ({size:,} bytes)", begins, [entry])

    def _tell(self, asking: Scope, session: str, text: str) -> None:
        """Have whoever looks at a run know what its agents wait for."""
        waits = self._waits.setdefault(asking.run, {})
        if waits.get(session, "") != text:
            waits.pop(session, None) if not text else waits.update({session: text})
            asking.tell("; ".join(waits.values()))
        if not waits:
            del self._waits[asking.run]


@dataclass
class Desk:
    """Where an agent of a run asks and executes."""

    models: Models
    purse: Purse
    model: str
    place: Place
    tell: Callable[[str], None]

    async def ask(self, messages: Messages) -> Completion:
        """Return what the model says; raises `CallFailed`."""
        return await self.models.drive(messages, self.purse, self.model)

    async def execute(self, code: str, inputs: Sequence[Any] = ()) -> Mapping[str, Any]:
        """Run a program to its end, or to that of the agent's time; raises `McpRuntimeError`, `CallFailed`."""
        with self.purse.budget.in_time():
            return await self.place.execute(code, self.tell, inputs)


@dataclass(frozen=True)
class Wanted:
    """What code wants an agent to do."""

    task: str
    context: Any
    limits: AgentLimits
    schema: Mapping[str, Any] | None
    model: str


def parsed(args: Mapping[str, Any]) -> Wanted:
    """Return what code has sent, made sure to be what it should be; raises `CallFailed`."""
    task, context, schema = args.get("task"), args.get("context"), args.get("schema")
    model, budget = args.get("model") or "", args.get("budget") or {}
    if not isinstance(task, str) or not task.strip() or len(task) > TASK_CHARS:
        raise CallFailed("invalid_arguments", f"A task is a text of 1 to {TASK_CHARS:,} characters.")
    if not isinstance(model, str) or len(model) > MODEL_CHARS:
        raise CallFailed("invalid_arguments", "`model` is the name of one.")
    if schema is not None:
        check_schema(schema)
    if len(text_of(context)) > CONTEXT_CHARS:
        raise CallFailed(
            "invalid_arguments",
            f"A context has at most {CONTEXT_CHARS:,} characters.",
            remedy="Give each agent a part of it.",
        )
    try:
        limits = AgentLimits.model_validate(budget)
    except ValidationError as exc:
        problem = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'budget'}: {each['msg']}" for each in exc.errors()[:3]
        )
        known = ", ".join(AgentLimits.model_fields)
        raise CallFailed("invalid_arguments", f"The budget will not do: {problem}. It may have {known}.") from None
    return Wanted(task, context, limits, schema, model)
