"""The suite `skills`: tasks in SkillsBench's layout, with and without skills, in four conditions.

- `none`: the task alone;
- `curated`: the skills that come with the task;
- `self-generated`: skills that the model writes before it sees the data;
- `runtime-evolved`: skills that our server has made of earlier attempts, most of them at other
  tasks. They are saved whatever the tests say, because an agent would not know it.

The tests of a task decide, in a session of their own. `--mode oracle` runs the reference solution
in place of a model, which checks tasks and harness. `--model gold` is a scripted model that submits
the reference solution. Everything but a real model works without a network.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio

from .. import fake_llm
from ..agents import ANSWER_MARK, do_by_programs
from ..gold_model import GOLD, start_gold_model
from ..harness import first_text
from ..models import ChatModel, Message, ModelFailed, Usage
from ..results import RESULTS_FOLDER, ResultRecorder, record_result
from ..statistics import bootstrap_paired_difference, normalized_gain, wilson_interval
from .dockerfile import SKILLS_FOLDER, place_files
from .stage import SkillsStage, build_image, open_stage
from .task import Skill, SkillsTask, read_tasks

OWN_TASKS = Path(__file__).with_name("tasks")
CONDITIONS = ("none", "curated", "self-generated", "runtime-evolved")
DEFAULT_ATTEMPTS = 5  # programs that a model may write for one attempt
SKILL_BLOCK = re.compile(r"```skill\n(.*?)```", re.DOTALL)
PROMPT = """\
{instruction}

Paths of the task are below /root, which is the working folder of your programs; there is no
network. The files that you leave there are judged, and not your answer, which is one sentence.
{skills}"""
SKILLS_PROMPT = """
There are skills in /root/skills. Read the SKILL.md of one that fits before you begin.
{lines}
"""
EVOLVED_PROMPT = """
There are skills from earlier work. Each is a function: from skills.NAME import run.
{text}
"""
GENERATE_PROMPT = """\
You will do a task. First write one to three skills for it: what somebody who does it well knows
about its formats, rules and tools. Put each into a block fenced with ```skill and ```. A skill
begins with front matter: a line ---, the lines name: (lower case and hyphens) and description:,
and a line ---.
"""
GOLD_SKILL = "```skill\n---\nname: reference\ndescription: Nothing.\n---\nRun the solution.\n```"
GOLD_PROGRAM = """\
import os, subprocess
subprocess.run(["bash", "-c", {solution!r}], cwd="/root", check=True, capture_output=True,
               env={{**os.environ, "HOME": "/root"}})
"The files are written."
"""


@dataclass
class Attempt:
    """One attempt at a task under one condition, and the verdict of the task's tests."""

    condition: str
    task: str
    number: int
    difficulty: str
    has_passed: bool = False
    problem: str = ""
    seconds: float = 0.0
    offered: list[str] = field(default_factory=list)  # names of skills
    left_out: list[str] = field(default_factory=list)  # of the task's Dockerfile
    saved: str = ""  # what the server said of the skill that was made of it
    iterations: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Offer:
    """Skills as an agent gets them: their names, a part of the prompt, and files."""

    names: list[str] = field(default_factory=list)
    prompt: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ConditionRunner:
    """Does tasks under one condition, on a server that no other condition uses."""

    condition: str
    mode: str
    attempts: int
    stage: SkillsStage
    model: ChatModel | None = None
    script: fake_llm.ModelServer | None = None

    async def run(self, task: SkillsTask, number: int) -> Attempt:
        """Do a task once; a failing model or server is a failure of the attempt."""
        attempt = Attempt(self.condition, task.name, number, task.difficulty)
        session = f"{self.condition} {task.name} {number}"
        if self.model:
            self.model.usage = attempt.usage
        self._script_model(task)
        began = time.monotonic()
        try:
            with anyio.fail_after(task.timeout_s + 60):
                offer = await self._offer_skills(task)
                attempt.offered = offer.names
                files = {**place_files(task.environment.placements), **offer.files}
                failed = await self.stage.prepare(session, files, task.environment)
                attempt.left_out = [*task.environment.left_out, *failed]
                await self._do(task, session, offer, attempt)
                attempt.seconds = round(time.monotonic() - began, 3)
                files = await self.stage.read_files(session)
                verdict = await self.stage.verify(task, f"{session} verified", files)
            attempt.has_passed = verdict.has_passed and not attempt.problem
            attempt.problem = attempt.problem or ("" if verdict.has_passed else verdict.output)
        except (ModelFailed, TimeoutError, RuntimeError) as exc:
            attempt.problem = f"{type(exc).__name__}: {exc}"
        return attempt

    async def _do(self, task: SkillsTask, session: str, offer: Offer, attempt: Attempt) -> None:
        if self.model is None:
            attempt.problem = await self.stage.solve(task, session)
            return
        prompt = PROMPT.format(instruction=task.instruction, skills=offer.prompt)
        result = await do_by_programs(
            self.stage.server, self.model, prompt, session, lambda: 0, attempts=self.attempts
        )
        attempt.iterations, attempt.problem = result.iterations, result.failure
        if self.condition == "runtime-evolved":
            attempt.saved = await self._save_skill(task)

    async def _offer_skills(self, task: SkillsTask) -> Offer:
        if self.condition == "curated":
            return offer_folders(task.curated_skills())
        if self.condition == "self-generated" and self.model:
            return offer_folders(await generate_skills(self.model, task.instruction))
        if self.condition == "runtime-evolved":
            result = await self.stage.server.client.call_tool("list_skills", {})
            found = (result.structured_content or {}).get("skills", ())
            names = [str(each["name"]) for each in found]
            return Offer(names, EVOLVED_PROMPT.format(text=first_text(result)) if names else "")
        return Offer()

    async def _save_skill(self, task: SkillsTask) -> str:
        """Ask the server to make a skill of the last run; return what it says."""
        name = re.sub(r"\W+", "_", task.name)
        description = task.instruction.splitlines()[0].lstrip("# ")
        arguments = {"run": self.stage.server.last_run, "name": name, "description": description}
        result = await self.stage.server.client.call_tool("save_skill", arguments)
        return first_text(result)[:500]

    def _script_model(self, task: SkillsTask) -> None:
        """Give the scripted model its answers: the reference solution as a program."""
        if self.script is None:
            return
        solution = (task.folder / "solution" / "solve.sh").read_text("utf-8")
        program = f"{ANSWER_MARK}\n{GOLD_PROGRAM.format(solution=solution)}"
        replies = [GOLD_SKILL] if self.condition == "self-generated" else []
        replies.append(f"This does it.\n```python\n{program}\n```")
        self.script.set_script(*({"reply": each} for each in replies))


def offer_folders(skills: Sequence[Skill]) -> Offer:
    """Return skills as folders that an agent reads."""
    lines = [f"- {SKILLS_FOLDER}/{each.name}/SKILL.md: {each.description}" for each in skills]
    files = {
        f"{SKILLS_FOLDER}/{each.name}/{path}": content
        for each in skills
        for path, content in each.files.items()
    }
    prompt = SKILLS_PROMPT.format(lines="\n".join(lines)) if skills else ""
    return Offer([each.name for each in skills], prompt, files)


async def generate_skills(model: ChatModel, instruction: str) -> list[Skill]:
    """Let a model write skills for a task of which it knows the instruction alone."""
    messages: list[Message] = [
        {"role": "system", "content": GENERATE_PROMPT},
        {"role": "user", "content": instruction},
    ]
    completion = await model.complete(messages)
    skills: dict[str, Skill] = {}
    for text in SKILL_BLOCK.findall(completion.text):
        try:
            skill = Skill.from_text(text)
        except ValueError:
            continue
        skills[skill.name] = skill
    return list(skills.values())


@asynccontextmanager
async def open_condition(
    condition: str, options: argparse.Namespace, image: str, folder: Path, timeout_s: float
) -> AsyncIterator[ConditionRunner]:
    """Yield a runner with a server of its own."""
    model: ChatModel | None = None
    script: fake_llm.ModelServer | None = None
    if options.mode == "llm":
        model = ChatModel(options.model, options.api_base, options.api_key, seed=options.seed)
    with (
        start_gold_model(options.seed)
        if model and options.model == GOLD
        else nullcontext((model, script))
    ) as (model, script):
        async with open_stage(folder, image, timeout_s) as stage:
            yield ConditionRunner(condition, options.mode, options.attempts, stage, model, script)


async def run_all(
    options: argparse.Namespace, tasks: Sequence[SkillsTask], recorder: ResultRecorder
) -> list[Attempt]:
    """Do the tasks under each condition; each attempt is printed as soon as it is judged."""
    attempts: list[Attempt] = []
    image = build_image()
    timeout_s = max(task.timeout_s for task in tasks)
    for condition in options.conditions:
        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
            async with open_condition(condition, options, image, Path(folder), timeout_s) as runner:
                for number in range(1, options.trials + 1):
                    for task in tasks:
                        attempt = await runner.run(task, number)
                        attempts.append(attempt)
                        record_attempt(recorder, attempt)
                        print(format_attempt(attempt), flush=True)
    return attempts


def record_attempt(recorder: ResultRecorder, attempt: Attempt) -> None:
    """Add an attempt to the result."""
    name = f"{attempt.condition}: {attempt.task} {attempt.number}"
    labels = {"condition": attempt.condition, "difficulty": attempt.difficulty}
    recorder.add(f"{name}: passed", "success", [float(attempt.has_passed)], "higher", labels)
    recorder.add(f"{name}: seconds", "s", [attempt.seconds], labels=labels)
    recorder.details.setdefault("attempts", []).append(asdict(attempt))
    if not attempt.has_passed:
        recorder.failures[name] = attempt.problem[-300:]


def format_attempt(attempt: Attempt) -> str:
    """Return an attempt as one line."""
    line = (
        f"{'passed' if attempt.has_passed else 'FAILED':8}{attempt.condition:17}"
        f"{attempt.task:28}{attempt.seconds:7.2f} s  skills: {', '.join(attempt.offered) or '-'}"
    )
    problem = " ".join(attempt.problem.split())[-160:]
    return f"{line}  {problem}".rstrip()


def summarize_conditions(attempts: Sequence[Attempt], seed: int) -> dict[str, dict[str, Any]]:
    """Return the pass rate of each condition, and its difference and gain to none."""
    by_condition: dict[str, list[float]] = {}
    for attempt in attempts:
        by_condition.setdefault(attempt.condition, []).append(float(attempt.has_passed))
    base = by_condition.get("none")
    summary: dict[str, dict[str, Any]] = {}
    for condition, passed in by_condition.items():
        total = len(passed)
        found: dict[str, Any] = {"passed": int(sum(passed)), "total": total}
        if base is not None and condition != "none":
            difference = bootstrap_paired_difference(base, passed, seed)
            found["difference"] = [difference.value, difference.low, difference.high]
            found["gain"] = normalized_gain(sum(base) / total, sum(passed) / total)
        summary[condition] = found
    return summary


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    top = argparse.ArgumentParser(
        prog="python -m bench run skills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--tasks", type=Path, default=OWN_TASKS, help="a checkout, or its tasks")
    top.add_argument("--condition", choices=("all", *CONDITIONS), default="all")
    top.add_argument("--mode", choices=("oracle", "llm"), default="oracle")
    top.add_argument("--limit", type=int, default=0, help="so many tasks; default: all")
    top.add_argument("--only", default="", help="tasks with this in their name")
    top.add_argument("--trials", type=int, default=1, help="attempts at each task")
    top.add_argument("--attempts", type=int, default=DEFAULT_ATTEMPTS, help="programs of each")
    top.add_argument("--model", default=GOLD, help=f"default: {GOLD}")
    top.add_argument("--api-base", default="", help="of a server that speaks OpenAI's protocol")
    top.add_argument("--api-key-variable", default="", metavar="NAME", help="has the key")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--json", type=Path, metavar="FILE")
    return top


def main(arguments: Sequence[str]) -> int:
    """Do the tasks; return 1 if the oracle failed one, and 2 if none can be done."""
    options = build_parser().parse_args(arguments)
    options.api_key = os.environ.get(options.api_key_variable, "")
    options.conditions = CONDITIONS if options.condition == "all" else (options.condition,)
    try:
        tasks = [each for each in read_tasks(options.tasks) if options.only in each.name]
    except ValueError as exc:
        print(exc, file=sys.stderr)
        return 2
    tasks = tasks[: options.limit or None]
    if not tasks:
        print(f"There is no task with {options.only!r} in {options.tasks}.", file=sys.stderr)
        return 2
    model = options.model if options.mode == "llm" else ""
    file = options.json or RESULTS_FOLDER / f"skills-{options.mode}.json"
    with record_result(
        "skills", file, mode=options.mode, model=model, seed=options.seed
    ) as recorder:
        attempts = anyio.run(run_all, options, tasks, recorder)
        left_out = {each.task: each.left_out for each in attempts if each.left_out}
        recorder.details["left_out"] = left_out
        recorder.details["conditions"] = summarize_conditions(attempts, options.seed)
    for task, texts in recorder.details["left_out"].items():
        print(f"{task} leaves out: {'; '.join(texts)}")
    print()
    for condition, found in recorder.details["conditions"].items():
        share = wilson_interval(found["passed"], found["total"])
        print(f"{condition:17}{found['passed']} of {found['total']}, {share.as_percent()}")
    has_failed = any(not each.has_passed for each in attempts)
    return int(has_failed and options.mode == "oracle")
