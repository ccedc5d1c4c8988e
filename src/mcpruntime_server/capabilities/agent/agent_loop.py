"""The loop of an agent.

A model writes a program, the program runs, and the model sees the result, until a program submits
a value.

Rule 1: this is the only such loop. An `AgentWorkspace` asks the model and runs the programs.
Rule 2: only `SUBMIT` ends it with a value. Everything else ends it with an exception, never with a
text that looks like an answer.
Rule 3: every answer of the model counts as a step, even one without a program. So the loop always
ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from anyio import to_thread

from ...errors import CallFailed
from ..model_requests import Completion, Messages, ModelUsage
from ..schema_checks import check_value
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
from .program_result import ProgramResult

AGENT_FAILED = "agent_failed"
MAX_CONVERSATION_CHARS = 200_000  # less if the model has a lower known limit
MIN_CONVERSATION_CHARS = 8_000  # if the model refuses even these, the task is too long
REQUEST_TOO_LONG = "llm_too_long"
MAX_LAST_ANSWER_CHARS = 1_000  # of the model's last answer, in an error


class AgentWorkspace(Protocol):
    """The model and the session of an agent."""

    async def ask_model(self, messages: Messages) -> Completion:
        """Return the model's completion; raises `CallFailed`."""
        ...

    async def run_program(self, code: str, inputs: Sequence[Any] = ()) -> ProgramResult:
        """Run a program to its end, on new inputs if there are any; raises `McpRuntimeError`."""
        ...


@dataclass(frozen=True)
class ModelAnswered:
    """The model answered."""

    step: int
    text: str
    usage: ModelUsage


@dataclass(frozen=True)
class ProgramStarted:
    """A program is about to run."""

    step: int
    code: str


@dataclass(frozen=True)
class ProgramFinished:
    """A program has run."""

    step: int
    code: str
    result: ProgramResult


@dataclass(frozen=True)
class AnswerRejected:
    """The answer contains no program, or the submitted value violates the schema."""

    step: int
    problem: str


@dataclass(frozen=True)
class ValueSubmitted:
    """The last event: the program of this step submitted a value."""

    step: int
    value: Any
    result: ProgramResult


AgentEvent = ModelAnswered | ProgramStarted | ProgramFinished | AnswerRejected | ValueSubmitted


async def run_agent(
    task: AgentTask, workspace: AgentWorkspace, max_chars: int = MAX_CONVERSATION_CHARS
) -> AsyncIterator[AgentEvent]:
    """Yield events until a program submits a value that follows the schema.

    Raises `CallFailed`, with `agent_failed` after the last step.
    """
    messages = opening_messages(task)
    answer = ""
    for step in range(1, task.max_steps + 1):
        completion, max_chars = await _ask_model(workspace, messages, max_chars)
        answer = completion.text
        yield ModelAnswered(step, answer, completion.usage)
        messages.append(build_message("assistant", answer[:MAX_ANSWER_CHARS]))
        try:
            code = await to_thread.run_sync(
                partial(extract_program, answer, is_truncated=completion.is_truncated)
            )
        except NoProgramFound as problem:
            yield AnswerRejected(step, str(problem))
            heading = step_heading(step, task.max_steps, "no program")
            messages.append(build_message("user", f"{heading}\n{problem}"))
            continue
        yield ProgramStarted(step, code)
        result = await workspace.run_program(code)
        yield ProgramFinished(step, code, result)
        if not result.get("submitted") or result["status"] != "ok":
            messages.append(build_message("user", result_message(result, step, task.max_steps)))
            continue
        value = result.get("value")
        violation = "" if task.schema is None else await check_value(value, task.schema)
        if not violation:
            yield ValueSubmitted(step, value, result)
            return
        yield AnswerRejected(step, violation)
        heading = step_heading(step, task.max_steps, "not submitted")
        problem_text = f"The submitted value does not follow the schema: {violation}"
        messages.append(build_message("user", f"{heading}\n{problem_text}\nSubmit another value."))
    raise CallFailed(
        AGENT_FAILED,
        f"The agent submitted no valid value in {task.max_steps} steps.",
        remedy="Give it more steps, a smaller task, or a better model.",
        data={"steps": task.max_steps, "last": answer[:MAX_LAST_ANSWER_CHARS]},
    )


async def _ask_model(
    workspace: AgentWorkspace, messages: Messages, max_chars: int
) -> tuple[Completion, int]:
    """Return a completion and the limit of characters for the next prompt.

    The limit is halved until the model accepts the prompt.
    """
    while True:
        try:
            return await workspace.ask_model(truncate_conversation(messages, max_chars)), max_chars
        except CallFailed as exc:
            if exc.kind != REQUEST_TOO_LONG or max_chars < MIN_CONVERSATION_CHARS:
                raise
        max_chars //= 2


async def provide_material(workspace: AgentWorkspace, material: AgentMaterial | None) -> str:
    """Set CONTEXT in the agent's session and return the description for the model.

    Raises `CallFailed`.
    """
    if material is None:
        return ""
    result = await workspace.run_program(material.setup_code, material.inputs)
    if result["status"] != "ok":
        problem = describe_result(result)[:MAX_LAST_ANSWER_CHARS]
        raise CallFailed(AGENT_FAILED, f"The context could not be provided: {problem}")
    return material.description
