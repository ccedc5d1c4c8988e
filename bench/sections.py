"""The sections of the report, in their order: one function for each suite."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .plots import plot_bars, plot_crossover, plot_shares
from .report import WriteSection, describe_run, markdown_table
from .results import SuiteResult
from .statistics import percentile, wilson_interval

FAN_OUTS = ("1 to 4 calls", "5 to 14 calls", "15 or more")
MODE_NAMES = {"llm": "programs", "function-calling": "function calls"}
GOLD_NOTE = """\
The model is scripted and makes no mistakes (`gold`). As a programmer it reads the help of the
servers that a task needs, then that of each function, and then writes the reference program. As a
caller of functions it makes the calls of that program, one a turn. So these figures show what a
mode costs at best, and nothing about how often a real model is right.
"""


def write_rows(title: str, command: str) -> WriteSection:
    """Return the writer of a section that is a table of rows with bounds."""

    def write(results: Sequence[SuiteResult], plots: Path) -> str:
        result = results[-1]
        rows = [format_row(row) for row in result.details["rows"].values()]
        header = ("what (median)", "measured", "baseline", "baseline is", "figure", "bound", "met")
        failures = "".join(f"\n{name} failed: {text}\n" for name, text in result.failures.items())
        table = markdown_table(header, rows)
        return f"## {title}\n{describe_run(result, command)}\n{table}{failures}"

    return write


def format_row(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one row of the performance budget."""
    baseline, unit = row["baseline"], row["unit"]

    def format_figure(value: float | None) -> str:
        if value is None or row["kind"] == "value":
            return "-" if value is None else f"{value:.4g} {unit}"
        return f"{value:.2f}x" if row["kind"] == "ratio" else f"{value:+.3g} {unit}"

    return [
        row["title"],
        f"{row['ours']['p50']:.4g} {unit}",
        f"{baseline['p50']:.4g} {unit}" if baseline else "-",
        row["baseline_is"],
        format_figure(row["figure"]),
        format_figure(row["bound"]),
        {None: "-", True: "yes", False: "**no**"}[row["met"]],
    ]


# MRBS ---------------------------------------------------------------------------------------------


def write_mrbs(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section of the task suite: a line for each mode, then by groups."""
    parts = ["## MRBS: tasks on MCP servers\n"]
    parts += [describe_run(each, mrbs_command(each)) for each in results]
    if any(each.model == "gold" for each in results):
        parts.append(GOLD_NOTE)
    header = ["mode", "model", "right (95 % interval)", "seconds", "calls", "turns"]
    header += ["before the first call", "tokens in", "tokens out", "USD"]
    parts.append(markdown_table(header, [summarize_mode(each) for each in results]))
    parts.append("Medians of a task; tokens and USD are sums over all tasks.\n")
    for key, title in (
        ("category", "Category"),
        ("difficulty", "Difficulty"),
        ("fan_out", "Calls"),
    ):
        parts.append(group_table(results, key, title))
    return "\n".join(parts)


def mrbs_command(result: SuiteResult) -> str:
    """Return the command that repeats a result."""
    model = f" --model {result.model}" if result.model else ""
    catalogue = result.details["options"].get("catalogue")
    tools = f" --catalogue {catalogue}" if catalogue else ""
    return f"python -m bench run mrbs --mode {result.mode}{model}{tools} --seed {result.seed}"


def summarize_mode(result: SuiteResult) -> list[str]:
    """Return the line of one mode."""
    tasks = result.details["tasks"]
    right = sum(task["is_right"] for task in tasks)
    usage = [task["usage"] for task in tasks]
    first = [task["turns_before_call"] for task in tasks]

    def median(values: Iterable[float]) -> str:
        return f"{statistics.median(values):.3g}"

    has_model = bool(result.model)
    return [
        result.mode,
        result.model or "-",
        format_share(right, len(tasks)),
        median(task["seconds"] for task in tasks),
        median(task["calls"] for task in tasks),
        median(each["turns"] for each in usage) if has_model else "-",
        f"{median(first)} turn{'s' * (statistics.median(first) != 1)}" if has_model else "-",
        f"{sum(each['tokens_in'] for each in usage):,}" if has_model else "-",
        f"{sum(each['tokens_out'] for each in usage):,}" if has_model else "-",
        f"{sum(each['usd'] for each in usage):.4f}" if has_model else "-",
    ]


def group_table(results: Sequence[SuiteResult], key: str, title: str) -> str:
    """Return a table of right tasks and tokens in, by groups of tasks."""
    groups = list(dict.fromkeys(task[key] for each in results for task in each.details["tasks"]))
    rows = []
    for group in sorted(groups, key=FAN_OUTS.index) if key == "fan_out" else groups:
        row = [group]
        for result in results:
            tasks = [task for task in result.details["tasks"] if task[key] == group]
            right = sum(task["is_right"] for task in tasks)
            tokens = sum(task["usage"]["tokens_in"] for task in tasks) / max(1, len(tasks))
            row.append(f"{right}/{len(tasks)}" + (f", {tokens:,.0f} tokens" if tokens else ""))
        rows.append(row)
    return markdown_table([title, *(each.mode for each in results)], rows)


def write_bfcl(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on the leaderboard: a line for each category, and their sum."""
    result = results[-1]
    categories: dict[str, dict[str, int]] = result.details["categories"]
    lines = {**categories, "all": dict(sum(map(Counter, categories.values()), Counter()))}
    rows = [
        [
            name.replace("_", " "),
            str(found["calls"]),
            format_share(found.get("right", 0), found["scenarios"]),
            format_share(found.get("same", 0), found["scenarios"]),
        ]
        for name, found in lines.items()
    ]
    took = {
        unit: [each.samples[0] for each in result.measurements if each.unit == unit]
        for unit in ("s", "ms")
    }
    text = (
        "The gold trajectories of the multi-turn categories of the Berkeley Function-Calling "
        "Leaderboard, each as one program; its tool classes are one MCP server, and its own "
        "checkers compare the state and the returned values after each turn. So this shows that "
        "programs do what function calls do, and nothing about a model. A run in a new session "
        f"took {1e3 * statistics.median(took['s']):.0f} ms (median) and "
        f"{1e3 * percentile(took['s'], 0.99):.0f} ms (p99), a replay without the tools, from a "
        f"moved data folder, {statistics.median(took['ms']):.0f} ms and "
        f"{percentile(took['ms'], 0.99):.0f} ms.\n"
    )
    header = ("category", "calls", "right", "replayed the same")
    named = "".join(f"- {name}: {note}\n" for name, note in result.failures.items())
    limit = result.details["limit"]
    option = f" --limit {limit}" if limit else ""
    head = describe_run(result, f"python -m bench run bfcl{option}")
    table = markdown_table(header, rows)
    return f"## BFCL: gold trajectories as programs\n{head}\n{text}\n{table}{named}"


SKILLS_NOTES = {
    "oracle": "The reference solution ran in place of a model, so this checks the tasks and the "
    "harness, and says nothing about skills.\n",
    "gold": "The model is scripted and submits the reference solution, so this checks the harness, "
    "and says nothing about skills.\n",
}


def write_skills(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on skills: pass rates by condition, and their differences to none."""
    parts = ["## Tasks with and without skills\n"]
    for result in results:
        conditions = result.details["conditions"]
        model = f" --model {result.model}" if result.model else ""
        parts.append(
            describe_run(result, f"python -m bench run skills --mode {result.mode}{model}")
        )
        parts.append(SKILLS_NOTES.get(result.model or result.mode, ""))
        used = Counter[str]()
        for attempt in result.details["attempts"]:
            usage = attempt["usage"]
            used[attempt["condition"]] += usage["tokens_in"] + usage["tokens_out"]
        rows = [
            [
                condition,
                format_share(found["passed"], found["total"]),
                format_difference(found.get("difference")),
                "-" if found.get("gain") is None else f"{found['gain']:+.2f}",
                f"{used[condition]:,}",
            ]
            for condition, found in conditions.items()
        ]
        header = ("condition", "passed (95 % interval)", "difference to none", "gain", "tokens")
        parts.append(markdown_table(header, rows))
        parts += (
            f"- {task} leaves out: {'; '.join(texts)}\n"
            for task, texts in result.details["left_out"].items()
        )
        if result.mode == "llm" and len(conditions) > 1:
            shares = {
                condition: wilson_interval(found["passed"], found["total"])
                for condition, found in conditions.items()
            }
            title = f"Tasks that {result.model} passed"
            name = re.sub(r"\W+", "-", f"skills-{result.model}")
            parts.append(plot_shares(title, shares, plots, name))
    return "\n".join(parts)


def format_difference(difference: Sequence[float] | None) -> str:
    """Return a difference of shares with its interval, in percentage points."""
    if difference is None:
        return "-"
    value, low, high = (100 * each for each in difference)
    return f"{value:+.0f} points ({low:+.0f} to {high:+.0f})"


def format_share(count: int, total: int) -> str:
    """Return a count with its share and interval."""
    return f"{count} of {total}, {wilson_interval(count, total).as_percent()}"


# experiments --------------------------------------------------------------------------------------


def write_context_cost(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on what reaches the model, with the crossover of each catalogue."""
    result = results[-1]
    points = result.details["points"]
    panels: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for point in points:
        way = MODE_NAMES[point["mode"]]
        panel = panels.setdefault(point["catalogue"], {})
        panel.setdefault(way, []).append((max(1, point["calls"]), point["tokens"]))
    rows = []
    for catalogue, ways in panels.items():
        totals = {way: sum(tokens for _, tokens in found) for way, found in ways.items()}
        rows.append(
            [
                f"{catalogue:,}",
                f"{totals['programs']:,}",
                f"{totals['function calls']:,}",
                f"{totals['function calls'] / totals['programs']:.1f}x",
                describe_crossover(points, catalogue),
            ]
        )
    header = (
        "tools",
        "tokens, programs",
        "tokens, function calls",
        "ratio",
        "who needs fewer tokens",
    )
    tasks = {point["task"] for point in points}
    limit = max(Counter(task.partition("/")[0] for task in tasks).values())
    sizes = " ".join(map(str, panels))
    command = f"python -m bench run context-cost --limit {limit} --catalogues {sizes}"
    head = f"## What reaches the model\n{describe_run(result, command)}\n{GOLD_NOTE}"
    return f"{head}\n{markdown_table(header, rows)}\n{plot_crossover(panels, plots)}"


def describe_crossover(points: Sequence[Mapping[str, Any]], catalogue: int) -> str:
    """Return for how many tasks function calls win, and up to which number of calls."""
    by_task: dict[str, dict[str, Mapping[str, Any]]] = {}
    for point in points:
        if point["catalogue"] == catalogue:
            by_task.setdefault(point["task"], {})[point["mode"]] = point
    won = [
        ways["llm"]["calls"]
        for ways in by_task.values()
        if ways["function-calling"]["tokens"] < ways["llm"]["tokens"]
    ]
    if not won:
        return f"programs in all {len(by_task)} tasks"
    return f"function calls in {len(won)} of {len(by_task)} tasks, of up to {max(won)} calls"


def write_same_tape(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on replays."""
    result = results[-1]
    same, total = result.details["same"]
    took = [each.samples[0] for each in result.measurements if each.unit == "ms"]
    command = f"python -m bench run same-tape --seed {result.seed}"
    text = (
        f"{same} of {total} recorded programs were the same as recorded when another server "
        "replayed them from a moved data folder, with every upstream server gone "
        f"({wilson_interval(same, total).as_percent()}). A replay, its sandbox included, took "
        f"{statistics.median(took):.0f} ms (median) and {percentile(took, 0.99):.0f} ms (p99).\n"
    )
    named = "".join(f"- {name}: {note}\n" for name, note in result.failures.items())
    return f"## Same tape\n{describe_run(result, command)}\n{text}{named}"


TO_RECOVERY = "until all effects are made"
KILL_CLIENTS = {"recovered": "resumed, with the ledger", "retried": "naive retry"}


def write_kills(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on kills."""
    result = results[-1]
    rows, bars = [], {}
    samples = {each.name: each.samples for each in result.measurements}
    for name, found in result.details["effects"].items():
        target, _, client = name.partition(", ")
        doubled, lost = (1e3 * found[kind] / found["kills"] for kind in ("doubled", "lost"))
        client = KILL_CLIENTS[client]
        took = statistics.median(samples[f"{name}, {TO_RECOVERY}"])
        figures = [f"{found['kills']:,}", f"{doubled:,.0f}", f"{lost:,.0f}", f"{took:.2g} s"]
        rows.append([target, client, *figures])
        bars[f"{client.partition(',')[0]}: {target} killed"] = doubled
    text = (
        "A program of five writes is killed before and after the effect of each of them. A client "
        "that reads the ledger asks the upstream only about a call that has no answer there. The "
        "last column is from the kill until every effect was made, a new server's start included.\n"
    )
    header = ["killed", "client", "kills", "doubled per 1,000 kills", "lost per 1,000 kills"]
    header.append("to recovery (median)")
    command = "python -m bench run kill-anywhere"
    head = f"## Kill anywhere\n{describe_run(result, command)}\n{text}"
    title = "Effects that a kill doubled"
    plot = plot_bars(title, "per 1,000 kills", bars, plots, "kill-anywhere")
    return f"{head}\n{markdown_table(header, rows)}\n{plot}"


def write_undo(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on rewinds and forks."""
    result = results[-1]
    bars = {
        each.name: statistics.median(each.samples)
        for each in result.measurements
        if each.unit == "ms"
    }
    right, programs = result.details["right"], result.details["programs"]
    text = (
        f"Of {programs} random programs, exactly the earlier variables and files were there after "
        f"a rewind for {format_share(right['rewind'], programs)}, and in a fork for "
        f"{format_share(right['fork'], programs)}. Some make closures and generators: a pickle had "
        f"all variables for {format_share(right['pickle'], programs)}, and never has files. "
        "`docker commit` keeps neither memory nor a workspace in tmpfs, so it goes back for none.\n"
    )
    command = f"python -m bench run undo --seed {result.seed}"
    table = markdown_table(("what", "median"), [[n, f"{ms:.3g} ms"] for n, ms in bars.items()])
    plot = plot_bars("Going back", "ms (log)", bars, plots, "undo", log=True)
    return f"## Undo\n{describe_run(result, command)}\n{text}\n{table}\n{plot}"


def write_density(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on many sessions."""
    result = results[-1]
    rows = [
        [
            each.name,
            f"{statistics.median(each.samples):.4g} {each.unit}",
            f"{percentile(each.samples, 0.99):.4g} {each.unit}",
        ]
        for each in result.measurements
    ]
    facts = result.details
    text = (
        f"{facts['sessions']} sessions were live at once, each with its sandbox. "
        f"In {facts['soak_s']:.0f} s of steady work ({facts['soak_runs']} runs) the memory of the "
        f"server changed by {facts['slope_kb_per_minute']:+.0f} kB a minute.\n"
    )
    table = markdown_table(("what", "median", "p99"), rows)
    command = "python -m bench run density"
    return f"## Density\n{describe_run(result, command)}\n{table}\n{text}"


RIVALS_NOTE = """\
Each runs in an environment of its own, used as its documents say, on the same small programs in its
own language. *First result* is from nothing running to the result of `1 + 1`, the connection to an
MCP server included where it has one; *warm run* is `1 + 1` again; *call* is one of 50 calls from
one run to a tool that does nothing, and the column before it says what that tool is. A library is
called in its process, a server over stdio, workerd over HTTP. Isolation, a journal and approval
cost time and are not in this table: what runs in the process of its caller is fastest.
"""


def write_rivals(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on other runtimes; one that cannot run keeps its row."""
    result = results[-1]
    samples = {each.name: each.samples for each in result.measurements}

    def median(name: str, unit: str) -> str:
        return f"{statistics.median(samples[name]):.3g} {unit}" if samples.get(name) else "-"

    rows = []
    for name, entry in result.details["rivals"].items():
        versions = ", ".join([*entry.get("packages", ()), *entry.get("npm", ())])
        about = [entry["title"], entry["language"], entry["place"]]
        figures = result.details["figures"].get(name)
        if figures is None:
            rows.append([*about, *["-"] * 6, versions])
            continue
        rows.append(
            [
                *about,
                median(f"{name}: first result", "s"),
                median(f"{name}: warm run", "ms"),
                entry["tool"],
                median(f"{name}: call", "ms"),
                f"{figures['lost_outputs']} of {figures['outputs']}",
                "yes" if figures["keeps_variables"] else "no",
                versions or "this one",
            ]
        )
    header = ["runtime", "language", "where code runs", "first result", "warm run", "tool"]
    header += ["call", "short outputs lost", "keeps variables", "versions"]
    missing = "".join(
        f"- {result.details['rivals'][name]['title']} cannot run here: `{reason}`\n"
        for name, reason in result.failures.items()
    )
    head = describe_run(result, "make rivals && python -m bench run rivals")
    return f"## Other runtimes\n{head}\n{RIVALS_NOTE}\n{markdown_table(header, rows)}\n{missing}"


def write_long_context(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on long texts: mean scores by length and strategy."""
    result = results[-1]
    lines = result.details["lines"]
    sizes = sorted({1 << (line["characters"] - 1).bit_length() for line in lines})
    strategies = list(dict.fromkeys(line["strategy"] for line in lines))
    rows = []
    for size in sizes:
        row = [f"2^{size.bit_length() - 1}"]
        for strategy in strategies:
            scores = [
                line["score"]
                for line in lines
                if line["strategy"] == strategy and size / 2 < line["characters"] <= size
            ]
            row.append(f"{statistics.fmean(scores):.2f}")
        rows.append(row)
    text = "Mean scores of six kinds of questions. The reader is a lexicon, and no real model.\n"
    command = "python -m bench run long-context"
    table = markdown_table(["characters", *strategies], rows)
    return f"## Long texts\n{describe_run(result, command)}\n{text}\n{table}"


def write_retrieval(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on searches: recall@3 and MRR of each kind of query."""
    result = results[-1]
    rows = [
        [searched, kind, f"{recall:.2f}", f"{reciprocal_rank:.2f}"]
        for searched, kinds in result.details.items()
        for kind, (recall, reciprocal_rank) in kinds.items()
    ]
    table = markdown_table(("searched", "queries", "recall@3", "MRR"), rows)
    return f"## Searches\n{describe_run(result, 'python -m bench run retrieval')}\n{table}"


def write_skill_gate(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on recorded sessions that become skills."""
    parts = ["## Skills from recorded sessions\n"]
    for result in results:
        option = " --held-out" if result.mode.endswith("held-out") else ""
        parts.append(describe_run(result, f"python -m bench run skill-gate{option}"))
        rows = [[name, str(count)] for name, count in result.details["counts"].items()]
        parts.append(markdown_table(("sessions that", "number"), rows))
    return "\n".join(parts)


def write_second_task(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on what a skill saves."""
    result = results[-1]
    rows = [
        [way, f"{total['written']:,}", f"{total['read']:,}", f"{total['seconds']:.1f}"]
        for way, total in result.details["totals"].items()
    ]
    header = ("second task", "tokens written", "tokens read", "seconds")
    command = "python -m bench run second-task"
    return f"## What a skill saves\n{describe_run(result, command)}\n{markdown_table(header, rows)}"


def document_figures(results: Mapping[str, Sequence[SuiteResult]]) -> dict[str, str]:
    """Return the figures for README and documents, by the names of their marks."""
    table = compare_modes(results.get("mrbs", ()))
    figures = {"modes": table, "comparison": table}
    for result in results.get("bfcl", ()):
        counts = result.details["categories"].values()
        total, right, same = (
            sum(each[key] for each in counts) for key in ("scenarios", "right", "same")
        )
        figures["leaderboard"] = (
            f"- BFCL, multi-turn: {right} of {total} gold trajectories are right as one program "
            f"each, and {same} replay the same with the tools off."
        )
    for result in results.get("same-tape", ()):
        same, total = result.details["same"]
        figures["replays"] = (
            f"- {same} of {total} recorded programs replayed the same from a moved data folder, "
            "with all upstream servers gone."
        )
    for result in results.get("kill-anywhere", ()):
        effects = result.details["effects"]
        found = {client: Counter[str]() for client in KILL_CLIENTS}
        for name, counts in effects.items():
            found[name.rpartition(", ")[2]].update(counts)
        resumed, naive = found["recovered"], found["retried"]
        figures["kills"] = (
            f"- {resumed['kills']} kills of worker, container or server at a call boundary: "
            f"{resumed['doubled']} writes doubled and {resumed['lost']} lost by a client that uses "
            f"the ledger, against {naive['doubled']} doubled in {naive['kills']} naive retries."
        )
    for result in results.get("undo", ()):
        right, programs = result.details["right"], result.details["programs"]
        figures["undo"] = (
            f"- {right['rewind']} of {programs} random programs were as before after a rewind, and "
            f"{right['fork']} in a fork; a pickle had all variables of {right['pickle']}."
        )
    return {name: text for name, text in figures.items() if text}


def compare_modes(results: Sequence[SuiteResult]) -> str:
    """Return a table for each model that did the tasks with function calls and with programs."""
    by_model: dict[str, dict[str, SuiteResult]] = {}
    for result in results:
        by_model.setdefault(result.model, {})[result.mode] = result
    tables = []
    for model, modes in by_model.items():
        if modes.keys() >= MODE_NAMES.keys():
            columns = [summarize_usage(modes[mode]) for mode in ("function-calling", "llm")]
            rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
            count = len(modes["llm"].details["tasks"])
            header = (f"{count} tasks, model `{model}`", "function calls", "programs")
            tables.append(markdown_table(header, rows))
    return "\n".join(tables)


def summarize_usage(result: SuiteResult) -> dict[str, str]:
    """Return what a mode needed for all tasks, by the names of the rows."""
    tasks = result.details["tasks"]
    right = sum(task["is_right"] for task in tasks)
    usage = [task["usage"] for task in tasks]
    return {
        "right": f"{right} of {len(tasks)}",
        "turns of a task (median)": f"{statistics.median(each['turns'] for each in usage):.3g}",
        "tokens that the model reads": f"{sum(each['tokens_in'] for each in usage):,}",
        "tokens that it writes": f"{sum(each['tokens_out'] for each in usage):,}",
    }


SECTIONS: dict[str, WriteSection] = {
    "mrbs": write_mrbs,
    "bfcl": write_bfcl,
    "skills": write_skills,
    "context-cost": write_context_cost,
    "kill-anywhere": write_kills,
    "same-tape": write_same_tape,
    "undo": write_undo,
    "density": write_density,
    "rivals": write_rivals,
    "perf": write_rows("Speed", "python -m bench perf"),
    "load": write_rows("Many clients over HTTP", "python -m bench run load"),
    "long-context": write_long_context,
    "skill-gate": write_skill_gate,
    "second-task": write_second_task,
    "retrieval": write_retrieval,
}
