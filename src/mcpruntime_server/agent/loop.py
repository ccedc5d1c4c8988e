"""The loop of an agent: a model writes a program, it is executed, the model sees what came of it, until one submits.

Rule 1: this is the only such loop. Who asks the model and who executes programs is the caller's matter (`World`).
Rule 2: only `SUBMIT` ends it with a value. All else ends it with an exception, never with a text that looks like an
answer.
Rule 3: every answer of the model is a step, one without a program too, so that it ends whatever the model says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import CallFailed
from ..llm.messages import problem_of
from ..llm.model import Completion, Messages, Usage
from .conversation import KEPT, Brief, NoProgram, facts_of, fitted, headed, message, opening, program_in, shown
from .given import Given

FAILED = "agent_failed"
ROOM = 200_000  # characters of a conversation, unless the model's window is known to be smaller
LEAST_ROOM = 8_000  # characters: a conversation that is too long with so many has a task that is
TOO_LONG = "llm_too_long"
LAST_WORDS = 1_000  # characters of what the model said last, in an error


class World(Protocol):
    """Where an agent lives."""

    async def ask(self, messages: Messages) -> Completion:
        """Return what the model says; raises `CallFailed`."""
        ...

    async def execute(self, code: str, inputs: Sequence[Any] = ()) -> Mapping[str, Any]:
        """Run a program to its end, with inputs if they are given, and return what `run_code` answers with.

        Raises `McpRuntimeError`.
        """
        ...


@dataclass(frozen=True)
class Answered:
    """The model has said something."""

    step: int
    text: str
    usage: Usage


@dataclass(frozen=True)
class Began:
    """A program is being executed."""

    step: int
    code: str


@dataclass(frozen=True)
class Executed:
    """A program was executed: `result` is what `run_code` answers with."""

    step: int
    code: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Corrected:
    """The model was told that its answer, or what it has submitted, will not do."""

    step: int
    problem: str


@dataclass(frozen=True)
class Submitted:
    """The end: what the program of this step has submitted."""

    step: int
    value: Any
    result: Mapping[str, Any]


Event = Answered | Began | Executed | Corrected | Submitted


async def solve(brief: Brief, world: World, room: int = ROOM) -> AsyncIterator[Event]:
    """Yield what happens until something that will do is submitted; raises `CallFailed`, by default `agent_failed`."""
    messages, said = opening(brief), ""
    for step in range(1, brief.steps + 1):
        done, room = await _ask(world, messages, room)
        said = done.text
        yield Answered(step, said, done.usage)
        messages.append(message("assistant", said[:KEPT]))
        try:
            code = program_in(said, is_cut=done.is_cut)
        except NoProgram as problem:
            yield Corrected(step, str(problem))
            messages.append(message("user", f"{headed(step, brief.steps, 'no program')}\n{problem}"))
            continue
        yield Began(step, code)
        result = await world.execute(code)
        yield Executed(step, code, result)
        if not (result.get("submitted") and result["status"] == "ok"):
            messages.append(message("user", shown(result, step, brief.steps)))
            continue
        value = result.get("value")
        wrong = "" if brief.schema is None else problem_of(value, brief.schema)
        if not wrong:
            yield Submitted(step, value, result)
            return
        yield Corrected(step, wrong)
        text = f"What was submitted does not follow the schema: {wrong}\nSubmit another value."
        messages.append(message("user", f"{headed(step, brief.steps, 'not submitted')}\n{text}"))
    raise CallFailed(
        FAILED,
        f"The agent has submitted nothing that will do in {brief.steps} steps.",
        remedy="Give it more steps, a smaller task, or a better model.",
        data={"steps": brief.steps, "last": said[:LAST_WORDS]},
    )


async def _ask(world: World, messages: Messages, room: int) -> tuple[Completion, int]:
    """Return what the model says to as much of a conversation as it takes, and how much that is."""
    while True:
        try:
            return await world.ask(fitted(messages, room)), room
        except CallFailed as exc:
            if exc.kind != TOO_LONG or room < LEAST_ROOM:
                raise
        room //= 2


async def hand_over(world: World, material: Given | None) -> str:
    """Have the material in the agent's namespace and return what its model is told of it; raises `CallFailed`."""
    if material is None:
        return ""
    result = await world.execute(material.code, material.inputs)
    if result["status"] != "ok":
        raise CallFailed(FAILED, f"The context could not be handed over: {facts_of(result)[:LAST_WORDS]}")
    return material.told
