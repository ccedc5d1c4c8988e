"""The table of all suites: a new one is a module with `main(arguments)` and a line here.

`main` takes the rest of the command line, prints what it measures, writes a `SuiteResult`, and
returns the exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Suite:
    """A suite: what it measures, and the module of the bench that has its `main`."""

    name: str
    summary: str
    module: str

    def main(self, arguments: Sequence[str]) -> int:
        """Run the suite and return the exit code."""
        run: Callable[[Sequence[str]], int] = import_module(f"bench.{self.module}").main
        return run(arguments)


SUITES = {
    suite.name: suite
    for suite in (
        Suite("mrbs", "tasks on MCP servers, by programs or function calls", "mrbs.suite"),
        Suite("bfcl", "gold trajectories of a leaderboard as programs, replayed", "bfcl.suite"),
        Suite("skills", "tasks in SkillsBench's layout, by condition", "skillsbench.suite"),
        Suite("kill-anywhere", "effects doubled or lost by kills", "kill_anywhere"),
        Suite("same-tape", "replays without upstream servers, from a moved folder", "same_tape"),
        Suite("context-cost", "tokens of programs and function calls", "context_cost"),
        Suite("undo", "rewind and fork, and whether they are right", "undo"),
        Suite("density", "many live sessions, and memory under steady work", "density"),
        Suite("rivals", "other runtimes for code on the same programs", "rivals.suite"),
        Suite("perf", "overhead of runs, calls and sessions, beside bare baselines", "perf"),
        Suite("load", "many clients over HTTP, beside a bare server", "load"),
        Suite("inputs", "how soon a large file is readable, and passes over it", "context"),
        Suite("long-context", "questions about long texts, by length", "long_context"),
        Suite("skill-gate", "which recorded sessions become skills that are right", "skill_gate"),
        Suite("second-task", "what a skill saves the second time", "second_task"),
        Suite("retrieval", "whether searches find the right skill and tool", "retrieval"),
    )
}
