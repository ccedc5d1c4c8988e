"""The verb `agent`: a task done by the reference agent, step by step before one's eyes, and what it has cost."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ..capabilities.agent import DEFAULT_STEPS
from ..capabilities.agent.material import LocalFiles, read_file_start
from ..capabilities.model_requests import ModelUsage
from ..config import Config
from ..errors import InvalidRequest, McpRuntimeError
from .console import ConsoleWriter, format_count, format_duration, open_stdout, print_json

if TYPE_CHECKING:
    from .reference_agent.reference_agent import ReferenceAgent, TaskCost, TaskEvent, TaskFinished

MAX_COMMENT_CHARS = 400  # of what a model says beside its program
MAX_CONTEXT_BYTES = (
    1_000_000  # bytes of all files of a context that are handed over as text; more are inputs
)

Options = argparse.Namespace


def add_agent_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    text = "have a task done by a model that writes programs for this server"
    found = verbs.add_parser("agent", help=text, description=text)
    found.set_defaults(verb=run_agent)
    found.add_argument("task")
    found.add_argument(
        "--context", type=Path, metavar="FILE", nargs="+", default=[], help="what the task is about"
    )
    found.add_argument(
        "--schema", type=Path, metavar="FILE", help="JSON schema that the answer has to follow"
    )
    found.add_argument(
        "--recursive", action="store_true", help="by programs, even if one question would do"
    )
    found.add_argument("--model", default="", metavar="NAME", help="instead of the settings' one")
    found.add_argument(
        "--max-steps",
        type=int,
        default=DEFAULT_STEPS,
        metavar="N",
        help=f"programs at most ({DEFAULT_STEPS})",
    )
    found.add_argument("--budget-usd", type=float, metavar="X", help="what it may cost")
    found.add_argument("--json", action="store_true", help="for programs: the end alone")
    found.add_argument("--full", action="store_true", help="long texts whole")


def run_agent(config: Config, options: Options) -> int:
    """Have a task done; print how, and what it has cost."""
    if not options.task.strip():
        raise InvalidRequest("There is no task.")
    if options.max_steps < 1 or (
        options.budget_usd is not None and not 0 < options.budget_usd < math.inf
    ):
        raise InvalidRequest("--max-steps and --budget-usd are numbers over 0.")
    context, schema = load_context_files(options.context), load_schema(options.schema)
    screen = ConsoleWriter(open_stdout(), show_full=options.full)

    async def work() -> TaskFinished:
        from .reference_agent import create_agent

        async with create_agent(
            config,
            model=options.model,
            recursive=options.recursive,
            steps=options.max_steps,
            usd=options.budget_usd,
            roots=[file.resolve().parent for file in options.context],
            on_wait=screen.write_warning,
        ) as made:
            if options.json:
                return await made.execute_task(options.task, context, schema=schema)
            return await stream_task(screen, made, options, context, schema)

    finished = anyio.run(work)
    if options.json:
        print_json(serialize_outcome(finished))
    return 0


async def stream_task(
    screen: ConsoleWriter, made: ReferenceAgent, options: Options, context: Any, schema: Any
) -> TaskFinished:
    """Have a task done before one's eyes; raises `McpRuntimeError` after telling the cost."""
    from .reference_agent.reference_agent import TaskFinished

    screen.write_block("task", options.task)
    try:
        async for event in made.stream(options.task, context, schema=schema):
            show_event(screen, event, options.max_steps)
            if isinstance(event, TaskFinished):
                finished = event
    except McpRuntimeError:
        show_cost(screen, made.cost)
        raise
    show_cost(screen, finished.cost)
    screen.write_footer()
    return finished


def show_event(screen: ConsoleWriter, event: TaskEvent, steps: int) -> None:
    """Write what happens as it happens."""
    from ..capabilities.agent.agent_loop import (
        AnswerRejected,
        ModelAnswered,
        ProgramFinished,
        ProgramStarted,
    )
    from .reference_agent.reference_agent import RouteChosen, SkillsFound, TaskFinished

    match event:
        case RouteChosen():
            screen.write_note(
                f"by {event.route.method}: {screen.truncate_line(event.route.reason, screen.width)}"
            )
        case SkillsFound():
            screen.write_block("skills that may help", event.skills)
        case ModelAnswered():
            screen.write_heading(f"step {event.step} of {steps}")
            said = event.text.partition("```")[0].strip()
            screen.write_note(
                f"  {screen.truncate_line(said[:MAX_COMMENT_CHARS], screen.width - 4)}"
                if said
                else ""
            )
        case ProgramStarted():
            screen.write_program(event.code)
        case ProgramFinished():
            show_run_result(screen, event.result)
        case AnswerRejected():
            screen.write_warning(event.problem)
        case TaskFinished():
            screen.write_heading("answer", "green")
            screen.write_block("value", format_value(event.value), "green")
            if event.skill_note:
                screen.write_note(f"  {screen.truncate_line(event.skill_note, screen.width - 4)}")


def show_run_result(screen: ConsoleWriter, result: Any) -> None:
    """Write what came of a program."""
    calls = sum(
        call.get("times", 1)
        for call in result.get("calls", ())
        if not call["call"].startswith("agent.submit")
    )
    passed = format_duration(result.get("usage", {}).get("total_ms", 0.0) / 1e3)
    facts = [result["status"], passed, *([format_count(calls, "call")] if calls else [])]
    style = "green" if result["status"] == "ok" else "red"
    screen.write_line(f"  {screen.style_text(' · '.join(facts), style)}")
    if not result.get("submitted") and result.get("value") is not None:
        screen.write_block("value", format_value(result["value"]))
    for name in ("stdout", "stderr"):
        if result.get(name):
            screen.write_block(name, result[name], "yellow" if name == "stderr" else "green")
    if error := result.get("error"):
        screen.write_block("error", error["traceback"] or error["message"], "red")


def show_cost(screen: ConsoleWriter, cost: TaskCost) -> None:
    """Write what was paid, by who has asked."""
    screen.write_heading("cost")
    parts: list[tuple[str, ModelUsage]] = [("the agent", cost.own)]
    if cost.programs.calls:
        parts.append(("├─ ask_llm in its programs", cost.programs))
    if cost.agents_started:
        parts.append((f"└─ {format_count(cost.agents_started, 'sub-agent')}", cost.agents))
    for name, used in [*parts, ("in all", cost.total)]:
        screen.write_line(f"  {name:27} {format_usage(used)}")


def format_usage(used: ModelUsage) -> str:
    """Return what questions have cost, as text."""
    usd = f"  {used.usd:.4f} USD" if used.usd else ""
    return f"{format_count(used.calls, 'question'):>15}  {used.tokens_in:>9,} tokens in  {used.tokens_out:>7,} out{usd}"


def format_value(value: Any) -> str:
    """Return a value as text for people."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def serialize_outcome(finished: TaskFinished) -> dict[str, Any]:
    """Return the end as JSON data."""
    cost = finished.cost
    costs = {"own": cost.own, "programs": cost.programs, "agents": cost.agents, "total": cost.total}
    return {
        "value": finished.value,
        "steps": finished.steps,
        "session": finished.session_id,
        "run": finished.run_id,
        "skill": finished.skill_note,
        "agents": cost.agents_started,
        "cost": {name: vars(used) for name, used in costs.items()},
    }


# files ----------------------------------------------------------------------------------------------


def load_context_files(files: Sequence[Path]) -> Any:
    """Return the text of a file, or of several by their names, or the `Files` themselves if they are large or packed.

    None if there are none. Raises `InvalidRequest`.
    """
    named = LocalFiles(tuple(files))
    if named.total_bytes > MAX_CONTEXT_BYTES or named.has_compressed_file:
        return named
    texts: dict[str, str] = {}
    for file in files:
        data = read_file_start(file, MAX_CONTEXT_BYTES + 1)
        if len(data) > MAX_CONTEXT_BYTES:  # of a pipe or a device nobody knows the size before
            raise InvalidRequest(
                f"{file} holds more than {MAX_CONTEXT_BYTES:,} bytes: write them to a plain file first."
            )
        texts[str(file)] = data.decode("utf-8", "replace")
    return next(iter(texts.values())) if len(texts) == 1 else texts or None


def load_schema(file: Path | None) -> Any:
    """Return a JSON schema from a file; raises `InvalidRequest`."""
    if file is None:
        return None
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as exc:
        raise InvalidRequest(f"{file} is no JSON schema: {exc}") from exc
