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

from ...errors import CallFailed
from ..json_schemas import find_schema_violation
from ..model_requests import Completion, Messages, ModelUsage
from .conversation import (
    MAX_ANSWER_CHARS,
    AgentTask,
    NoProgramFound,
    build_message,
    describe_result,
    extract_program,
    opening_messages,
    result_message,
    step_heading,
    truncate_conversation,
)
from .material import AgentMaterial

AGENT_FAILED = "agent_failed"
MAX_CONVERSATION_CHARS = (
    200_000  # characters of a conversation, unless the model's window is known to be smaller
)
MIN_CONVERSATION_CHARS = (
    8_000  # characters: a conversation that is too long with so many has a task that is
)
REQUEST_TOO_LONG = "llm_too_long"
MAX_LAST_ANSWER_CHARS = 1_000  # characters of what the model said last, in an error


class AgentWorkspace(Protocol):
    """Where an agent lives."""

    async def ask_model(self, messages: Messages) -> Completion:
        """Return what the model says; raises `CallFailed`."""
        ...

    async def run_program(self, code: str, inputs: Sequence[Any] = ()) -> Mapping[str, Any]:
        """Run a program to its end, with inputs if they are given, and return what `run_code` answers with.

        Raises `McpRuntimeError`.
        """
        ...


@dataclass(frozen=True)
class ModelAnswered:
    """The model has said something."""

    step: int
    text: str
    usage: ModelUsage


@dataclass(frozen=True)
class ProgramStarted:
    """A program is being executed."""

    step: int
    code: str


@dataclass(frozen=True)
class ProgramFinished:
    """A program was executed: `result` is what `run_code` answers with."""

    step: int
    code: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class AnswerRejected:
    """The model was told that its answer, or what it has submitted, will not do."""

    step: int
    problem: str


@dataclass(frozen=True)
class ValueSubmitted:
    """The end: what the program of this step has submitted."""

    step: int
    value: Any
    result: Mapping[str, Any]


AgentEvent = ModelAnswered | ProgramStarted | ProgramFinished | AnswerRejected | ValueSubmitted


async def run_agent(
    task: AgentTask, workspace: AgentWorkspace, max_chars: int = MAX_CONVERSATION_CHARS
) -> AsyncIterator[AgentEvent]:
    """Yield what happens until something that will do is submitted; raises `CallFailed`, by default `agent_failed`."""
    messages, said = opening_messages(task), ""
    for step in range(1, task.max_steps + 1):
        done, max_chars = await _ask_model(workspace, messages, max_chars)
        said = done.text
        yield ModelAnswered(step, said, done.usage)
        messages.append(build_message("assistant", said[:MAX_ANSWER_CHARS]))
        try:
            code = extract_program(said, is_truncated=done.is_truncated)
        except NoProgramFound as problem:
            yield AnswerRejected(step, str(problem))
            messages.append(
                build_message(
                    "user", f"{step_heading(step, task.max_steps, 'no program')}\n{problem}"
                )
            )
            continue
        yield ProgramStarted(step, code)
        result = await workspace.run_program(code)
        yield ProgramFinished(step, code, result)
        if not (result.get("submitted") and result["status"] == "ok"):
            messages.append(build_message("user", result_message(result, step, task.max_steps)))
            continue
        value = result.get("value")
        wrong = "" if task.schema is None else find_schema_violation(value, task.schema)
        if not wrong:
            yield ValueSubmitted(step, value, result)
            return
        yield AnswerRejected(step, wrong)
        text = f"What was submitted does not follow the schema: {wrong}\nSubmit another value."
        messages.append(
            build_message("user", f"{step_heading(step, task.max_steps, 'not submitted')}\n{text}")
        )
    raise CallFailed(
        AGENT_FAILED,
        f"The agent has submitted nothing that will do in {task.max_steps} steps.",
        remedy="Give it more steps, a smaller task, or a better model.",
        data={"steps": task.max_steps, "last": said[:MAX_LAST_ANSWER_CHARS]},
    )


async def _ask_model(
    workspace: AgentWorkspace, messages: Messages, max_chars: int
) -> tuple[Completion, int]:
    """Return what the model says to as much of a conversation as it takes, and how much that is."""
    while True:
        try:
            return await workspace.ask_model(truncate_conversation(messages, max_chars)), max_chars
        except CallFailed as exc:
            if exc.kind != REQUEST_TOO_LONG or max_chars < MIN_CONVERSATION_CHARS:
                raise
        max_chars //= 2


async def provide_material(workspace: AgentWorkspace, material: AgentMaterial | None) -> str:
    """Have the material in the agent's namespace and return what its model is told of it; raises `CallFailed`."""
    if material is None:
        return ""
    result = await workspace.run_program(material.setup_code, material.inputs)
    if result["status"] != "ok":
        raise CallFailed(
            AGENT_FAILED,
            f"The context could not be handed over: {describe_result(result)[:MAX_LAST_ANSWER_CHARS]}",
        )
    return material.description
