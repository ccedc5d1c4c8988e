"""The suite `mrbs`: tasks on real MCP servers, done in one of four modes.

- `baseline` runs the reference programs;
- `llm` lets a model write programs;
- `recursive` lets these programs ask models, with `ask_llm` and sub-agents;
- `function-calling` gives the same model the same tools as functions, one call a turn.

`--model gold` is the scripted model of `gold_model`, which makes no mistakes. Any other name is one
of litellm, with its key where litellm looks for it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio

from .. import fake_llm
from ..agents import (
    AgentResult,
    FunctionTools,
    do_by_functions,
    do_by_programs,
    open_function_tools,
)
from ..gold_model import (
    GOLD,
    script_calls,
    script_programs,
    script_recursion,
    start_gold_model,
)
from ..models import ChatModel, ModelFailed, Usage
from ..results import RESULTS_FOLDER, ResultRecorder, record_result
from ..statistics import wilson_interval
from . import CATEGORIES, TASKS, make_world, servers_of
from .stage import Stage, open_stage
from .task import Task, fill_in
from .world import SERVERS

Mode = Literal["baseline", "llm", "recursive", "function-calling"]
MODES: tuple[Mode, ...] = ("baseline", "llm", "recursive", "function-calling")
DEFAULT_ATTEMPTS = 6
TURNS_PER_ATTEMPT = 10  # function calling gets so many turns for each program of the other modes
TASK_TIMEOUT_S = 600.0


@dataclass
class Outcome:
    """How one task went."""

    task: str
    category: str
    difficulty: str
    covers: list[str]
    is_right: bool
    problems: list[str]
    seconds: float
    calls: int = 0
    failed_calls: int = 0
    iterations: int = 0
    requests_before_call: int = 0  # to models
    tokens_before_call: int = 0
    result_chars: int = 0  # that a caller of functions got
    usage: Usage = field(default_factory=Usage)

    @property
    def fan_out(self) -> str:
        """The size class of its calls."""
        return (
            "1 to 4 calls"
            if self.calls < 5
            else "5 to 14 calls"
            if self.calls < 15
            else "15 or more"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as JSON data."""
        return {**asdict(self), "fan_out": self.fan_out}


@dataclass
class TaskRunner:
    """Does tasks in one mode."""

    mode: Mode
    seed: int
    attempts: int
    catalogue: int
    stage: Stage
    model: ChatModel | None = None
    functions: FunctionTools | None = None
    script: fake_llm.ModelServer | None = None

    async def run(self, task: Task) -> Outcome:
        """Do a task and judge it; a failing model is a failure of the task."""
        world = make_world(task, self.seed)
        await self._script_model(task)
        self.stage.prepare(world)
        if self.model:
            self.model.usage = Usage()
        began = time.monotonic()
        try:
            with anyio.fail_after(TASK_TIMEOUT_S):
                result = await self._do(task)
        except (ModelFailed, TimeoutError) as exc:
            result = AgentResult(None, 0, 0, 0, f"{type(exc).__name__}: {exc}"[:300])
        seconds = time.monotonic() - began
        judgement = self.stage.judge(task, world, result.value)
        calls = self.stage.list_calls()
        return Outcome(
            task.name,
            task.category,
            task.difficulty,
            list(task.covers),
            judgement.is_right and not result.failure,
            [*filter(None, [result.failure]), *judgement.problems],
            round(seconds, 4),
            len(calls),
            sum(not call["ok"] for call in calls),
            result.iterations,
            result.requests_before_call,
            result.tokens_before_call,
            result.result_chars,
            self.model.usage if self.model else Usage(),
        )

    async def _do(self, task: Task) -> AgentResult:
        world = make_world(task, self.seed)
        prompt, session = fill_in(task.prompt, world), f"{self.mode} {task.name.replace('/', ' ')}"
        if self.mode == "baseline":
            program = fill_in(task.reference, world)
            answer = await self.stage.server.run_program(program, session)
            return AgentResult(answer.value, 1, 0, 0, "" if answer.is_ok else answer.text[:300])
        assert self.model is not None
        if self.mode == "function-calling":
            assert self.functions is not None
            turns = self.attempts * TURNS_PER_ATTEMPT
            definitions = self.functions.define(servers_of(task), self.catalogue)
            return await do_by_functions(
                self.functions,
                definitions,
                self.model,
                prompt,
                self._count_calls,
                max_turns=turns,
            )
        return await do_by_programs(
            self.stage.server,
            self.model,
            prompt,
            session,
            self._count_calls,
            attempts=self.attempts,
            is_recursive=self.mode == "recursive",
        )

    def _count_calls(self) -> int:
        return sum(call["ok"] for call in self.stage.list_calls())

    async def _script_model(self, task: Task) -> None:
        """Give the scripted model its answers, from a run of the reference program."""
        if self.script is None:
            return
        world = make_world(task, self.seed)
        self.stage.prepare(world)
        program = fill_in(task.reference, world)
        answer = await self.stage.server.run_program(program, f"gold {task.name.replace('/', ' ')}")
        calls = self.stage.list_calls()
        if self.mode == "function-calling":
            self.script.set_script(*script_calls(calls, answer.value))
        elif self.mode == "recursive":
            prompt = fill_in(task.prompt, world)
            self.script.set_script(*script_recursion(prompt, program, calls))
        else:
            self.script.set_script(*script_programs(program, calls))


@asynccontextmanager
async def open_runner(options: argparse.Namespace, folder: Path) -> AsyncIterator[TaskRunner]:
    """Yield a runner with everything that the options ask for."""
    async with AsyncExitStack() as stack:
        model: ChatModel | None = None
        script: fake_llm.ModelServer | None = None
        if options.mode != "baseline":
            model = ChatModel(options.model, options.api_base, options.api_key, seed=options.seed)
            if options.model == GOLD:
                model, script = stack.enter_context(start_gold_model(options.seed))
        stage = await stack.enter_async_context(
            open_stage(
                folder,
                servers=choose_servers(options),
                target=options.server,
                latency_ms=options.latency_ms,
                filler=max(0, options.catalogue - TOOL_COUNT) if options.catalogue else 0,
                tool=options.tool,
                prelude=options.prelude.read_text() if options.prelude else "",
                sections=model_table(model) if model and options.mode == "recursive" else {},
                sandbox={"backend": options.backend},
            )
        )
        if options.mode == "recursive":  # no task pays for the start of the process that asks
            await stage.server.run_program("ask_llm('Are you there?')", "first request")
        functions = None
        if options.mode == "function-calling":
            functions = await stack.enter_async_context(open_function_tools(stage.upstreams))
        yield TaskRunner(
            options.mode,
            options.seed,
            options.attempts,
            options.catalogue,
            stage,
            model,
            functions,
            script,
        )


def model_table(model: ChatModel) -> dict[str, Any]:
    """Return the settings with which programs of our server ask the model that writes them."""
    llm = {"model": model.name, "api_base": model.api_base, "api_key": model.api_key}
    return {"llm": {key: value for key, value in llm.items() if value}}


TOOL_COUNT = 48  # of all servers of the suite


async def run_tasks(options: argparse.Namespace, recorder: ResultRecorder) -> list[Outcome]:
    """Do the chosen tasks and record the outcomes; each is printed as soon as it is known."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        async with open_runner(options, Path(folder)) as runner:
            for task in choose_tasks(options):
                outcome = await runner.run(task)
                outcomes.append(outcome)
                record_outcome(recorder, outcome)
                print(format_outcome(outcome), flush=True)
    return outcomes


def choose_tasks(options: argparse.Namespace) -> Sequence[Task]:
    """Return the tasks that the options name; `--limit` takes as many of each category."""
    chosen: list[Task] = []
    for category in options.categories:
        found = [task for task in TASKS if task.category == category]
        found = [task for task in found if not options.only or options.only in task.name]
        chosen += found[: options.limit or None]
    return chosen


def choose_servers(options: argparse.Namespace) -> Sequence[str]:
    """Return the servers that the tasks use; all of them if the catalogue has a size."""
    needed = {server for task in choose_tasks(options) for server in servers_of(task)}
    return [server for server in SERVERS if server in needed or options.catalogue]


def record_outcome(recorder: ResultRecorder, outcome: Outcome) -> None:
    """Add one outcome to the result."""
    labels = {"category": outcome.category, "difficulty": outcome.difficulty}
    labels["fan_out"] = outcome.fan_out
    name = outcome.task
    recorder.add(f"{name}: right", "success", [float(outcome.is_right)], "higher", labels)
    recorder.add(f"{name}: seconds", "s", [outcome.seconds], labels=labels)
    if outcome.usage.turns:
        tokens = outcome.usage.tokens_in + outcome.usage.tokens_out
        recorder.add(f"{name}: tokens", "tokens", [float(tokens)], labels=labels)
        recorder.add(f"{name}: turns", "turns", [float(outcome.usage.turns)], labels=labels)
    recorder.details.setdefault("tasks", []).append(outcome.as_json())


def format_outcome(outcome: Outcome) -> str:
    """Return an outcome as one line."""
    used = outcome.usage
    text = (
        f"{'right' if outcome.is_right else 'WRONG':6}{outcome.task:32}{outcome.difficulty:7}"
        f"{outcome.calls:4} calls {outcome.seconds:7.2f} s"
    )
    if used.turns:
        text += f"{used.turns:4} turns {used.requests_of_programs:3} requests"
        text += f" {used.tokens_in:8,} in {used.tokens_out:7,} out"
    return f"{text}  {'; '.join(outcome.problems)[:160]}".rstrip()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    top = argparse.ArgumentParser(
        prog="python -m bench run mrbs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--mode", choices=MODES, default="baseline")
    top.add_argument("--model", default=GOLD, help=f"default: {GOLD}")
    top.add_argument("--api-base", default="", help="of a server that speaks OpenAI's protocol")
    top.add_argument("--api-key-variable", default="", metavar="NAME", help="has the key")
    top.add_argument("--attempts", type=int, default=DEFAULT_ATTEMPTS, help="programs for a task")
    top.add_argument(
        "--server",
        default="",
        metavar="COMMAND|URL",
        help="another server; {config} in a command is a file with mcpServers",
    )
    top.add_argument("--tool", default="", help="the tool that runs code; default: run_code")
    top.add_argument("--prelude", type=Path, help="code that is put before each program")
    top.add_argument("--backend", default="docker", help="docker or local, of our own server")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--limit", type=int, default=0, help="tasks of each category")
    top.add_argument("--only", default="", help="tasks with this in their name")
    top.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    top.add_argument("--latency-ms", type=float, default=0.0, help="of each call")
    top.add_argument(
        "--catalogue",
        type=int,
        default=0,
        help="so many tools; default: those of the servers in use",
    )
    top.add_argument("--json", type=Path, metavar="FILE")
    return top


def main(arguments: Sequence[str]) -> int:
    """Do the tasks; return 1 if one was wrong, and 2 if none was chosen."""
    options = build_parser().parse_args(arguments)
    options.api_key = os.environ.get(options.api_key_variable, "")
    if options.server and options.mode == "recursive":
        print(
            "The mode recursive needs our own server: its settings name the model.", file=sys.stderr
        )
        return 2
    if not choose_tasks(options):
        print(f"No task has {options.only!r} in its name.", file=sys.stderr)
        return 2
    name = "-".join(filter(None, ["mrbs", options.mode, str(options.catalogue or "")]))
    facts = {"mode": options.mode, "server": options.server, "seed": options.seed}
    facts |= {"model": "" if options.mode == "baseline" else options.model}
    file = options.json or RESULTS_FOLDER / f"{name}.json"
    with record_result("mrbs", file, **facts) as recorder:
        recorder.details["options"] = {
            key: getattr(options, key)
            for key in (
                "attempts",
                "limit",
                "only",
                "categories",
                "latency_ms",
                "catalogue",
                "backend",
            )
        }
        outcomes = anyio.run(run_tasks, options, recorder)
    right = sum(outcome.is_right for outcome in outcomes)
    print(
        f"\n{right} of {len(outcomes)} right, {wilson_interval(right, len(outcomes)).as_percent()}"
    )
    return int(right < len(outcomes))
