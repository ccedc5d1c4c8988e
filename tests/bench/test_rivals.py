"""Rivals are measured on the same programs, and one that cannot run keeps its row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from bench.report import write_report
from bench.results import record_result
from bench.rivals.install import read_rivals
from bench.rivals.measure import Programs, Rival, measure
from bench.rivals.suite import CannotRun, measure_rival, merge

ADAPTERS = Path(__file__).parents[2] / "bench" / "rivals"


def test_every_rival_of_the_list_has_an_adapter_and_exact_versions() -> None:
    for name, entry in read_rivals().items():
        assert (ADAPTERS / f"{name.replace('-', '_')}.py").exists(), name
        for package in entry.get("packages", ()):
            assert "==" in package, package
        for package in entry.get("npm", ()):
            assert package.rpartition("@")[0], package


class Evaluator(Rival):
    """A runtime that forgets variables, and every other line of output."""

    programs = Programs(calls="COUNT")

    async def run(self, code: str) -> str:
        if code.startswith("print"):
            number = code.rpartition(" ")[2].strip("')")
            return f"line {number}" if int(number) % 2 else ""
        return str(eval(code, {}))


def test_lost_output_and_lost_variables_are_seen() -> None:
    request = {"starts": 2, "runs": 4, "rounds": 3}
    figures = asyncio.run(measure(Evaluator, request))
    assert (figures.outputs, figures.lost_outputs) == (4, 2)
    assert not figures.keeps_variables
    assert (len(figures.first_s), len(figures.warm_ms), len(figures.call_ms)) == (2, 4, 3)
    both = merge(vars(figures), {**vars(figures), "keeps_variables": True})
    assert both["lost_outputs"] == 4
    assert not both["keeps_variables"]


def test_a_rival_that_cannot_run_says_why_in_its_row(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("bench.rivals.suite.FOLDER", tmp_path / "nothing")
    monkeypatch.setattr("bench.rivals.install.FOLDER", tmp_path / "nothing")
    with record_result("rivals", tmp_path / "rivals.json") as recorder:
        try:
            measure_rival("pyeryx", {})
        except CannotRun as exc:
            recorder.failures["pyeryx"] = str(exc)
        recorder.details |= {"rivals": {"pyeryx": read_rivals()["pyeryx"]}, "figures": {}}
    assert write_report([tmp_path / "rivals.json"], tmp_path) == 0
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "| pyeryx |" in text
    assert "pyeryx cannot run here: `not installed: make rivals has not run`" in text
