"""The verb `agent`: a task done by the reference agent, step by step before one's eyes, and what it has cost."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ..agent import STEPS
from ..agent.given import Files, begins_with
from ..config import Config
from ..errors import InvalidRequest, McpRuntimeError
from ..llm.model import Usage
from .printing import Screen, many, print_json, printer, took

if TYPE_CHECKING:
    from ..agent.reference import Agent, Cost, Event, Finished

SAID_CHARS = 400  # of what a model says beside its program
MAX_CONTEXT = 1_000_000  # bytes of all files of a context that are handed over as text; more are inputs

Options = argparse.Namespace


def add_agent(verbs: Any) -> None:
    """Add the verb to the command line."""
    text = "have a task done by a model that writes programs for this server"
    found = verbs.add_parser("agent", help=text, description=text)
    found.set_defaults(verb=agent)
    found.add_argument("task")
    found.add_argument("--context", type=Path, metavar="FILE", nargs="+", default=[], help="what the task is about")
    found.add_argument("--schema", type=Path, metavar="FILE", help="JSON schema that the answer has to follow")
    found.add_argument("--recursive", action="store_true", help="by programs, even if one question would do")
    found.add_argument("--model", default="", metavar="NAME", help="instead of the settings' one")
    found.add_argument("--max-steps", type=int, default=STEPS, metavar="N", help=f"programs at most ({STEPS})")
    found.add_argument("--budget-usd", type=float, metavar="X", help="what it may cost")
    found.add_argument("--json", action="store_true", help="for programs: the end alone")
    found.add_argument("--full", action="store_true", help="long texts whole")


def agent(config: Config, options: Options) -> int:
    """Have a task done; print how, and what it has cost."""
    if not options.task.strip():
        raise InvalidRequest("There is no task.")
    if options.max_steps < 1 or (options.budget_usd is not None and not 0 < options.budget_usd < math.inf):
        raise InvalidRequest("--max-steps and --budget-usd are numbers over 0.")
    context, schema = read_context(options.context), read_schema(options.schema)
    screen = Screen(printer(), full=options.full)

    async def work() -> Finished:
        from ..agent import create_agent

        async with create_agent(
            config,
            model=options.model,
            recursive=options.recursive,
            steps=options.max_steps,
            usd=options.budget_usd,
            roots=[file.resolve().parent for file in options.context],
            on_wait=screen.warn,
        ) as made:
            if options.json:
                return await made.execute_task(options.task, context, schema=schema)
            return await shown(screen, made, options, context, schema)

    finished = anyio.run(work)
    if options.json:
        print_json(data_of(finished))
    return 0


async def shown(screen: Screen, made: Agent, options: Options, context: Any, schema: Any) -> Finished:
    """Have a task done before one's eyes; raises `McpRuntimeError` after telling the cost."""
    from ..agent.reference import Finished

    screen.block("task", options.task)
    try:
        async for event in made.stream(options.task, context, schema=schema):
            show(screen, event, options.max_steps)
            if isinstance(event, Finished):
                finished = event
    except McpRuntimeError:
        show_cost(screen, made.cost)
        raise
    show_cost(screen, finished.cost)
    screen.end()
    return finished


def show(screen: Screen, event: Event, steps: int) -> None:
    """Write what happens as it happens."""
    from ..agent.loop import Answered, Began, Corrected, Executed
    from ..agent.reference import Finished, Found, Routed

    match event:
        case Routed():
            screen.note(f"by {event.route.way}: {screen.one_line(event.route.reason, screen.width)}")
        case Found():
            screen.block("skills that may help", event.skills)
        case Answered():
            screen.heading(f"step {event.step} of {steps}")
            said = event.text.partition("```")[0].strip()
            screen.note(f"  {screen.one_line(said[:SAID_CHARS], screen.width - 4)}" if said else "")
        case Began():
            screen.program(event.code)
        case Executed():
            show_result(screen, event.result)
        case Corrected():
            screen.warn(event.problem)
        case Finished():
            screen.heading("answer", "green")
            screen.block("value", text_of(event.value), "green")
            if event.kept:
                screen.note(f"  {screen.one_line(event.kept, screen.width - 4)}")


def show_result(screen: Screen, result: Any) -> None:
    """Write what came of a program."""
    calls = sum(call.get("times", 1) for call in result.get("calls", ()) if not call["call"].startswith("agent.submit"))
    passed = took(result.get("usage", {}).get("total_ms", 0.0) / 1e3)
    facts = [result["status"], passed, *([many(calls, "call")] if calls else [])]
    style = "green" if result["status"] == "ok" else "red"
    screen.line(f"  {screen.paint(' · '.join(facts), style)}")
    if not result.get("submitted") and result.get("value") is not None:
        screen.block("value", text_of(result["value"]))
    for name in ("stdout", "stderr"):
        if result.get(name):
            screen.block(name, result[name], "yellow" if name == "stderr" else "green")
    if error := result.get("error"):
        screen.block("error", error["traceback"] or error["message"], "red")


def show_cost(screen: Screen, cost: Cost) -> None:
    """Write what was paid, by who has asked."""
    screen.heading("cost")
    parts: list[tuple[str, Usage]] = [("the agent", cost.own)]
    if cost.programs.calls:
        parts.append(("├─ ask_llm in its programs", cost.programs))
    if cost.begun:
        parts.append((f"└─ {many(cost.begun, 'sub-agent')}", cost.agents))
    for name, used in [*parts, ("in all", cost.total)]:
        screen.line(f"  {name:27} {told(used)}")


def told(used: Usage) -> str:
    """Return what questions have cost, as text."""
    usd = f"  {used.usd:.4f} USD" if used.usd else ""
    return f"{many(used.calls, 'question'):>15}  {used.tokens_in:>9,} tokens in  {used.tokens_out:>7,} out{usd}"


def text_of(value: Any) -> str:
    """Return a value as text for people."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def data_of(finished: Finished) -> dict[str, Any]:
    """Return the end as JSON data."""
    cost = finished.cost
    costs = {"own": cost.own, "programs": cost.programs, "agents": cost.agents, "total": cost.total}
    return {
        "value": finished.value,
        "steps": finished.steps,
        "session": finished.session,
        "run": finished.run,
        "skill": finished.kept,
        "agents": cost.begun,
        "cost": {name: vars(used) for name, used in costs.items()},
    }


# files ----------------------------------------------------------------------------------------------


def read_context(files: Sequence[Path]) -> Any:
    """Return the text of a file, or of several by their names, or the `Files` themselves if they are large or packed.

    None if there are none. Raises `InvalidRequest`.
    """
    named = Files(tuple(files))
    if named.size > MAX_CONTEXT or named.are_packed:
        return named
    texts: dict[str, str] = {}
    for file in files:
        data = begins_with(file, MAX_CONTEXT + 1)
        if len(data) > MAX_CONTEXT:  # of a pipe or a device nobody knows the size before
            raise InvalidRequest(f"{file} holds more than {MAX_CONTEXT:,} bytes: write them to a plain file first.")
        texts[str(file)] = data.decode("utf-8", "replace")
    return next(iter(texts.values())) if len(texts) == 1 else texts or None


def read_schema(file: Path | None) -> Any:
    """Return a JSON schema from a file; raises `InvalidRequest`."""
    if file is None:
        return None
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as exc:
        raise InvalidRequest(f"{file} is no JSON schema: {exc}") from exc
