"""The sections of the report, in their order: one function for each suite."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .mode_tables import (
    COMPARED,
    GROUPS,
    TaskData,
    count_wins,
    format_share,
    group_table,
    metric_table,
    result_size_table,
    win_table,
    win_table_by_catalogue,
)
from .plots import format_bar, plot_bars, plot_crossover, plot_scores, plot_shares
from .report import WriteSection, describe_run, markdown_table
from .results import SuiteResult
from .statistics import percentile, wilson_interval

MODE_NAMES = {"llm": "programs", "function-calling": "function calls"}
GOLD_NOTE = """\
The model is scripted and makes no mistakes (`gold`). As a programmer it reads the help of the
servers that a task needs, then that of each function, and then writes the reference program. As a
caller of functions it makes the calls of that program, one a turn. In the mode `recursive` its one
program lets a model read that help and choose functions, and a sub-agent do the task with them. So
these figures show what a mode costs at best, and nothing about how often a real model is right.
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
            return "-" if value is None else format_quantity(value, unit)
        return f"{value:.2f}x" if row["kind"] == "ratio" else f"{value:+.3g} {unit}"

    return [
        row["title"],
        format_quantity(row["ours"]["p50"], unit),
        format_quantity(baseline["p50"], unit) if baseline else "-",
        row["baseline_is"],
        format_figure(row["figure"]),
        format_figure(row["bound"]),
        {None: "-", True: "yes", False: "**no**"}[row["met"]],
    ]


def format_quantity(value: float, unit: str) -> str:
    """Return a measured value with four digits, or whole."""
    number = f"{value:,.0f}" if value >= 1_000 else f"{value:.4g}"
    return f"{number} {unit}".rstrip()


REVIEW_NOTE = """\
The checkers were reviewed by somebody who had written none of the tasks, and who tried to pass each
of them with a wrong program: by hand, and with small changes of the reference programs (another
comparison, constant or operator, a statement less). What passed and was wrong is mended.
"""


# MRBS ---------------------------------------------------------------------------------------------


def write_mrbs(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section of the task suite: a column for each mode, then by groups."""
    parts = ["## MRBS: tasks on MCP servers\n"]
    parts += [describe_run(each, mrbs_command(each)) for each in results]
    if any(each.model == "gold" for each in results):
        parts.append(GOLD_NOTE)
    columns = {name_column(each): each.details["tasks"] for each in results}
    parts += [REVIEW_NOTE, metric_table(columns)]
    parts += (group_table(columns, key) for key in GROUPS)
    for model, modes in modes_by_model(results).items():
        if modes.keys() >= MODE_NAMES.keys():
            by_functions, by_programs = (
                modes[mode].details["tasks"] for mode in ("function-calling", "llm")
            )
            parts.append(f"Where function calls win over programs, with the model `{model}`:\n")
            parts.append(win_table(by_functions, by_programs))
    return "\n".join(parts)


def name_column(result: SuiteResult) -> str:
    """Return the head of the column of a result."""
    catalogue = result.details["options"].get("catalogue")
    parts = [result.mode, result.model, f"{catalogue:,} tools" if catalogue else ""]
    return ", ".join(filter(None, parts))


def mrbs_command(result: SuiteResult) -> str:
    """Return the command that repeats a result."""
    model = f" --model {result.model}" if result.model else ""
    catalogue = result.details["options"].get("catalogue")
    tools = f" --catalogue {catalogue}" if catalogue else ""
    return f"python -m bench run mrbs --mode {result.mode}{model}{tools} --seed {result.seed}"


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


# experiments --------------------------------------------------------------------------------------


def write_context_cost(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on what reaches the model, with the crossover of each catalogue.

    Results may have a part of the sizes each.
    """
    points = [point for result in results for point in result.details["points"]]
    modes: dict[str, dict[int, list[TaskData]]] = {mode: {} for mode in MODE_NAMES}
    for point in sorted(points, key=lambda each: int(each["catalogue"])):
        modes[point["mode"]].setdefault(point["catalogue"], []).append(point)
    by_functions, by_programs = modes["function-calling"], modes["llm"]
    rows, panels, crossovers = [], {}, {}
    for size, functions in by_functions.items():
        programs = by_programs[size]
        totals = [sum(map(COMPARED["tokens"], tasks)) for tasks in (programs, functions)]
        crossovers[size], words = describe_crossover(functions, programs)
        ratio = f"{totals[1] / totals[0]:.1f}x"
        rows.append([f"{size:,}", *(f"{total:,}" for total in totals), ratio, words])
        panels[size] = {
            MODE_NAMES[mode]: [(max(1, t["calls"]), COMPARED["tokens"](t)) for t in tasks]
            for mode, tasks in (("llm", programs), ("function-calling", functions))
        }
    header = ["tools", "tokens, programs", "tokens, function calls", "ratio"]
    header.append("who needs fewer tokens")
    heads = [describe_run(result, context_cost_command(result)) for result in results]
    return "\n".join(
        [
            "## What reaches the model\n",
            *heads,
            GOLD_NOTE,
            "A catalogue has at least the tools of the servers that the category of a task uses.\n",
            markdown_table(header, rows),
            "Where function calls win, by groups of tasks and size of the catalogue:\n",
            win_table_by_catalogue(by_functions, by_programs),
            "How many times the tokens of programs function calls need (median of the tasks), by "
            "the characters of all results that a caller of functions gets. It sees at most 8,000 "
            "of one result; a program reads all.\n",
            result_size_table(by_functions, by_programs),
            plot_crossover(panels, crossovers, plots),
        ]
    )


def context_cost_command(result: SuiteResult) -> str:
    """Return the command that repeats a result."""
    limit = result.details["limit"]
    option = f" --limit {limit}" if limit else ""
    sizes = dict.fromkeys(str(point["catalogue"]) for point in result.details["points"])
    return f"python -m bench run context-cost{option} --catalogues {' '.join(sizes)}"


def describe_crossover(
    by_functions: Sequence[TaskData], by_programs: Sequence[TaskData]
) -> tuple[int, str]:
    """Return up to which number of calls function calls win, and for how many tasks; 0 for none."""
    others = {task["task"]: task for task in by_programs}
    won = [task["calls"] for task in by_functions if count_wins([task], others, "tokens")]
    if not won:
        return 0, f"programs in all {len(by_programs)} tasks"
    size = f"of up to {max(won)} calls" if max(won) > 1 else "of a single call"
    return max(won), f"function calls in {len(won)} of {len(by_programs)} tasks, {size}"


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


UNDO_PARTS = ("sizes", "files", "programs")


def write_undo(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on rewinds and forks; results may have a part each."""
    bars = {
        each.name: statistics.median(each.samples)
        for result in results
        for each in result.measurements
        if each.unit == "ms"
    }
    commands = [describe_run(result, undo_command(result)) for result in results]
    text = "".join(map(describe_undo, results))
    table = markdown_table(
        ("what", "median"), [[n, f"{format_bar(ms)} ms"] for n, ms in bars.items()]
    )
    plot = plot_bars("Going back", "ms (log)", bars, plots, "undo", log=True)
    head = "\n".join(commands)
    return f"## Undo\n{head}\n{text}\n{table}\n{plot}"


def undo_command(result: SuiteResult) -> str:
    """Return the command that repeats a result."""
    names = [each.name for each in result.measurements]
    sizes = [name.removeprefix("docker commit, ") for name in names if "docker commit" in name]
    parts = ["sizes"] if sizes else []
    parts += ["files"] if any("files" in name for name in names) else []
    parts += ["programs"] if "right" in result.details else []
    only = f" --only {' '.join(parts)}" if len(parts) < len(UNDO_PARTS) else ""
    numbers = " ".join(size.removesuffix(" MB").replace(",", "") for size in sizes)
    chosen = f" --sizes {numbers}" if sizes else ""
    return f"python -m bench run undo{only}{chosen} --seed {result.seed}"


def describe_undo(result: SuiteResult) -> str:
    """Return how many programs were right in a result; "" if it has none."""
    if "right" not in result.details:
        return ""
    right, programs = result.details["right"], result.details["programs"]
    return (
        f"Of {programs} random programs, exactly the earlier variables and files were there after "
        f"a rewind for {format_share(right['rewind'], programs)}, and in a fork for "
        f"{format_share(right['fork'], programs)}. Some make closures and generators: a pickle had "
        f"all variables for {format_share(right['pickle'], programs)}, and never has files. "
        "`docker commit` keeps neither memory nor a workspace in tmpfs, so it goes back for none.\n"
    )


def write_density(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on many sessions."""
    result = results[-1]
    rows = [
        [
            each.name,
            format_quantity(statistics.median(each.samples), each.unit),
            format_quantity(percentile(each.samples, 0.99), each.unit),
        ]
        for each in result.measurements
    ]
    facts = result.details
    text = (
        f"{facts['sessions']} sessions were live at once, each with its sandbox. "
        f"In {facts['soak_s']:.0f} s of steady work ({facts['soak_runs']:,} runs) the memory of "
        f"the server changed by {facts['slope_kb_per_minute']:+,.0f} kB a minute.\n"
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
    """Write the section on other runtimes; one that cannot run keeps its row.

    Results may have a part of the runtimes each.
    """
    samples = {each.name: each.samples for result in results for each in result.measurements}
    entries: dict[str, Any] = {}
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for result in results:
        entries |= result.details["rivals"]
        found |= result.details["figures"]
        reasons |= result.failures

    def median(name: str, unit: str) -> str:
        return f"{statistics.median(samples[name]):.3g} {unit}" if samples.get(name) else "-"

    rows = []
    for name, entry in entries.items():
        versions = ", ".join([*entry.get("packages", ()), *entry.get("npm", ())])
        about = [entry["title"], entry["language"], entry["place"]]
        figures = found.get(name)
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
        f"- {entries[name]['title']} cannot run here: `{reason}`\n"
        for name, reason in reasons.items()
    )
    command = "make rivals && python -m bench run rivals"
    only = (
        "" if len(results) == 1 else f" --only {' '.join(each.details['rivals'])}"
        for each in results
    )
    head = "\n".join(map(describe_run, results, (f"{command}{each}" for each in only)))
    return f"## Other runtimes\n{head}\n{RIVALS_NOTE}\n{markdown_table(header, rows)}\n{missing}"


LONG_TEXT_KINDS = {
    "Needles: facts in prose": ("needle", "needles"),
    "OOLONG-like: every row counts": ("count", "compare", "month", "pairs"),
}


def write_long_context(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on long texts: mean scores by length and strategy, and what they cost.

    Results may have some of the lengths each.
    """
    lines = merge_lines(results)
    sizes = [sorted({size for size, _ in group_lines(each.details["lines"])}) for each in results]
    commands = (f"python -m bench run long-context --sizes {' '.join(map(str, s))}" for s in sizes)
    text = (
        "A reader with a small window answers questions about texts of up to "
        f"2^{max(map(max, sizes))} characters. It is a lexicon that makes more mistakes the more "
        "it reads at once, and no real model, so this shows what the runtime does with such a "
        "reader. *recursion* is an agent whose programs ask the reader about small pieces. Scores "
        "are means: 1 minus the relative error of a count, F1 of all else; where one of two is "
        "asked for, chance is one half. The server refuses a question of over 4 MiB.\n"
    )
    parts = ["## Long texts", *map(describe_run, results, commands), text]
    panels = {}
    for title, kinds in LONG_TEXT_KINDS.items():
        chosen = [line for line in lines if line["task"] in kinds]
        if chosen:
            parts += [f"{title}:\n", long_text_table(chosen)]
            panels[title] = mean_scores(chosen)
    parts.append(plot_scores(panels, plots))
    return "\n".join(parts)


def merge_lines(results: Sequence[SuiteResult]) -> list[Mapping[str, Any]]:
    """Return the lines of all results on long texts."""
    return [line for result in results for line in result.details["lines"]]


def long_text_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of mean scores, requests and tokens by length."""
    by_place = group_lines(lines)
    strategies = list(dict.fromkeys(line["strategy"] for line in lines))
    rows = []
    for size in sorted({size for size, _ in by_place}):
        row = [f"2^{size}"]
        for strategy in strategies:
            here = by_place[size, strategy]
            if all(line["failed"] for line in here):
                row.append("**0.00**, refused")
                continue
            score, calls, tokens = (
                statistics.fmean(line[key] for line in here)
                for key in ("score", "calls", "tokens_in")
            )
            requests = "1 request" if calls == 1 else f"{calls:,.0f} requests"
            row.append(f"**{score:.2f}**, {requests}, {tokens:,.0f} tokens")
        rows.append(row)
    return markdown_table(["characters", *strategies], rows)


def mean_scores(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return (power of 2, mean score) for each strategy, by length."""
    found: dict[str, list[tuple[int, float]]] = {}
    for (size, strategy), here in sorted(group_lines(lines).items()):
        mean = statistics.fmean(line["score"] for line in here)
        found.setdefault(strategy, []).append((size, mean))
    return found


def group_lines(
    lines: Iterable[Mapping[str, Any]],
) -> dict[tuple[int, str], list[Mapping[str, Any]]]:
    """Return the lines of results by the power of 2 of the length, and strategy."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        size = (line["characters"] - 1).bit_length()
        groups.setdefault((size, line["strategy"]), []).append(line)
    return groups


def write_inputs(results: Sequence[SuiteResult], plots: Path) -> str:
    """Write the section on passes over a large input, plain and compressed."""
    parts = ["## Large inputs\n"]
    for result in results:
        mb, is_packed = result.details["mb"], result.mode == "packed"
        option = " --packed" if is_packed else ""
        parts.append(describe_run(result, f"python -m bench run inputs --mb {mb}{option}"))
        rows = [
            [
                line["name"],
                f"{line['seconds']:.3g} s",
                "-" if line["above_mb"] is None else f"{line['above_mb']:.1f} MB",
                line["bound"],
                "yes" if line["met"] else "**no**",
            ]
            for line in result.details["passes"]
        ]
        kind = "a gzip file of that size before compression" if is_packed else "a log file"
        parts.append(
            f"Passes over {kind}, {mb:,} MiB. *Available* is until code has read its beginning; "
            "memory is the peak of the interpreter above a run that does nothing.\n"
        )
        parts.append(markdown_table(("pass", "time", "memory", "bound", "met"), rows))
        parts += (
            f"`.grep` takes {ratio:.2f} times as long as {name}.\n"
            for name, ratio in result.details["others"].items()
        )
    return "\n".join(parts)


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
        if "right" not in result.details:
            continue
        right, programs = result.details["right"], result.details["programs"]
        figures["undo"] = (
            f"- {right['rewind']} of {programs} random programs were as before after a rewind, and "
            f"{right['fork']} in a fork; a pickle had all variables of {right['pickle']}."
        )
    for result in results.get("perf", ()):
        figures["durability"] = describe_durability(result.details["rows"])
    if long_texts := results.get("long-context"):
        figures["long-texts"] = long_text_table(merge_lines(long_texts))
    if costs := results.get("context-cost"):
        figures["smallest-catalogue"] = describe_smallest_catalogue(costs)
    return {name: text for name, text in figures.items() if text}


def describe_durability(rows: Mapping[str, Any]) -> str:
    """Return how much longer runs and calls take that wait for the disk; "" if not measured."""
    names = ("durability-run", "durability-write", "durability-read")
    if not rows.keys() >= set(names):
        return ""
    run, write, read = (f"{rows[name]['figure']:.1f}" for name in names)
    return (
        f'When it was measured, a warm run took {run} times as long as with `"process"`, a writing '
        f"call {write} times, and a reading call {read} times."
    )


def describe_smallest_catalogue(results: Sequence[SuiteResult]) -> str:
    """Return for how many tasks function calls win with the smallest catalogue."""
    points = [point for result in results for point in result.details["points"]]
    size = min(point["catalogue"] for point in points)
    by_mode = {
        mode: [each for each in points if (each["catalogue"], each["mode"]) == (size, mode)]
        for mode in MODE_NAMES
    }
    functions, programs = by_mode["function-calling"], by_mode["llm"]
    _, words = describe_crossover(functions, programs)
    others = {task["task"]: task for task in programs}
    turns = count_wins(functions, others, "turns")
    return (
        f"With {size} tools in the catalogue, the smallest that was measured, fewer tokens are "
        f"needed by {words}; fewer turns by function calls in {turns} of {len(functions)}."
    )


def compare_modes(results: Sequence[SuiteResult]) -> str:
    """Return a table for each model that did the tasks with function calls and with programs."""
    tables = []
    for model, modes in modes_by_model(results).items():
        if modes.keys() >= MODE_NAMES.keys():
            columns = [summarize_usage(modes[mode]) for mode in ("function-calling", "llm")]
            rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
            count = len(modes["llm"].details["tasks"])
            header = (f"{count} tasks, model `{model}`", "function calls", "programs")
            tables.append(markdown_table(header, rows))
    return "\n".join(tables)


def modes_by_model(results: Sequence[SuiteResult]) -> dict[str, dict[str, SuiteResult]]:
    """Return the results of each model by mode."""
    by_model: dict[str, dict[str, SuiteResult]] = {}
    for result in results:
        by_model.setdefault(result.model, {})[result.mode] = result
    return by_model


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
    "inputs": write_inputs,
    "skill-gate": write_skill_gate,
    "second-task": write_second_task,
    "retrieval": write_retrieval,
}
