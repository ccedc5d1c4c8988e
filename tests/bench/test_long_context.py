"""The comparison runs through a real server, with a small text and a model with a small window."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.long_context import main
from tests.helpers.sizes import choose_cases

TASKS = choose_cases(["needles", "count"])
ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "bench", "run", "long-context")


def test_three_ways_are_compared_printed_and_written_as_json(tmp_path: Path) -> None:
    file = tmp_path / "new" / "long.json"
    options = (
        "--sizes",
        "12",
        "--window",
        "2000",
        "--texts",
        "1",
        "--backend",
        "local",
        "--tasks",
        *TASKS,
    )
    command = [*COMMAND, *options, "--json", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads(file.read_text())["details"]["lines"]
    by_way = {(line["task"], line["strategy"]): line for line in lines}
    assert len(by_way) == len(lines) == 3 * len(TASKS)
    for line in lines:
        assert 4_096 - 200 < line["characters"] <= 4_096
        assert f"{line['tokens_in']:,}" in done.stdout
        assert line["usd"] == (line["tokens_in"] * 0.5 + line["tokens_out"] * 2) / 1e6
        assert line["seconds"] > 0
        assert line["peak_mb"] > 0
    for task in TASKS:
        assert by_way[task, "one call"]["calls"] == 1
        assert by_way[task, "chunks"]["calls"] == 6  # five parts, and one call over their notes
        assert by_way[task, "recursion"]["calls"] >= 2  # a program and its model calls
        assert by_way[task, "recursion"]["score"] > by_way[task, "one call"]["score"]
    assert "mean score" in done.stdout
    assert "assumed" in done.stdout


@pytest.mark.parametrize(
    "options", [("--sizes", "10"), ("--sizes", "25"), ("--window", "1999"), ("--tasks", "sums")]
)
def test_what_cannot_be_compared_is_refused_with_what_can(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(options)
    assert exited.value.code == 2
    assert options[1] in capsys.readouterr().err
