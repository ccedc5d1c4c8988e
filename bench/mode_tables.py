"""Tables that compare ways to do the same tasks: metrics, groups of tasks, and who needs less.

A task is the JSON data of an `Outcome` of the suite `mrbs`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .report import markdown_table
from .statistics import wilson_interval

TaskData = Mapping[str, Any]
FAN_OUTS = ("1 to 4 calls", "5 to 14 calls", "15 or more")
GROUPS = {"category": "Category", "difficulty": "Difficulty", "fan_out": "Calls"}
RESULT_SIZES = {
    "less than 1,000": (0, 1_000),
    "1,000 to 10,000": (1_000, 10_000),
    "10,000 or more": (10_000, 10**12),
}
COMPARED: Mapping[str, Callable[[TaskData], float]] = {
    "tokens": lambda task: task["usage"]["tokens_in"] + task["usage"]["tokens_out"],
    "turns": lambda task: task["usage"]["turns"],
    "seconds": lambda task: task["seconds"],
    "requests before the first call": lambda task: task["requests_before_call"],
}


def metric_table(columns: Mapping[str, Sequence[TaskData]]) -> str:
    """Return a table with a column for each way and a row for each metric."""
    found = [summarize_tasks(tasks) for tasks in columns.values()]
    rows = [[name, *(column[name] for column in found)] for name in found[0]]
    return markdown_table(["", *columns], rows)


def summarize_tasks(tasks: Sequence[TaskData]) -> dict[str, str]:
    """Return all metrics of one way, by name."""
    usage = [task["usage"] for task in tasks]
    has_model = any(each["turns"] for each in usage)
    times = [task["seconds"] for task in tasks if task["is_right"]]

    def median(values: Iterable[float], *, needs_model: bool = False) -> str:
        found = list(values)
        return f"{statistics.median(found):,.3g}" if found and has_model >= needs_model else "-"

    def count(values: Iterable[float]) -> str:
        return f"{statistics.median(values):,.0f}" if has_model else "-"

    def total(name: str, layout: str = ",") -> str:
        return f"{sum(each[name] for each in usage):{layout}}" if has_model else "-"

    return {
        "right (95 % interval)": format_share(sum(t["is_right"] for t in tasks), len(tasks)),
        "time to success, median": f"{median(times)} s",
        "wall time, all tasks": f"{sum(task['seconds'] for task in tasks):,.0f} s",
        "iterations, median": median(task["iterations"] for task in tasks),
        "turns, median": median((each["turns"] for each in usage), needs_model=True),
        "requests by programs, median": median(
            (each["requests_of_programs"] for each in usage), needs_model=True
        ),
        "requests before the first useful call, median": median(
            (task["requests_before_call"] for task in tasks), needs_model=True
        ),
        "tokens before the first useful call, median": count(
            task["tokens_before_call"] for task in tasks
        ),
        "calls of tools, median": median(task["calls"] for task in tasks),
        "tokens in, all tasks": total("tokens_in"),
        "tokens out, all tasks": total("tokens_out"),
        "USD, all tasks": total("usd", ".4f"),
    }


def group_table(columns: Mapping[str, Sequence[TaskData]], key: str) -> str:
    """Return a table of right tasks and mean tokens in, by groups of tasks."""
    rows = []
    for group in list_groups([task for tasks in columns.values() for task in tasks], key):
        row = [group]
        for tasks in columns.values():
            here = [task for task in tasks if task[key] == group]
            right = sum(task["is_right"] for task in here)
            tokens = sum(task["usage"]["tokens_in"] for task in here) / max(1, len(here))
            row.append(f"{right}/{len(here)}" + (f", {tokens:,.0f} tokens" if tokens else ""))
        rows.append(row)
    return markdown_table([GROUPS[key], *columns], rows)


def list_groups(tasks: Sequence[TaskData], key: str) -> Sequence[str]:
    """Return the groups of tasks in their order."""
    found = dict.fromkeys(task[key] for task in tasks)
    return [each for each in FAN_OUTS if each in found] if key == "fan_out" else list(found)


def win_table(by_functions: Sequence[TaskData], by_programs: Sequence[TaskData]) -> str:
    """Return a table of how many tasks need less with function calls, by groups of tasks."""
    others = {task["task"]: task for task in by_programs}
    rows = []
    for key in GROUPS:
        for group in list_groups(by_functions, key):
            here = [task for task in by_functions if task[key] == group and task["task"] in others]
            wins = [count_wins(here, others, name) for name in COMPARED]
            rows.append([f"{group}", str(len(here)), *map(str, wins)])
    all_wins = [count_wins(by_functions, others, name) for name in COMPARED]
    rows.append(["all", str(len(by_functions)), *map(str, all_wins)])
    header = ("function calls need fewer", "of tasks", *COMPARED)
    return markdown_table(header, rows)


def win_table_by_catalogue(
    by_functions: Mapping[int, Sequence[TaskData]], by_programs: Mapping[int, Sequence[TaskData]]
) -> str:
    """Return a table of how many tasks need fewer tokens, and turns, with function calls.

    Its columns are the sizes of the catalogue, its rows groups of tasks.
    """
    first = next(iter(by_functions.values()))
    groups = [(key, group) for key in GROUPS for group in list_groups(first, key)]
    rows = [
        [
            group,
            *(
                _count_here(by_functions[size], by_programs[size], key, group)
                for size in by_functions
            ),
        ]
        for key, group in groups
    ]
    header = (
        "fewer tokens / turns with function calls",
        *(f"{size:,} tools" for size in by_functions),
    )
    return markdown_table(header, rows)


def _count_here(
    by_functions: Sequence[TaskData], by_programs: Sequence[TaskData], key: str, group: str
) -> str:
    others = {task["task"]: task for task in by_programs}
    here = [task for task in by_functions if task[key] == group]
    tokens, turns = (count_wins(here, others, name) for name in ("tokens", "turns"))
    return f"{tokens} / {turns} of {len(here)}"


def result_size_table(
    by_functions: Mapping[int, Sequence[TaskData]], by_programs: Mapping[int, Sequence[TaskData]]
) -> str:
    """Return a table of the ratio of tokens, by characters of results and size of the catalogue."""
    rows = []
    for name, (low, high) in RESULT_SIZES.items():
        row = [name]
        for size, tasks in by_functions.items():
            others = {task["task"]: task for task in by_programs[size]}
            here = [task for task in tasks if low <= task["result_chars"] < high]
            ratios = [COMPARED["tokens"](t) / COMPARED["tokens"](others[t["task"]]) for t in here]
            row.append(f"{statistics.median(ratios):.1f}x of {len(here)}" if here else "-")
        rows.append(row)
    header = ("characters of results", *(f"{size:,} tools" for size in by_functions))
    return markdown_table(header, rows)


def count_wins(tasks: Sequence[TaskData], others: Mapping[str, TaskData], name: str) -> int:
    """Return how many tasks need less of something than the same tasks among the others."""
    measure = COMPARED[name]
    return sum(measure(task) < measure(others[task["task"]]) for task in tasks)


def format_share(count: int, total: int) -> str:
    """Return a count with its share and interval."""
    return f"{count} of {total}, {wilson_interval(count, total).as_percent()}"
