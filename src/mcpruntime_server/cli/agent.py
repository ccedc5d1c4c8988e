"""The command `agent`: the reference agent does a task while one watches, and says what it cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..capabilities.agent import DEFAULT_STEPS
from ..capabilities.model_requests import ModelUsage
from ..client.reference_agent.local_files import LocalFiles, read_file_start
from ..config import Config
from ..errors import InvalidRequest, McpRuntimeError
from ..protocol.payloads import JsonObject
from ..protocol.presentation import format_error
from .console import ConsoleWriter, format_count, format_duration
from .options import full_option, json_option, pass_config
from .signals import run_until_signal
from .terminal_text import print_json

if TYPE_CHECKING:
    from ..client.reference_agent.reference_agent import (
        ReferenceAgent,
        TaskCost,
        TaskEvent,
        TaskFinished,
    )

MAX_COMMENT_CHARS = 400  # of the text that a model writes beside its program
MAX_CONTEXT_BYTES = 1_000_000  # of files that are passed as text; larger ones become inputs

path_type = click.Path(path_type=Path)


@dataclass(frozen=True)
class AgentOptions:
    """What the agent is asked to do."""

    text: str
    context: Any
    schema: Any
    max_steps: int


@click.command("agent")
@click.argument("task")
@click.option(
    "--context",
    "files",
    type=path_type,
    multiple=True,
    metavar="FILE",
    help="A file that the task is about. May be repeated.",
)
@click.option(
    "--schema",
    "schema_file",
    type=path_type,
    metavar="FILE",
    help="JSON schema that the answer has to follow.",
)
@click.option(
    "--recursive", is_flag=True, help="Work by programs, even if one model request would do."
)
@click.option("--model", default="", metavar="NAME", help="Instead of the model of the settings.")
@click.option(
    "--max-steps",
    type=int,
    default=DEFAULT_STEPS,
    show_default=True,
    metavar="N",
    help="Maximum number of programs.",
)
@click.option("--budget-usd", type=float, metavar="X", help="Maximum cost.")
@json_option
@full_option
@pass_config
def agent_command(
    config: Config,
    *,
    task: str,
    files: tuple[Path, ...],
    schema_file: Path | None,
    recursive: bool,
    model: str,
    max_steps: int,
    budget_usd: float | None,
    as_json: bool,
    show_full: bool,
) -> int:
    """Let a model do TASK by writing programs for this server."""
    if not task.strip():
        raise InvalidRequest("The task is empty.")
    if max_steps < 1 or (budget_usd is not None and not 0 < budget_usd < math.inf):
        raise InvalidRequest("--max-steps and --budget-usd must be greater than 0.")
    agent_task = AgentOptions(task, load_context_files(files), load_schema(schema_file), max_steps)
    writer = ConsoleWriter(show_full=show_full)

    async def work() -> TaskFinished:
        from ..client.reference_agent import create_agent
        from .serve import log_to_file

        log_to_file(config)
        async with create_agent(
            config,
            model=model,
            recursive=recursive,
            steps=max_steps,
            usd=budget_usd,
            roots=[file.resolve().parent for file in files],
            on_wait=writer.write_warning,
        ) as agent:
            if as_json:
                return await agent.execute_task(task, agent_task.context, schema=agent_task.schema)
            return await stream_task(writer, agent, agent_task)

    finished = run_until_signal(work)
    if as_json:
        print_json(serialize_outcome(finished))
    return 0


async def stream_task(
    writer: ConsoleWriter, agent: ReferenceAgent, task: AgentOptions
) -> TaskFinished:
    """Show a task being done; raises `McpRuntimeError`, but shows the cost first."""
    from ..client.reference_agent.reference_agent import TaskFinished

    writer.write_block("task", task.text)
    try:
        async for event in agent.stream(task.text, task.context, schema=task.schema):
            show_task_event(writer, event, task.max_steps)
            if isinstance(event, TaskFinished):
                finished = event
    except McpRuntimeError:
        show_cost(writer, agent.cost)
        raise
    show_cost(writer, finished.cost)
    writer.write_footer()
    return finished


def show_task_event(writer: ConsoleWriter, event: TaskEvent, steps: int) -> None:
    """Show a step of the task."""
    from ..capabilities.agent.agent_loop import (
        AnswerRejected,
        ModelAnswered,
        ProgramFinished,
        ProgramStarted,
    )
    from ..client.reference_agent.reference_agent import RouteChosen, SkillsFound, TaskFinished

    match event:
        case RouteChosen():
            reason = writer.truncate_line(event.route.reason, writer.width)
            writer.write_note(f"by {event.route.method}: {reason}")
        case SkillsFound():
            writer.write_block("skills that may help", event.skills)
        case ModelAnswered():
            writer.write_heading(f"step {event.step} of {steps}")
            comment = event.text.partition("```")[0].strip()[:MAX_COMMENT_CHARS]
            if comment:
                writer.write_note(f"  {writer.truncate_line(comment, writer.width - 4)}")
        case ProgramStarted():
            writer.write_program(event.code)
        case ProgramFinished():
            show_run_result(writer, event.result)
        case AnswerRejected():
            writer.write_warning(event.problem)
        case TaskFinished():
            writer.write_heading("answer", "green")
            writer.write_block("value", format_answer(event.value), "green")
            if event.skill_note:
                writer.write_note(f"  {writer.truncate_line(event.skill_note, writer.width - 4)}")


def show_run_result(writer: ConsoleWriter, result: Any) -> None:
    """Show the result of a program, as `run_code` returned it."""
    calls = sum(
        call.get("times", 1)
        for call in result.get("calls", ())
        if not call["call"].startswith("agent.submit")
    )
    facts = [result["status"]]
    if wall_ms := result.get("usage", {}).get("wall_ms"):
        facts.append(format_duration(wall_ms / 1e3))
    if calls:
        facts.append(format_count(calls, "call"))
    style = "green" if result["status"] == "ok" else "red"
    writer.write_line("  ", (" · ".join(facts), style))
    if not result.get("submitted") and result.get("value") is not None:
        writer.write_block("value", format_answer(result["value"]))
    if result.get("stdout"):
        writer.write_block("stdout", result["stdout"], "green")
    if result.get("stderr"):
        writer.write_block("stderr", result["stderr"], "yellow")
    if error := result.get("error"):
        writer.write_block(
            "error", format_error(error["type"], error["message"], error["traceback"]), "red"
        )


def show_cost(writer: ConsoleWriter, cost: TaskCost) -> None:
    """Show what the task cost: the agent, model requests of its programs, and its sub-agents."""
    writer.write_heading("cost")
    parts: list[tuple[str, ModelUsage]] = [("the agent", cost.own)]
    if cost.programs.calls:
        parts.append(("├─ ask_llm in its programs", cost.programs))
    if cost.agents_started:
        parts.append((f"└─ {format_count(cost.agents_started, 'sub-agent')}", cost.agents))
    for name, usage in [*parts, ("in all", cost.total)]:
        writer.write_line(f"  {name:27} {format_usage(usage)}")


def format_usage(usage: ModelUsage) -> str:
    """Return the figures of model requests as aligned text."""
    requests = format_count(usage.calls, "request")
    text = f"{requests:>15}  {usage.tokens_in:>9,} tokens in  {usage.tokens_out:>7,} out"
    return f"{text}  {usage.usd:.4f} USD" if usage.usd else text


def format_answer(value: Any) -> str:
    """Return a value as text for people."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def serialize_outcome(finished: TaskFinished) -> JsonObject:
    """Return the outcome of a task as JSON data."""
    cost = finished.cost
    costs = {"own": cost.own, "programs": cost.programs, "agents": cost.agents, "total": cost.total}
    return {
        "value": finished.value,
        "steps": finished.steps,
        "session": finished.session_id,
        "run": finished.run_id,
        "skill": finished.skill_note,
        "agents": cost.agents_started,
        "cost": {name: vars(usage) for name, usage in costs.items()},
    }


# files --------------------------------------------------------------------------------------------


def load_context_files(files: Sequence[Path]) -> Any:
    """Return the text of one file, or the texts of several by their names; None without files.

    Large or compressed files are returned as `LocalFiles`. Raises `InvalidRequest`.
    """
    local_files = LocalFiles(tuple(files))
    if local_files.total_bytes > MAX_CONTEXT_BYTES or local_files.has_compressed_file:
        return local_files
    texts: dict[str, str] = {}
    for file in files:
        data = read_file_start(file, MAX_CONTEXT_BYTES + 1)
        if len(data) > MAX_CONTEXT_BYTES:  # the size of a pipe is not known before it is read
            raise InvalidRequest(
                f"{file} holds more than {MAX_CONTEXT_BYTES:,} bytes.",
                remedy="Write them to a regular file first.",
            )
        texts[str(file)] = data.decode("utf-8", "replace")
    if len(texts) == 1:
        return next(iter(texts.values()))
    return texts or None


def load_schema(file: Path | None) -> Any:
    """Return a JSON schema from a file; raises `InvalidRequest`."""
    if file is None:
        return None
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as exc:
        raise InvalidRequest(f"{file} is not a JSON schema: {exc}") from exc
