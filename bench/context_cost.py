"""Experiment: what reaches the model, by size of the catalogue and number of calls.

The scripted model that makes no mistakes (`gold_model`) does tasks of `mrbs` as programs and as
function calls, with catalogues of several sizes. Tokens are cl100k, counted over the messages and
definitions of every request. A task crosses over where programs begin to need fewer tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import anyio

from .mrbs.suite import build_parser, run_tasks
from .results import RESULTS_FOLDER, ResultRecorder, record_result

CATALOGUES = (5, 10, 100, 500, 1_000)
MODES = ("llm", "function-calling")


async def measure(recorder: ResultRecorder, options: argparse.Namespace) -> None:
    """Do the tasks in both modes for each size of the catalogue."""
    points: list[dict[str, object]] = []
    for catalogue in options.catalogues:
        for mode in MODES:
            chosen = ["--mode", mode, "--limit", str(options.limit), "--seed", str(options.seed)]
            run_options = build_parser().parse_args([*chosen, "--catalogue", str(catalogue)])
            run_options.api_key = ""
            inner = ResultRecorder("mrbs")
            for outcome in await run_tasks(run_options, inner):
                tokens = outcome.usage.tokens_in + outcome.usage.tokens_out
                name = f"{outcome.task}: {mode}, {catalogue} tools"
                recorder.add(name, "tokens", [float(tokens)])
                points.append({**outcome.as_json(), "mode": mode, "catalogue": catalogue})
    recorder.details |= {"points": points, "limit": options.limit}


def main(arguments: Sequence[str]) -> int:
    """Measure all sizes; return 1 if a task was wrong."""
    top = argparse.ArgumentParser(prog="python -m bench run context-cost", description=__doc__)
    top.add_argument("--catalogues", type=int, nargs="+", default=CATALOGUES, metavar="TOOLS")
    top.add_argument("--limit", type=int, default=0, help="tasks of each category; default: all")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "context-cost.json")
    options = top.parse_args(arguments)
    with record_result("context-cost", options.json, seed=options.seed, model="gold") as recorder:
        anyio.run(measure, recorder, options)
    return int(not all(point["is_right"] for point in recorder.details["points"]))
