"""The suite `rivals`: other runtimes for code on the same programs, each as its documents say.

An adapter runs in the environment of its rival, which `make rivals` installs, and measures from
within it, so a library pays for no protocol and a server for the one that it has. A rival that
cannot run here keeps its row, with the reason. All are measured twice, the second time in the
opposite order.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docker import APIClient
from docker.utils import kwargs_from_env

from ..engine import API_VERSION
from ..harness import BARE_COMMAND
from ..results import RESULTS_FOLDER, ROOT, ResultRecorder, record_result
from .install import FOLDER, REASON, is_installed, read_rivals

IMAGE = "mcpruntime-sandbox"
TIMEOUT_S = 600.0
PASSES = 2
SAMPLES = {"starts": 3, "runs": 50, "rounds": 5}
QUICK_SAMPLES = {"starts": 1, "runs": 10, "rounds": 2}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# Folders and addresses of this machine, which mean nothing elsewhere.
LOCAL_PLACE = re.compile(
    r"\s*\bat file://\S+?(?=Stack|\s|$)|\s*\bon \d+(?:\.\d+){3}:\d+|Stack backtrace.*"
)
MAX_REASON_CHARS = 240


class CannotRun(Exception):
    """A rival cannot run here; the text is the reason."""


def measure_rival(name: str, samples: Mapping[str, int]) -> dict[str, Any]:
    """Return the figures of a rival; raises `CannotRun`."""
    entry = read_rivals()[name]
    folder = FOLDER / name
    if not is_installed(name, entry):
        reason = folder / REASON
        text = reason.read_text("utf-8") if reason.exists() else "make rivals has not run"
        raise CannotRun(f"not installed: {text}")
    python = str(folder / "venv" / "bin" / "python") if "packages" in entry else sys.executable
    binaries = f"{folder / 'node_modules' / '.bin'}:{os.environ.get('PATH', '')}"
    variables = {"PYTHONPATH": str(ROOT), "PATH": binaries, "HOME": os.environ.get("HOME", "/")}
    request = {
        **samples,
        "upstream": list(BARE_COMMAND),
        "image": find_image(),
        "folder": str(folder),
        "variables": variables,
    }
    module = f"bench.rivals.{name.replace('-', '_')}"
    try:
        done = subprocess.run(
            [python, "-m", module, json.dumps(request)],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise CannotRun(f"not finished after {TIMEOUT_S:.0f} s") from exc
    if done.returncode:
        lines = ANSI.sub("", done.stderr).strip().splitlines() or ["no message"]
        last = lines[-1][max(0, lines[-1].rfind("error:")) :]
        raise CannotRun(LOCAL_PLACE.sub("", last)[:MAX_REASON_CHARS])
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def find_image() -> str:
    """Return the newest image of this server, which rivals with containers use as well."""
    engine = APIClient(version=API_VERSION, timeout=60, **kwargs_from_env())
    images = engine.images(name=IMAGE)
    engine.close()
    if not images:
        raise CannotRun(f"There is no image {IMAGE}: run `make image`.")
    newest = max(images, key=lambda image: image["Created"])
    return str(newest["RepoTags"][0])


def measure_all(recorder: ResultRecorder, names: Sequence[str], samples: Mapping[str, int]) -> None:
    """Measure the rivals, in both orders."""
    found: dict[str, dict[str, Any]] = {}
    for number in range(PASSES):
        for name in names[:: -1 if number % 2 else 1]:
            if name in recorder.failures:
                continue
            try:
                figures = measure_rival(name, samples)
            except CannotRun as exc:
                recorder.failures[name] = str(exc)
                print(f"{name:20} cannot run: {exc}", flush=True)
                continue
            print(format_figures(name, figures), flush=True)
            found[name] = merge(found[name], figures) if name in found else figures
    for name, figures in found.items():
        recorder.add(f"{name}: first result", "s", figures["first_s"])
        recorder.add(f"{name}: warm run", "ms", figures["warm_ms"])
        recorder.add(f"{name}: call", "ms", figures["call_ms"])
    entries = read_rivals()
    recorder.details["rivals"] = {name: dict(entries[name]) for name in names}
    recorder.details["figures"] = {
        name: {key: figures[key] for key in ("outputs", "lost_outputs", "keeps_variables")}
        for name, figures in found.items()
    }


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of two passes together."""
    merged = {key: one[key] + other[key] for key in one if key != "keeps_variables"}
    return {**merged, "keeps_variables": one["keeps_variables"] and other["keeps_variables"]}


def format_figures(name: str, figures: Mapping[str, Any]) -> str:
    """Return the figures of one pass as a line."""

    def median(key: str) -> str:
        values = sorted(figures[key])
        return f"{values[len(values) // 2]:9.2f}" if values else f"{'-':>9}"

    lost = f"{figures['lost_outputs']} of {figures['outputs']} outputs lost"
    return f"{name:20}{median('first_s')} s{median('warm_ms')} ms{median('call_ms')} ms  {lost}"


def main(arguments: Sequence[str]) -> int:
    """Measure and print; a rival that cannot run is no failure of the suite."""
    names = list(read_rivals())
    top = argparse.ArgumentParser(
        prog="python -m bench run rivals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    top.add_argument("--quick", action="store_true")
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "rivals.json")
    options = top.parse_args(arguments)
    samples = QUICK_SAMPLES if options.quick else SAMPLES
    with record_result("rivals", options.json, is_quick=options.quick) as recorder:
        measure_all(recorder, options.only, samples)
    return 0
